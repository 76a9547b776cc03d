package main

import (
	"slices"
	"strings"
)

const (
	diffContext = 3
	diffMost    = 4_000_000 // cells of the table that finds what two texts share; above it all lines count as changed
)

// diffLine is a line of both texts (' '), of the old one ('-') or of the new one ('+').
type diffLine struct {
	sign byte
	text string
}

// diffLines returns the lines of before and after in the order of a reader, by their longest common subsequence.
func diffLines(before, after []string) []diffLine {
	var head, tail []diffLine
	for len(before) > 0 && len(after) > 0 && before[0] == after[0] {
		head = append(head, diffLine{' ', before[0]})
		before, after = before[1:], after[1:]
	}
	for len(before) > 0 && len(after) > 0 && before[len(before)-1] == after[len(after)-1] {
		tail = append(tail, diffLine{' ', before[len(before)-1]})
		before, after = before[:len(before)-1], after[:len(after)-1]
	}
	slices.Reverse(tail)
	return slices.Concat(head, diffMiddle(before, after), tail)
}

func diffMiddle(before, after []string) []diffLine {
	// shared[i][j] is the length of what before[i:] and after[j:] share.
	shared := make([][]int, len(before)+1)
	if len(before)*len(after) <= diffMost {
		for i := range shared {
			shared[i] = make([]int, len(after)+1)
		}
		for i := len(before) - 1; i >= 0; i-- {
			for j := len(after) - 1; j >= 0; j-- {
				shared[i][j] = max(shared[i+1][j], shared[i][j+1])
				if before[i] == after[j] {
					shared[i][j] = shared[i+1][j+1] + 1
				}
			}
		}
	}
	var lines []diffLine
	i, j := 0, 0
	for i < len(before) || j < len(after) {
		switch {
		case i < len(before) && j < len(after) && shared[i] != nil && before[i] == after[j]:
			lines = append(lines, diffLine{' ', before[i]})
			i, j = i+1, j+1
		case i < len(before) && (j == len(after) || shared[i] == nil || shared[i+1][j] >= shared[i][j+1]):
			lines = append(lines, diffLine{'-', before[i]})
			i++
		default:
			lines = append(lines, diffLine{'+', after[j]})
			j++
		}
	}
	return lines
}

// diffText shows what changed from before to after, with some lines around it.
func (o *output) diffText(before, after string) string {
	lines := diffLines(strings.Split(before, "\n"), strings.Split(after, "\n"))
	near := make([]bool, len(lines))
	for i, l := range lines {
		if l.sign != ' ' {
			for k := max(0, i-diffContext); k < min(len(lines), i+diffContext+1); k++ {
				near[k] = true
			}
		}
	}
	var b strings.Builder
	for i, l := range lines {
		if !near[i] {
			if i == 0 || near[i-1] {
				b.WriteString(o.paint("  …", "dim") + "\n")
			}
			continue
		}
		style := map[byte]string{'-': "bad", '+': "good"}[l.sign]
		b.WriteString(o.paint(string(l.sign)+" "+l.text, style) + "\n")
	}
	return b.String()
}
