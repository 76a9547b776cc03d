package inbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/inbox"
)

// says reports whether one of the sentences has all parts.
func says(why []string, parts ...string) bool {
	for _, sentence := range why {
		found := 0
		for _, part := range parts {
			if strings.Contains(sentence, part) {
				found++
			}
		}
		if found == len(parts) {
			return true
		}
	}
	return false
}

func TestWhySaysWhatMessagesWaitFor(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		fail func(release <-chan struct{}) error
		says []string
	}{
		{"an outage", func(<-chan struct{}) error { return inbox.Outage(errors.New("the provider is away")) },
			[]string{"paused: circuit open since ", "the provider is away"}},
		{"a slow handler", func(release <-chan struct{}) error { <-release; return nil },
			[]string{"message ID (orders partition ", " offset 0) is in the handler of order.placed.v1 for "}},
		{"a next try", func(release <-chan struct{}) error {
			select {
			case <-release:
				return nil
			default:
				return inbox.RetryAfter(1900*time.Millisecond, inbox.WithClass("not_yet", errors.New("soon")))
			}
		}, []string{"message ID (orders partition ", " offset 0) waits for try 2 at ", "the last one failed as not_yet"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			release := make(chan struct{})
			c := w.consumer(onlyPlaced(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
				select {
				case <-release:
				default:
					if err := tt.fail(release); err != nil {
						return err
					}
				}
				return apply(ctx, tx, m)
			}), w.options())
			w.run(c)
			rec := record("secret-user", 1, "")
			var id string
			for _, h := range rec.Headers {
				if h.Key == "ce_id" {
					id = string(h.Value)
				}
			}
			for i := range tt.says {
				tt.says[i] = strings.Replace(tt.says[i], "ID", id, 1)
			}
			w.produce(rec)
			w.wait("the words, and no others", func() bool {
				why := c.Why()
				return says(why, tt.says...) && len(why) == 1
			})
			if why := fmt.Sprint(c.Why()); strings.Contains(why, "secret") {
				t.Errorf("Why() = %s names a key", why)
			}
			close(release)
			w.wait("the effect", func() bool { return len(w.effects("secret-user")) == 1 && w.lag() == 0 })
			w.wait("nothing more to say", func() bool { return len(c.Why()) == 0 })
		})
	}
}

func TestASecondTryThatIsInItsHandlerWaitsForNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	entered, release := make(chan struct{}), make(chan struct{})
	c := w.consumer(onlyPlaced(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		if m.Attempt == 1 {
			return inbox.RetryAfter(time.Millisecond, errors.New("again"))
		}
		close(entered)
		<-release
		return apply(ctx, tx, m)
	}), w.options())
	w.run(c)
	w.produce(record("u1", 1, ""))
	<-entered
	if why := c.Why(); len(why) != 1 || !says(why, "is in the handler of order.placed.v1 for ") {
		t.Errorf("Why() = %q, want that the message is in its handler and nothing else", why)
	}
	close(release)
	w.wait("the effect", func() bool { return len(w.effects("u1")) == 1 })
}

func TestWhySaysThatThereIsNoMembershipOrNoPartition(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.broker.Create(t, 1, nil, "narrow")
	routes := []inbox.Route{{Topic: "narrow", Type: placed, Handle: apply}}
	var group [2]*inbox.Consumer
	for i := range group {
		group[i] = w.consumer(routes, w.options())
		if why := group[i].Why(); !says(why, "not a member of the group") {
			t.Errorf("before it runs Why() = %q, want that it is no member", why)
		}
		w.run(group[i])
	}
	const none = "no partitions assigned"
	w.wait("one has the partition, the other says that it has none", func() bool {
		return group[0].Ready() == nil && group[1].Ready() == nil && says(group[0].Why(), none) != says(group[1].Why(), none)
	})
}

func TestOfManyMessagesAlikeWhyNamesThree(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	release := make(chan struct{})
	opts := w.options()
	opts.Workers, opts.BatchSize = 5, 1
	c := w.consumer(onlyPlaced(func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		<-release
		return apply(ctx, tx, m)
	}), opts)
	w.run(c)
	for i := range 12 {
		w.produce(record(fmt.Sprintf("u%d", i), 1, ""))
	}
	w.wait("three and the rest", func() bool {
		why := c.Why()
		return len(why) == 5 && says(why, "2 more batches are in their handlers") && says(why, "7 messages wait for a worker")
	})
	close(release)
	w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) == 12 })
}
