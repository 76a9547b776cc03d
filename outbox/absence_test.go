package outbox

import (
	"testing"
	"time"
)

func TestATopicIsMissingOnlyWhenItStaysUnknown(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name  string
		looks []int // in seconds; negative: found then
		want  bool  // of the last look
	}{
		{"at the first look it may come back", []int{0}, false},
		{"it has not lasted yet", []int{0, 9}, false},
		{"it has lasted", []int{0, 9, 10}, true},
		{"between two absences it was found", []int{1, -5, 9, 12}, false},
		{"between two absences nobody looked", []int{0, 60}, false},
		{"once missing it is missing until it is found", []int{0, 5, 10, 3600}, true},
		{"once missing and then found it may come back", []int{0, 5, 10, -20, 21}, false},
	} {
		a := absences{limit: 10 * time.Second, topics: map[string]absence{}}
		start, got := time.Now(), false
		for _, s := range tt.looks {
			if s < 0 {
				a.found("orders")
			} else {
				got = a.unknown("orders", start.Add(time.Duration(s)*time.Second))
			}
		}
		if got != tt.want {
			t.Errorf("%s: looks at %v: missing = %v, want %v", tt.name, tt.looks, got, tt.want)
		}
	}
}
