package verify

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"os"

	"github.com/jackc/pgx/v5"
)

// Request is what a client finally knows of one order it asked for.
type Request struct {
	Key     string `json:"key"`
	Outcome string `json:"outcome"` // accepted, refused or unknown
	OrderID string `json:"order_id"`
}

// ReadJournal reads the outcomes, and the requests without one, from the journal of orderflow load.
func ReadJournal(path string) ([]Request, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	defer file.Close()
	outcomes := map[string]Request{}
	var order []string
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var e struct {
			Kind string `json:"kind"`
			Request
		}
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return nil, fmt.Errorf("read the journal: %w", err)
		}
		if e.Key == "" {
			continue
		}
		if _, seen := outcomes[e.Key]; !seen {
			order = append(order, e.Key)
			outcomes[e.Key] = Request{Key: e.Key, Outcome: "unknown"}
		}
		if e.Kind == "outcome" {
			outcomes[e.Key] = e.Request
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	requests := make([]Request, len(order))
	for i, key := range order {
		requests[i] = outcomes[key]
	}
	return requests, nil
}

// clients compares the orders with what clients were told: I1 and I2.
func clients(ctx context.Context, t Target) ([]Violation, error) {
	if t.Clients == nil {
		return nil, nil
	}
	rows, _ := t.DB.Query(ctx, `
		SELECT k.key, o.id::text
		FROM orders.idempotency_keys k
		JOIN orders.orders o ON k.location = '/v1/orders/' || o.id`)
	byKey := map[string]string{}
	var key, id string
	_, err := pgx.ForEachRow(rows, []any{&key, &id}, func() error {
		byKey[key] = id
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("read the idempotency keys: %w", err)
	}
	var lost, refused []string
	for _, r := range t.Clients {
		switch {
		case r.Outcome == "accepted" && byKey[r.Key] != r.OrderID:
			lost = append(lost, fmt.Sprintf("key %s was told %s, there is %q", r.Key, r.OrderID, byKey[r.Key]))
		case r.Outcome == "refused" && byKey[r.Key] != "":
			refused = append(refused, fmt.Sprintf("key %s has %s", r.Key, byKey[r.Key]))
		}
		delete(byKey, r.Key)
	}
	found := report("I1", "an order that a client was promised", lost)
	found = append(found, report("I1", "an order that a client was refused", refused)...)
	var unsent []string
	for key, id := range byKey {
		unsent = append(unsent, fmt.Sprintf("order %s under key %s", id, key))
	}
	return append(found, report("I2", "an order that nobody sent", unsent)...), nil
}
