package load

import (
	"slices"
	"strconv"
	"time"
)

// Summary is what became of the orders of a run.
type Summary struct {
	Orders   int `json:"orders"`
	Accepted int `json:"accepted"`
	Refused  int `json:"refused"`
	Unknown  int `json:"unknown"`
	// Retried counts attempts after the first; Replayed counts answers that an earlier attempt had earned.
	Retried  int `json:"retried"`
	Replayed int `json:"replayed"`
	// HeldBack counts orders that were not sent when due because too many were under way.
	HeldBack int `json:"held_back"`
	// Answers counts attempts by HTTP status; "none" had no answer.
	Answers map[string]int `json:"answers"`
	Seconds float64        `json:"seconds"`
	// PerSecond is accepted orders per second of the run.
	PerSecond float64 `json:"per_second"`
	// Latency of accepted orders, from the moment each was due, retries included.
	Latency Latency `json:"latency_ms"`
}

// Latency is a distribution in milliseconds.
type Latency struct {
	P50 float64 `json:"p50"`
	P90 float64 `json:"p90"`
	P99 float64 `json:"p99"`
	Max float64 `json:"max"`
}

type tally struct {
	sent, accepted, refused, unknown int
	retried, replayed, heldBack      int
	answers                          map[string]int
	latencies                        []time.Duration
}

func (t *tally) attempt(attempt, status int, replayed bool) {
	if t.answers == nil {
		t.answers = map[string]int{}
	}
	name := "none"
	if status != 0 {
		name = strconv.Itoa(status)
	}
	t.answers[name]++
	if attempt > 1 {
		t.retried++
	}
	if replayed {
		t.replayed++
	}
}

func (t *tally) settle(outcome string, latency time.Duration) {
	switch outcome {
	case Accepted:
		t.accepted++
		t.latencies = append(t.latencies, latency)
	case Refused:
		t.refused++
	case Unknown:
		t.unknown++
	}
}

func (r *run) summary() Summary {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tally
	s := Summary{
		Orders: t.sent, Accepted: t.accepted, Refused: t.refused, Unknown: t.unknown, Retried: t.retried, Replayed: t.replayed,
		HeldBack: t.heldBack, Answers: t.answers, Seconds: time.Since(r.began).Seconds(), Latency: distribution(t.latencies),
	}
	if s.Seconds > 0 {
		s.PerSecond = float64(s.Accepted) / s.Seconds
	}
	return s
}

func distribution(d []time.Duration) Latency {
	if len(d) == 0 {
		return Latency{}
	}
	slices.Sort(d)
	at := func(q float64) float64 {
		i := min(len(d)-1, int(q*float64(len(d))))
		return float64(d[i].Microseconds()) / 1000
	}
	return Latency{P50: at(0.5), P90: at(0.9), P99: at(0.99), Max: at(1)}
}
