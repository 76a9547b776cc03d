package sagatest

import (
	"fmt"
	"slices"
	"testing"
)

// recorder keeps what a test would have failed with.
type recorder struct {
	testing.TB
	errs []string
}

func (r *recorder) Helper()             {}
func (r *recorder) Logf(string, ...any) {}
func (r *recorder) Failed() bool        { return len(r.errs) > 0 }
func (r *recorder) Errorf(format string, args ...any) {
	r.errs = append(r.errs, fmt.Sprintf(format, args...))
}

func TestPointsThatAreNewOrGoneAreNamed(t *testing.T) {
	t.Parallel()
	passed := []string{"after commit claim", "before commit invoice", "after commit invoice", "before call charge", "after commit claim"}
	for _, tc := range []struct {
		sentence string
		points   []string
		want     []string
	}{
		{"nothing is expected, so nothing is compared", nil, nil},
		{"each is there once, whichever way round", []string{"call charge", "commit invoice", "commit claim"}, nil},
		{
			"a new one and one that has gone", []string{"commit claim", "call charge", "ask charge"},
			[]string{
				`a crash point that World.Points does not have: "commit invoice"`,
				`a crash point of World.Points that was not passed: "ask charge"`,
			},
		},
	} {
		r := &recorder{TB: t}
		(&World{Points: tc.points}).compare(r, passed)
		if !slices.Equal(r.errs, tc.want) {
			t.Errorf("%s: compare fails with %q, want %q", tc.sentence, r.errs, tc.want)
		}
	}
}

// How often a name comes may differ by nature, whether it comes may not: a crash that did not happen must not pass for one.
func TestARunThatComesToNoCrashFails(t *testing.T) {
	t.Parallel()
	const point = "before call charge"
	for _, tc := range []struct {
		sentence string
		points   []string
		nth      int
		fails    bool
	}{
		{"the first of an expected name", []string{"call charge"}, 1, true},
		{"one more of it", []string{"call charge"}, 2, false},
		{"nothing is expected", nil, 1, false},
	} {
		r := &recorder{TB: t}
		(&World{Points: tc.points}).missed(r, point, tc.nth)
		if r.Failed() != tc.fails {
			t.Errorf("%s: missed fails with %q, want %v", tc.sentence, r.errs, tc.fails)
		}
	}
}

func TestAnEngineDiesAtTheNthPointOfAName(t *testing.T) {
	t.Parallel()
	passed := []string{"claim", "call", "claim", "call", "claim"}
	for _, tc := range []struct {
		sentence string
		dies     death
		want     []int
	}{
		{"the second of a name", passing("claim", 2), []int{2}},
		{"one that does not come", passing("claim", 4), nil},
		{"the fourth, whatever it is", passingAny(4), []int{3}},
	} {
		var got []int
		for i, point := range passed {
			if tc.dies(point) {
				got = append(got, i)
			}
		}
		if !slices.Equal(got, tc.want) {
			t.Errorf("%s: it dies at %v, want %v", tc.sentence, got, tc.want)
		}
	}
}
