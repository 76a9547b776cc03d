package inbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/inbox"
)

const placedV2 = "order.placed.v2"

// bodyV2 is what became of [body]: the number has another name, and there is a currency.
type bodyV2 struct {
	Number   int    `json:"number"`
	What     string `json:"what,omitempty"`
	Currency string `json:"currency"`
	User     string `json:"user,omitempty"`
}

func (b bodyV2) Key() string { return b.User }

func toV2(old body) (bodyV2, error) {
	if old.Seq < 0 {
		return bodyV2{}, errors.New("a negative seq has no number")
	}
	user, text, _ := strings.Cut(old.What, " ")
	return bodyV2{Number: old.Seq, What: text, Currency: "EUR", User: user}, nil
}

func applyV2(ctx context.Context, tx pgx.Tx, e inbox.Event[bodyV2]) error {
	if e.Data.Currency == "" {
		return inbox.Permanent(errors.New("no currency"))
	}
	_, err := tx.Exec(ctx, `INSERT INTO effects (key, id, seq) VALUES ($1, $2::text::uuid, $3)`, e.Message.Key, e.ID.String(), e.Data.Number)
	return err
}

func applyAllV2(ctx context.Context, tx pgx.Tx, events []inbox.Event[bodyV2]) error {
	for _, e := range events {
		if err := applyV2(ctx, tx, e); err != nil {
			return err
		}
	}
	return nil
}

// routesV2 are the ways to write a route that reads version 2, and version 1 as it.
var routesV2 = map[string]inbox.Route{
	"single": inbox.Typed(topic, placedV2, applyV2, inbox.Upcast(placed, toV2)),
	"batch":  inbox.TypedBatch(topic, placedV2, applyAllV2, inbox.Upcast(placed, toV2)),
}

func v1(key string, seq int) *kgo.Record { return record(key, seq, key+" x") }

func v2(key string, seq int) *kgo.Record {
	value := fmt.Sprintf(`{"number":%d,"currency":"JPY","user":%q}`, seq, key)
	return payload(set(record(key, seq, ""), "ce_type", placedV2), []byte(value))
}

func TestOneHandlerReadsBothVersionsInTheOrderOfTheirKey(t *testing.T) {
	t.Parallel()
	for name, route := range routesV2 {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.startRoutes([]inbox.Route{route}, w.options())
			var records []*kgo.Record
			for seq := range 50 {
				for _, key := range []string{"u1", "u2", "u3"} {
					version := v1
					if (seq/3)%2 == 1 {
						version = v2
					}
					records = append(records, version(key, seq+1))
				}
			}
			w.produce(records...)
			w.wait("all effects", func() bool { return w.count(`SELECT count(*) FROM effects`) >= len(records) && w.lag() == 0 })
			for _, key := range []string{"u1", "u2", "u3"} {
				w.wantEffects(key, seqs(50)...)
			}
		})
	}
}

func TestANewerVersionWaitsForTheConsumerThatKnowsIt(t *testing.T) {
	t.Parallel()
	for name, route := range routesV2 {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			opts := w.options()
			opts.RetryMax = time.Hour // only the deploy makes it due
			old := inbox.Typed(topic, placed, func(ctx context.Context, tx pgx.Tx, e inbox.Event[body]) error { return apply(ctx, tx, e.Message) })
			stop := w.startRoutes([]inbox.Route{old}, opts)
			w.produce(v1("u1", 1), v2("u1", 2), v1("u1", 3), v2("u1", 4), v1("u2", 1))
			w.wait("the newer ones held, the key behind them", func() bool {
				return len(w.parked(inbox.Filter{})) == 3 && len(w.effects("u2")) == 1 && w.lag() == 0
			})
			head := w.parked(inbox.Filter{State: inbox.StateHeld})
			if len(head) != 1 || head[0].Class != inbox.ClassUnsupportedVersion || head[0].Type != placedV2 {
				t.Fatalf("held = %+v, want the first of version 2 as %s", head, inbox.ClassUnsupportedVersion)
			}
			w.wantEffects("u1", 1)
			stop()
			w.startRoutes([]inbox.Route{route}, opts)
			w.produce(v2("u1", 5))
			w.wait("all effects", func() bool { return len(w.effects("u1")) == 5 })
			w.wantEffects("u1", seqs(5)...)
			if n := len(w.parked(inbox.Filter{})); n != 0 {
				t.Errorf("%d parked after the deploy, want 0: %s", n, w.describeParked())
			}
		})
	}
}

func TestWhatATypedRouteCannotReadIsDeadWithItsWords(t *testing.T) {
	t.Parallel()
	bad := []struct {
		name, class, says string
		record            func(key string) *kgo.Record
	}{
		{"a field of another type", inbox.ClassUndecodable, "decode order.placed.v2", func(key string) *kgo.Record { return payload(v2(key, 1), []byte(`{"number":"1"}`)) }},
		{"a field of another type in the older version", inbox.ClassUndecodable, "decode order.placed.v1", func(key string) *kgo.Record { return payload(v1(key, 1), []byte(`{"seq":"1"}`)) }},
		{"an array", inbox.ClassUndecodable, "decode order.placed.v2", func(key string) *kgo.Record { return payload(v2(key, 1), []byte(`[]`)) }},
		{"null", inbox.ClassUndecodable, "the payload is null", func(key string) *kgo.Record { return payload(v2(key, 1), []byte(" null\n")) }},
		{"the upcaster refuses it", inbox.ClassUndecodable, "upcast order.placed.v1: a negative seq has no number", func(key string) *kgo.Record { return v1(key, -1) }},
		{"another user's key", inbox.ClassKeyMismatch, "key is not the payload's", func(key string) *kgo.Record { return payload(v2(key, 1), v2("mallory", 1).Value) }},
		{"another user's key in the older version", inbox.ClassKeyMismatch, "key is not the payload's", func(key string) *kgo.Record { return payload(v1(key, 1), v1("mallory", 1).Value) }},
	}
	for name, route := range routesV2 {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.startRoutes([]inbox.Route{route}, w.options())
			good := 0
			for i, tt := range bad {
				key := fmt.Sprintf("k%d", i)
				w.produce(tt.record(key), v2(key, 2))
				for range 5 { // so that the bad ones are few
					w.produce(v2("good", good+1))
					good++
				}
			}
			w.wait("all fates", func() bool { return len(w.parked(inbox.Filter{})) == 2*len(bad) && w.lag() == 0 })
			w.wantEffects("good", seqs(good)...)
			for i, tt := range bad {
				dead := w.parked(inbox.Filter{Key: fmt.Sprintf("k%d", i), State: inbox.StateDead})
				if len(dead) != 1 || dead[0].Class != tt.class || !strings.Contains(dead[0].Error, tt.says) {
					t.Errorf("%s: dead = %+v, want one of class %s that says %q", tt.name, dead, tt.class, tt.says)
				}
			}
		})
	}
}

// What a newer writer adds within a major version changes nothing that a handler gets, upcast or not, and is there for a
// handler that looks for it.
func TestUnknownFieldsLoseNothing(t *testing.T) {
	t.Parallel()
	random := rand.New(rand.NewPCG(1, 2))
	for n := range 500 {
		old := map[string]any{"seq": random.IntN(1000), "what": fmt.Sprintf("u%d x", random.IntN(9))}
		now := map[string]any{"number": random.IntN(1000), "currency": "JPY", "user": "u1"}
		for typ, known := range map[string]map[string]any{placed: old, placedV2: now} {
			more := maps.Clone(known)
			for range 1 + random.IntN(4) {
				more[fmt.Sprintf("extra %d", random.IntN(100))] = extra(random, 3)
			}
			got, want := readV2(t, typ, more), readV2(t, typ, known)
			if diff := cmp.Diff(want.Data, got.Data); diff != "" {
				t.Fatalf("run %d, %s with %v: (-without +with)\n%s", n, typ, more, diff)
			}
			var kept map[string]any
			if err := json.Unmarshal(got.Payload, &kept); err != nil || len(kept) != len(more) {
				t.Fatalf("run %d: the event's payload is %s, %v, want all fields of %v", n, got.Payload, err, more)
			}
		}
	}
}

// extra is any JSON value, nested to depth.
func extra(random *rand.Rand, depth int) any {
	switch n := random.IntN(7); {
	case n == 0:
		return nil
	case n == 1:
		return random.Float64() * 1e300
	case n == 2:
		return random.IntN(2) == 0
	case n == 3 && depth > 0:
		return []any{extra(random, depth-1), extra(random, depth-1)}
	case n >= 4 && depth > 0: // fields of the reader's own names, one level down
		return map[string]any{"seq": extra(random, depth-1), "number": extra(random, depth-1), "user": "mallory"}
	}
	return "\u2028é\x00"
}

// readV2 returns the event that a handler of version 2 is given.
func readV2(t *testing.T, typ string, fields map[string]any) (got inbox.Event[bodyV2]) {
	t.Helper()
	value, err := json.Marshal(fields)
	if err != nil {
		t.Fatal(err)
	}
	route := inbox.Typed(topic, placedV2, func(_ context.Context, _ pgx.Tx, e inbox.Event[bodyV2]) error {
		got = e
		return nil
	}, inbox.Upcast(placed, toV2))
	user := "u1"
	if typ == placed {
		user, _, _ = strings.Cut(fields["what"].(string), " ")
	}
	if err := route.Handle(t.Context(), nil, inbox.Message{Type: typ, Key: user, Payload: value}); err != nil {
		t.Fatalf("%s: %v", value, err)
	}
	return got
}

func TestNewConsumerRefusesVersionsThatAreNoOlderOnes(t *testing.T) {
	t.Parallel()
	w := &world{T: t, db: newDatabase(t)}
	same := func(b body) (body, error) { return b, nil }
	handle := func(context.Context, pgx.Tx, inbox.Event[body]) error { return nil }
	for _, tt := range []struct {
		name   string
		routes []inbox.Route
		says   string
	}{
		{"a newer one", []inbox.Route{inbox.Typed(topic, placed, handle, inbox.Upcast(placedV2, same))}, `"order.placed.v2" is no older version`},
		{"by number, not by text", []inbox.Route{inbox.Typed(topic, "order.placed.v9", handle, inbox.Upcast("order.placed.v10", same))}, `"order.placed.v10" is no older version`},
		{"of another type", []inbox.Route{inbox.Typed(topic, placedV2, handle, inbox.Upcast("order.failed.v1", same))}, `"order.failed.v1" is no older version`},
		{"without a version", []inbox.Route{inbox.Typed(topic, "placed", handle, inbox.Upcast("order", same))}, `"order" is no older version`},
		{"itself", []inbox.Route{inbox.Typed(topic, placed, handle, inbox.Upcast(placed, same))}, "order.placed.v1: given twice"},
		{"beside a route of its own", []inbox.Route{inbox.Typed(topic, placed, handle), inbox.Typed(topic, placedV2, handle, inbox.Upcast(placed, same))}, "order.placed.v1: given twice"},
		{"no handler", []inbox.Route{inbox.Typed[body](topic, placed, nil)}, "set exactly one of"},
		{"no batch handler", []inbox.Route{inbox.TypedBatch[body](topic, placed, nil)}, "set exactly one of"},
	} {
		if _, err := inbox.NewConsumer(w.db.Pool, "test", tt.routes, inbox.Options{}); err == nil || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: NewConsumer() = %v, want it to say %q", tt.name, err, tt.says)
		}
	}
	if _, err := inbox.NewConsumer(w.db.Pool, "test", []inbox.Route{inbox.Typed(topic, "order.placed.v10", handle, inbox.Upcast("order.placed.v9", same))}, inbox.Options{}); err != nil {
		t.Errorf("version 10 after 9: NewConsumer() = %v, want nil", err)
	}
}
