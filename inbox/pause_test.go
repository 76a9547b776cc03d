package inbox_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

func (w *world) pausable() inbox.Options {
	opts := w.options()
	opts.PauseEvery = 10 * time.Millisecond
	return opts
}

func (w *world) pause(lease time.Duration) *inbox.Pause {
	w.Helper()
	p, err := inbox.PauseGroup(w.Context(), w.db.Pool, "test", "ada", "a test", lease)
	if err != nil {
		w.Fatal(err)
	}
	return p
}

func (w *world) resume(p *inbox.Pause) {
	w.Helper()
	if err := p.Resume(w.Context()); err != nil {
		w.Error(err)
	}
}

// rewind sets the group's offsets to 0 in every partition it has committed in, from outside.
func (w *world) rewind() {
	w.Helper()
	committed, err := w.adm.FetchOffsets(w.Context(), "test")
	if err != nil {
		w.Fatal(err)
	}
	offsets := kadm.Offsets{}
	committed.Each(func(o kadm.OffsetResponse) { offsets.AddOffset(o.Topic, o.Partition, 0, -1) })
	responses, err := w.adm.CommitOffsets(w.Context(), "test", offsets)
	if err == nil {
		err = responses.Error()
	}
	if err != nil {
		w.Fatalf("commit offsets while the group is paused: %v", err)
	}
}

// committedSum adds up the group's offsets.
func (w *world) committedSum() (sum int64) {
	w.Helper()
	committed, err := w.adm.FetchOffsets(w.Context(), "test")
	if err != nil {
		w.Fatal(err)
	}
	committed.Each(func(o kadm.OffsetResponse) { sum += o.At })
	return sum
}

// F14, by hand: a group that reads again what it has read does nothing twice, and what was lost once is done.
func TestAPausedGroupTakesOffsetsAndReadsAgainFromThere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(apply, w.pausable())
	w.start(apply, w.pausable())
	var records []*kgo.Record
	for n := range 20 {
		records = append(records, record([]string{"ada", "bob"}[n%2], n/2+1, ""))
	}
	w.produce(records...)
	w.wait("everything is applied and committed", func() bool { return w.count(`SELECT count(*) FROM effects`) == 20 && w.committedSum() == 20 })

	p := w.pause(time.Minute)
	w.wait("the group is empty, and both consumers say so", func() bool {
		stopped, err := p.Stopped(w.Context())
		return err == nil && len(stopped) == 2 && w.groupState() == "Empty"
	})
	lost, err := uuid.Parse(string(records[6].Headers[1].Value))
	if err != nil {
		t.Fatal(err)
	}
	ids := []uuid.UUID{lost, uuid.MustParse(string(records[7].Headers[1].Value))}
	if n, err := inbox.CountProcessed(t.Context(), w.db.Pool, "test", ids); n != 2 || err != nil {
		t.Errorf("CountProcessed = %d, %v; want 2", n, err)
	}
	w.exec(`DELETE FROM effects WHERE id = $1::text::uuid`, lost.String())
	w.exec(`DELETE FROM processed_messages WHERE event_id = $1::text::uuid`, lost.String())
	if n, err := inbox.CountProcessed(t.Context(), w.db.Pool, "test", ids); n != 1 || err != nil {
		t.Errorf("CountProcessed of a message that was lost = %d, %v; want 1", n, err)
	}
	w.rewind()
	w.resume(p)

	w.wait("the group has read everything again", func() bool { return w.committedSum() == 20 })
	w.wantEffects("ada", 1, 2, 3, 5, 6, 7, 8, 9, 10, 4)
	w.wantEffects("bob", 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
	w.wait("no consumer says that it has stopped", func() bool { return w.count(`SELECT count(*) FROM inbox_paused_consumers`) == 0 })
}

func (w *world) exec(query string, args ...any) {
	w.Helper()
	if _, err := w.db.Pool.Exec(w.Context(), query, args...); err != nil {
		w.Fatalf("%s: %v", query, err)
	}
}

// sawPause is a log that tells when the consumer has seen a pause.
type sawPause chan struct{}

func (s sawPause) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("stops for a pause")) {
		s <- struct{}{}
	}
	return len(line), nil
}

func TestAPausedConsumerFinishesWhatItHasStarted(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	started, finish := make(chan struct{}, 1), make(chan struct{})
	seen := make(sawPause, 1)
	opts := w.pausable()
	opts.Log = slog.New(slog.NewTextHandler(seen, nil))
	c := w.consumer([]inbox.Route{{Topic: topic, Type: placed, Handle: func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
		select {
		case started <- struct{}{}:
		default:
		}
		<-finish
		return apply(ctx, tx, m)
	}}}, opts)
	w.run(c)
	w.produce(record("ada", 1, ""))
	<-started
	p := w.pause(time.Minute)
	<-seen
	close(finish)
	w.wait("the group is empty", func() bool { return w.groupState() == "Empty" })
	w.wantEffects("ada", 1)
	if got := w.committedSum(); got != 1 {
		t.Errorf("committed = %d when the consumer has left, want 1", got)
	}
	w.wait("the consumer is not ready, and says who paused it", func() bool {
		err := c.Ready()
		return err != nil && strings.Contains(err.Error(), "paused by ada: a test")
	})
	w.produce(record("ada", 2, ""))
	w.resume(p)
	w.wait("the consumer is back", func() bool { return c.Ready() == nil && slices.Equal(w.effects("ada"), []int{1, 2}) })
}

func TestAConsumerThatStartsWhileItsGroupIsPausedWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.pause(time.Minute)
	stop := w.start(apply, w.pausable())
	w.produce(record("ada", 1, ""))
	w.wait("the consumer says that it waits", func() bool { stopped, _ := p.Stopped(w.Context()); return len(stopped) == 1 })
	if state := w.groupState(); state != "Empty" && state != "Dead" && state != "" {
		t.Errorf("the group is %s while it is paused, want it to have no members", state)
	}
	stop() // a pause does not hold up a stop
	w.start(apply, w.pausable())
	w.resume(p)
	w.wait("the message is applied", func() bool { return len(w.effects("ada")) == 1 })
}

func TestAPauseThatNobodyHoldsEndsWithItsLease(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.start(apply, w.pausable())
	w.produce(record("ada", 1, ""))
	w.wait("the first is applied", func() bool { return len(w.effects("ada")) == 1 })
	p := w.pause(3 * time.Second)
	w.wait("the group is empty", func() bool { return w.groupState() == "Empty" })
	w.produce(record("ada", 2, ""))
	w.wait("the consumer is back", func() bool { return len(w.effects("ada")) == 2 })
	if err := p.Hold(t.Context()); !errors.Is(err, inbox.ErrPauseLost) {
		t.Errorf("Hold = %v, want ErrPauseLost", err)
	}
	if err := p.Resume(t.Context()); !errors.Is(err, inbox.ErrPauseLost) {
		t.Errorf("Resume = %v, want ErrPauseLost", err)
	}
}

func TestAPauseBelongsToOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.pause(2 * time.Second)
	ctx, stop := context.WithCancel(t.Context())
	held := make(chan error, 1)
	go func() { held <- first.Hold(ctx) }()
	w.wait("the lease is renewed", func() bool {
		return w.count(`SELECT count(*) FROM inbox_pauses WHERE leased_until > since + interval '2.1 seconds'`) == 1
	})
	_, err := inbox.PauseGroup(t.Context(), w.db.Pool, "test", "bob", "as well", 0)
	if !errors.Is(err, inbox.ErrPaused) || !strings.Contains(err.Error(), "by ada") {
		t.Errorf("PauseGroup of a paused group = %v, want ErrPaused and who has paused it", err)
	}
	if _, err := inbox.PauseGroup(t.Context(), w.db.Pool, "another", "bob", "another", 0); err != nil {
		t.Errorf("PauseGroup of another group = %v, want nil", err)
	}
	stop()
	if err := <-held; err != nil {
		t.Errorf("Hold = %v after its context ended, want nil", err)
	}
	var second *inbox.Pause
	w.wait("a pause whose lease has ended can be taken over", func() (ok bool) {
		var err error
		second, err = inbox.PauseGroup(t.Context(), w.db.Pool, "test", "bob", "after ada", 0)
		return err == nil
	})
	if err := first.Resume(t.Context()); !errors.Is(err, inbox.ErrPauseLost) {
		t.Errorf("Resume of a pause that was taken over = %v, want ErrPauseLost", err)
	}
	w.resume(second)
}
