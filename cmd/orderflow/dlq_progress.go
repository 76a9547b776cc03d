package main

import (
	"fmt"
	"io"
	"strings"
	"time"
)

const (
	barWidth = 30
	sayEvery = 5 * time.Second
)

// progress shows how far a long command is: a bar on a terminal, elsewhere a line every 5 s.
type progress struct {
	w        io.Writer
	terminal bool
	drawn    bool      // a bar stands on the last line
	said     time.Time // when the last line was written
}

func newProgress(w io.Writer) *progress {
	return &progress{w: w, terminal: isTerminal(w), said: time.Now()}
}

// at shows that done of total are done.
func (p *progress) at(done, total int, text string) {
	switch {
	case p.terminal:
		filled := barWidth * done / max(total, 1)
		fmt.Fprintf(p.w, "\r[%s%s] %d/%d  %s\x1b[K", strings.Repeat("#", filled), strings.Repeat(" ", barWidth-filled), done, total, text)
		p.drawn = true
	case time.Since(p.said) >= sayEvery:
		p.say("%d/%d  %s", done, total, text)
	}
}

// say writes a line of its own.
func (p *progress) say(format string, args ...any) {
	p.end()
	fmt.Fprintf(p.w, format+"\n", args...)
	p.said = time.Now()
}

// end leaves the bar where it is and goes to the next line.
func (p *progress) end() {
	if p.drawn {
		fmt.Fprintln(p.w)
		p.drawn = false
	}
}
