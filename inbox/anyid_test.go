package inbox_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

func newAnyIDWorld(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.db, w.anyID = newDatabaseAnyID(t), true
	return w
}

func TestAnyIDIsKnownBySourceAndID(t *testing.T) {
	t.Parallel()
	w := newAnyIDWorld(t)
	v4 := uuid.New()
	good := []struct{ name, id, source string }{
		{"a number", "42", "/a"},
		{"the same number of another source", "42", "/b"},
		{"source and id that look like another pair", "2", "/a 4"},
		{"a sentence", "order 7 — ünïcode", "/a"},
		{"no text", "\xff\x00", "/a"},
		{"as long as may be", strings.Repeat("x", 256), "/a"},
		{"a UUIDv4", v4.String(), "/a"},
		{"a UUIDv7 of two years ago", idOf(time.Now().Add(-2 * 365 * 24 * time.Hour)).String(), "/a"},
	}
	var first, again []*kgo.Record
	for i, g := range good {
		rec := set(set(record("u1", i+1, ""), "ce_id", g.id), "ce_source", g.source)
		copied := *rec
		first, again = append(first, rec), append(again, &copied)
	}
	w.start(apply, w.options())
	w.anyID = false // the ids are as they are
	w.produce(append(first, again...)...)
	w.wait("the good ones, whose ids are taken then", func() bool { return len(w.effects("u1")) == len(good) })
	w.produce(payload(set(set(record("conflict", 1, ""), "ce_id", "42"), "ce_source", "/a"), []byte(`{"seq":9}`)),
		set(record("long", 1, ""), "ce_id", strings.Repeat("x", 257)),
		drop(record("none", 1, ""), "ce_id"))
	w.wait("all fates", func() bool { return w.lag() == 0 && len(w.parked(inbox.Filter{})) == 3 })
	w.wantEffects("u1", seqs(len(good))...)
	for key, class := range map[string]string{"conflict": inbox.ClassIDConflict, "long": inbox.ClassBadEnvelope, "none": inbox.ClassBadEnvelope} {
		if p := w.parked(inbox.Filter{Key: key}); len(p) != 1 || p[0].Class != class || p[0].State != inbox.StateDead {
			t.Errorf("%s: parked = %+v, want one dead as %s", key, p, class)
		}
	}
	if n := w.count(`SELECT count(*) FROM effects WHERE id = $1`, v4); n != 1 {
		t.Errorf("effects under the writer's own UUID: got %d, want 1", n)
	}
}

func TestWhatIsOlderThanRememberIsForgottenAndWhatIsParkedIsNot(t *testing.T) {
	t.Parallel()
	w := newAnyIDWorld(t)
	stop := w.start(parkFirst(apply), w.options())
	old := record("u1", 1, "")
	w.produce(old, record("u1", 2, ""), record("u2", 1, "park"))
	w.wait("two done, one parked", func() bool { return len(w.effects("u1")) == 2 && len(w.parked(inbox.Filter{})) == 1 && w.lag() == 0 })
	stop()
	// A day and a half ago: the first message and the parked one. Another group remembers for as long as it likes.
	_, err := w.db.Pool.Exec(t.Context(), `
		INSERT INTO processed_messages (slot, consumer_group, event_id, payload_hash, state)
		SELECT 0, 'another', gen_random_uuid(), '', 'done' FROM generate_series(1, 3);
		UPDATE processed_messages m SET processed_at = now() - interval '36 hours'
		WHERE state = 'parked' OR consumer_group = 'another' OR event_id = (SELECT id FROM effects WHERE key = 'u1' AND seq = 1)`)
	if err != nil {
		t.Fatal(err)
	}
	opts := w.options()
	opts.Remember = 24 * time.Hour
	w.start(parkFirst(apply), opts)
	w.wait("the old one is forgotten", func() bool {
		return w.count(`SELECT count(*) FROM processed_messages WHERE consumer_group = 'test' AND state = 'done'`) == 1
	})
	if n := w.count(`SELECT count(*) FROM processed_messages WHERE consumer_group = 'another'`); n != 3 {
		t.Errorf("%d rows of another group left, want 3", n)
	}
	if n := w.count(`SELECT count(*) FROM processed_messages WHERE state = 'parked'`); n != 1 {
		t.Errorf("%d rows of parked messages left, want 1", n)
	}
	again := *old
	w.produce(&again)
	w.wait("it is a new message", func() bool { return len(w.effects("u1")) == 3 })
}

func TestAConsumerThatFindsTheOtherTableDoesNothing(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		options bool // AnyID in the options
		table   bool // and in the database
		says    string
	}{
		{"any id into a ring", true, false, "run MigrationsAnyID"},
		{"only UUIDv7 into a table for any", false, true, "set Options.AnyID"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			if tt.table {
				w.db = newDatabaseAnyID(t)
			}
			opts := w.options()
			opts.AnyID, opts.Log = tt.options, nil
			c := w.consumer(onlyPlaced(apply), opts)
			w.run(c)
			w.produce(record("u1", 1, ""))
			w.wait("it says what is wrong", func() bool {
				err := c.Ready()
				return err != nil && strings.Contains(err.Error(), tt.says)
			})
			if done, parked := len(w.effects("u1")), len(w.parked(inbox.Filter{})); done+parked != 0 || w.lag() != 1 {
				t.Errorf("%d effects, %d parked, lag %d, want nothing done and the message still there", done, parked, w.lag())
			}
		})
	}
}

func TestARingThatBecomesATableForAnyIDForgetsNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	handle := func(poison error) inbox.Handler {
		return func(ctx context.Context, tx pgx.Tx, m inbox.Message) error {
			if what(m) == "poison" && poison != nil {
				return poison
			}
			return apply(ctx, tx, m)
		}
	}
	stop := w.start(handle(inbox.Permanent(errors.New("no"))), w.options())
	w.produce(record("u1", 1, ""), record("u1", 2, "poison"), record("u1", 3, ""))
	w.wait("one done, two parked", func() bool { return len(w.parked(inbox.Filter{})) == 2 && w.lag() == 0 })
	stop()

	config, err := pgx.ParseConfig(w.db.URL)
	if err != nil {
		t.Fatal(err)
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	p, err := goose.NewProvider(goose.DialectPostgres, db, inbox.MigrationsAnyID(), goose.WithTableName("inbox_migrations"))
	if err != nil {
		t.Fatal(err)
	}
	if applied, err := p.Up(t.Context()); err != nil || len(applied) != 1 {
		t.Fatalf("Up() = %v, %v, want the one migration more", applied, err)
	}
	if _, err := w.adm.DeleteGroup(t.Context(), "test"); err != nil { // everything is delivered again
		t.Fatal(err)
	}
	opts := w.options()
	opts.AnyID = true
	w.start(handle(nil), opts)
	w.wait("no lag", func() bool { return w.lag() == 0 })
	w.wantEffects("u1", 1)
	if _, err := inbox.Replay(t.Context(), w.db.Pool, inbox.Filter{}, "alice"); err != nil {
		t.Fatal(err)
	}
	w.wait("the parked ones too", func() bool { return len(w.effects("u1")) == 3 })
	w.wantEffects("u1", 1, 2, 3)
	if _, err := p.DownTo(t.Context(), 0); err != nil {
		t.Errorf("down: %v", err)
	}
}
