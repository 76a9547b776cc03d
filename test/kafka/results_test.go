package main

import (
	"strings"
	"testing"
)

// A run is not good because nothing failed: the reasons why it may prove less than it seems to.
func TestJudge(t *testing.T) {
	const onKafka = `{"Action":"attr","Package":"github.com/orderflow-dev/orderflow/inbox","Test":"TestA","Key":"kafka","Value":"apache"}
{"Action":"pass","Package":"github.com/orderflow-dev/orderflow/inbox","Test":"TestA/part"}
{"Action":"pass","Package":"github.com/orderflow-dev/orderflow/inbox","Test":"TestA"}
`
	const onKfake = `{"Action":"attr","Package":"github.com/orderflow-dev/orderflow/inbox","Test":"TestB/part","Key":"kafka","Value":"kfake"}
{"Action":"pass","Package":"github.com/orderflow-dev/orderflow/inbox","Test":"TestB/part"}
{"Action":"pass","Package":"github.com/orderflow-dev/orderflow/inbox","Test":"TestB"}
`
	listed := map[string][]string{"inbox": {"TestB"}}
	tests := []struct {
		name, events string
		listed       map[string][]string
		complete     bool
		want         string // "": good
	}{
		{"all is as listed", onKafka + onKfake, listed, true, ""},
		{"a test has moved to kfake", onKafka + onKfake, nil, true, "TestB ran on kfake"},
		{"a listed one has not run", onKafka, listed, true, "lists TestB"},
		{"a part of the tests was asked for", onKafka, listed, false, ""},
		{"nothing ran on Kafka", onKfake, listed, true, "no test ran on Apache Kafka"},
		{"a test was skipped", onKafka + onKfake + `{"Action":"skip","Package":"github.com/orderflow-dev/orderflow/inbox","Test":"TestC"}`, listed, true, "1 tests were skipped"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := readResults(strings.NewReader(tt.events), false)
			if err != nil {
				t.Fatal(err)
			}
			err = r.judge(tt.listed, tt.complete)
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("judge = %v, want %q", err, tt.want)
			}
			if got := r.suites["inbox"].on("apache"); strings.HasPrefix(tt.events, onKafka) && got != 2 {
				t.Errorf("%d tests ran on Apache Kafka, want 2: the test and its part", got)
			}
		})
	}
}
