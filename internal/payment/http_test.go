package payment

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// get asks a provider that does what handle says. The client reads at most maxAnswer bytes.
func get(t *testing.T, maxAnswer int64, handle http.HandlerFunc) ([]byte, error) {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	client := NewHTTPClient(maxAnswer)
	t.Cleanup(client.CloseIdleConnections)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	return io.ReadAll(resp.Body)
}

func TestAnAnswerIsReadUpToItsBound(t *testing.T) {
	t.Parallel()
	const bound = 1000
	for _, tt := range []struct {
		name   string
		header int // bytes in the answer's header
		body   int
		ok     bool
	}{
		{"none", 0, 0, true},
		{"as long as it may be", 0, bound, true},
		{"one byte too long", 0, bound + 1, false},
		{"a header that is too long", 2 * maxHeader, 1, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			got, err := get(t, bound, func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-Long", strings.Repeat("x", tt.header))
				_, _ = io.WriteString(w, strings.Repeat("x", tt.body))
			})
			if (err == nil) != tt.ok || tt.ok && len(got) != tt.body {
				t.Errorf("%d bytes, %v; want %d and no error: %v", len(got), err, tt.body, tt.ok)
			}
		})
	}
}

// An answer that does not end takes no memory: what is beyond the bound is not read.
func TestAnAnswerThatDoesNotEndIsLeft(t *testing.T) {
	t.Parallel()
	// More than the sockets between the two can hold.
	const all = 64 << 20
	sent := make(chan int, 1)
	_, err := get(t, 1000, func(w http.ResponseWriter, _ *http.Request) {
		n, page := 0, make([]byte, 64<<10)
		for n < all {
			m, err := w.Write(page)
			if n += m; err != nil {
				break
			}
		}
		sent <- n
	})
	if n := <-sent; err == nil || n >= all {
		t.Errorf("the client took %d bytes and said %v; want an error, and the rest not read", n, err)
	}
}
