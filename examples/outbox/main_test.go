package main

import (
	"context"
	"fmt"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/await"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

// What the example commits arrives in Kafka, and it can be run again on what it has made.
func TestGreetingArrives(t *testing.T) {
	db, broker := pgtest.NewEmpty(t), kafkatest.New(t)
	for n := 1; n <= 2; n++ {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan error, 1)
		go func() {
			ended <- run(ctx, db.URL, broker.Addrs[0])
			cancel()
		}()
		greeted := func(ctx context.Context) error {
			var rows int
			err := db.Pool.QueryRow(ctx, `SELECT count(*) FROM greetings`).Scan(&rows)
			if err == nil && rows != n {
				err = fmt.Errorf("%d greetings, want %d", rows, n)
			}
			return err
		}
		if err := await.New(nil, 0).For(ctx, "the row", greeted, func(error) bool { return true }); err != nil {
			cancel()
			t.Fatalf("run %d wrote no row: %v; it ended with %v", n, err, <-ended)
		}
		for _, r := range broker.Read(t, n, "greetings") {
			if string(r.Key) != "Ada" || string(r.Value) != `"hi"` {
				t.Errorf("run %d published %s: %s, want Ada: \"hi\"", n, r.Key, r.Value)
			}
		}
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run %d = %v, want nil once it is stopped", n, err)
		}
	}
}
