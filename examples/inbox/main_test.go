package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/google/uuid"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// greeting is a record as the example of package outbox publishes it.
func greeting() *kgo.Record {
	id := uuid.Must(uuid.NewV7())
	return &kgo.Record{Topic: "greetings", Key: []byte("Ada"), Value: []byte(`"hi"`), Headers: []kgo.RecordHeader{
		{Key: "ce_id", Value: []byte(id.String())}, {Key: "ce_type", Value: []byte("greeting.said.v1")},
	}}
}

// Every greeting counts once, though the first arrives in every run, and the example can be run again on what it has made.
func TestGreetingsCountOnce(t *testing.T) {
	db, broker := pgtest.NewEmpty(t), kafkatest.New(t, "greetings")
	first := greeting()
	for n := 1; n <= 2; n++ {
		broker.Produce(t, first, greeting())
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			ended <- run(ctx, db.URL, broker.Addrs[0])
			cancel()
		}()
		var greetings int
		handled := func(ctx context.Context) error {
			var messages int
			err := db.Pool.QueryRow(ctx, `SELECT greetings, (SELECT count(*) FROM processed_messages) FROM counts`).Scan(&greetings, &messages)
			if err == nil && messages != n+1 {
				err = fmt.Errorf("%d messages, want %d", messages, n+1)
			}
			return err
		}
		if err := await.New(nil, 0).For(ctx, "the last message, which is behind the one that came before", handled, func(error) bool { return true }); err != nil {
			cancel()
			t.Fatalf("run %d: %v; it ended with %v", n, err, <-ended)
		}
		if greetings != n+1 {
			t.Errorf("run %d: %d greetings counted, want %d", n, greetings, n+1)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run %d = %v, want nil once it is stopped", n, err)
		}
	}
}
