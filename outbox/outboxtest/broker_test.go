package outboxtest_test

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/outbox/outboxtest"
)

func page(keys ...string) []outbox.Record {
	var records []outbox.Record
	for _, key := range keys {
		records = append(records, outbox.Record{Topic: "orders", Key: key})
	}
	return records
}

func TestBrokerFailsBatchesAsKafkaDoes(t *testing.T) {
	t.Parallel()
	isB := func(r outbox.Record) bool { return r.Key == "b" }
	always := func(err error) func([]outbox.Record) error { return func([]outbox.Record) error { return err } }
	errHook := errors.New("hook")
	for _, test := range []struct {
		name   string
		broker *outboxtest.Broker
		down   bool
		errs   []error // of a, b, c; nil when all are acknowledged
		kept   string
	}{
		{"everything is taken", &outboxtest.Broker{}, false, nil, "abc"},
		{"one batch is refused with its culprit", &outboxtest.Broker{Partitions: 1, Refuse: isB}, false,
			[]error{outbox.ErrRefused, outbox.ErrRefused, outbox.ErrRefused}, ""},
		{"other partitions are taken", &outboxtest.Broker{Refuse: isB}, false, []error{nil, outbox.ErrRefused, nil}, "ac"},
		{"a batch fails this time", &outboxtest.Broker{Fail: isB}, false, []error{nil, outboxtest.ErrFailed, nil}, "ac"},
		{"what is refused for good is not said to have failed once", &outboxtest.Broker{Partitions: 1, Refuse: isB, Fail: isB}, false,
			[]error{outbox.ErrRefused, outbox.ErrRefused, outbox.ErrRefused}, ""},
		{"it is away", &outboxtest.Broker{}, true, []error{outboxtest.ErrDown, outboxtest.ErrDown, outboxtest.ErrDown}, ""},
		{"a page is lost on its way", &outboxtest.Broker{Sending: always(errHook)}, false, []error{errHook, errHook, errHook}, ""},
		{"an answer is lost on its way", &outboxtest.Broker{Acking: always(errHook)}, false, []error{errHook, errHook, errHook}, "abc"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.broker.SetDown(test.down)
			errs := test.broker.Publish(t.Context(), page("a", "b", "c"))
			if len(errs) != len(test.errs) {
				t.Fatalf("Publish = %v, want %v", errs, test.errs)
			}
			for i := range errs {
				if !errors.Is(errs[i], test.errs[i]) {
					t.Errorf("Publish = %v, want %v", errs, test.errs)
				}
			}
			kept := ""
			for _, r := range test.broker.Records() {
				kept += r.Key
			}
			if diff := cmp.Diff(test.kept, kept); diff != "" {
				t.Errorf("kept (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSlowBrokerKeepsWhatItCannotAnswerInTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		broker := &outboxtest.Broker{Delay: 3 * time.Second}
		began := time.Now()
		if errs := broker.Publish(t.Context(), page("a")); errs != nil || time.Since(began) != broker.Delay {
			t.Errorf("Publish = %v after %v, want nil after %v", errs, time.Since(began), broker.Delay)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		errs := broker.Publish(ctx, page("b"))
		if len(errs) != 1 || !errors.Is(errs[0], context.DeadlineExceeded) {
			t.Errorf("Publish = %v, want the deadline", errs)
		}
		if n := len(broker.Records()); n != 2 {
			t.Errorf("%d records kept, want 2: the answer is late, not the record", n)
		}
	})
}

func TestWaitSeesWhatIsKeptMeanwhileAndGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	var broker outboxtest.Broker
	two := func(records []outbox.Record) bool { return len(records) == 2 }
	ctx, cancel := context.WithCancel(t.Context())
	waited := make(chan error, 1)
	go func() { waited <- broker.Wait(ctx, two) }()
	broker.Publish(ctx, page("a"))
	broker.Publish(ctx, page("b"))
	if err := <-waited; err != nil {
		t.Errorf("Wait = %v, want nil", err)
	}
	broker.Publish(ctx, page("c"))
	cancel()
	if err := broker.Wait(ctx, two); !errors.Is(err, context.Canceled) {
		t.Errorf("Wait = %v, want %v", err, context.Canceled)
	}
}
