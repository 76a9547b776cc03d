// Package tally counts what happened in a test of many random runs, to see that everything did: a run in which nothing went
// wrong proves nothing.
package tally

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
)

// Tally adds up what happened in all runs. The zero value is ready; runs may share it.
type Tally struct {
	mu     sync.Mutex
	counts map[string]int
}

// Add counts n more of something.
func (a *Tally) Add(what string, n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.counts == nil {
		a.counts = map[string]int{}
	}
	a.counts[what] += n
}

// long is how many runs are enough for everything to happen.
const long = 50

// Report prints what happened, and fails a test of at least 50 runs in which something expected did not: it would prove less
// than it says.
func (a *Tally) Report(t testing.TB, test string, runs int, expected ...string) {
	t.Helper()
	a.mu.Lock()
	defer a.mu.Unlock()
	var said []string
	for _, what := range slices.Sorted(maps.Keys(a.counts)) {
		said = append(said, fmt.Sprintf("%d %s", a.counts[what], what))
	}
	fmt.Printf("%s: %d runs, %s\n", test, runs, strings.Join(said, ", "))
	if runs < long {
		return
	}
	for _, what := range expected {
		if a.counts[what] == 0 {
			t.Errorf("no %s in %d runs", what, runs)
		}
	}
}
