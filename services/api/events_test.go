package api_test

import (
	"bufio"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/orderflow-dev/orderflow/internal/order"
)

// follow opens the stream of an order and returns a function that reads its next event, "" at the end.
func follow(t *testing.T, s *server, id, last string) (next func() string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/v1/orders/"+id+"/events", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+adaKey)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = resp.Body.Close() })
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "text/event-stream" {
		t.Fatalf("GET events = %d, %s", resp.StatusCode, resp.Header.Get("Content-Type"))
	}
	lines := bufio.NewScanner(resp.Body)
	return func() string {
		event := ""
		for lines.Scan() {
			id, isID := strings.CutPrefix(lines.Text(), "id: ")
			_, status, isData := strings.Cut(lines.Text(), `"status":"`)
			switch {
			case isID:
				event = id
			case isData:
				status, _, _ = strings.Cut(status, `"`)
				event += " " + status
			case lines.Text() == "" && event != "":
				return event
			}
		}
		return ""
	}
}

func TestAStreamShowsEveryChangeUntilTheLast(t *testing.T) {
	t.Parallel()
	db := newDB(t)
	s := start(t, db, nil)
	id := s.place(t, "ada")
	next := follow(t, s, id, "")
	got := []string{next()}
	setStatus(t, db, id, order.Pending, order.Completed)
	got = append(got, next())
	setStatus(t, db, id, order.Completed, order.Shipped)
	got = append(got, next(), next())
	if diff := cmp.Diff([]string{"1 pending", "2 completed", "3 shipped", ""}, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	again := follow(t, s, id, "2")
	if diff := cmp.Diff([]string{"3 shipped", ""}, []string{again(), again()}); diff != "" {
		t.Errorf("events after a reconnect (-want +got):\n%s", diff)
	}
	if r := s.do(t, call{method: "GET", path: "/v1/orders/" + id + "/events", key: benKey}); r.status != 404 {
		t.Errorf("the stream of a foreign order = %d %s, want 404", r.status, r.body)
	}
}

func TestTheEndOfTheApiEndsStreams(t *testing.T) {
	t.Parallel()
	s := start(t, newDB(t), nil)
	next := follow(t, s, s.place(t, "ada"), "")
	if got := next(); got != "1 pending" {
		t.Errorf("first event = %q", got)
	}
	s.stop()
	if got := next(); got != "" {
		t.Errorf("event at the end = %q, want the stream to end", got)
	}
}
