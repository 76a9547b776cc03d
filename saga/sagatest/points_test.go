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
