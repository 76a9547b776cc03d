package outbox_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// tally adds up what happened in all runs, to see that everything did.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (a *tally) add(what string, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.counts[what] += n
}

// report prints what happened, and fails a long test in which something did not: it would prove less than it says.
func (a *tally) report(t *testing.T, runs int) {
	const long = 50
	a.mu.Lock()
	defer a.mu.Unlock()
	var said []string
	for _, what := range slices.Sorted(maps.Keys(a.counts)) {
		said = append(said, fmt.Sprintf("%d %s", a.counts[what], what))
	}
	fmt.Printf("history: %d runs, %s\n", runs, strings.Join(said, ", "))
	if runs < long {
		return
	}
	expected := append([]string{deposed, outage, truncated}, deaths...)
	for _, kind := range writerKinds {
		expected = append(expected, kind.name)
	}
	for _, what := range expected {
		if a.counts[what] == 0 {
			t.Errorf("no %s in %d runs", what, runs)
		}
	}
}
