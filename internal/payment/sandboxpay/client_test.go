package sandboxpay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/payment"
)

// provider starts a payment provider that does what handle says.
func provider(t testing.TB, handle http.HandlerFunc) *Client {
	t.Helper()
	server := httptest.NewServer(handle)
	t.Cleanup(server.Close)
	return openAt(t, server.URL)
}

func openAt(t testing.TB, base string) *Client {
	t.Helper()
	g, err := New(base)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.Close)
	return g
}

func TestClientRefusesAnswersThatAreNone(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a redirect was followed")
	}))
	t.Cleanup(elsewhere.Close)
	tests := []struct {
		name   string
		handle http.HandlerFunc
	}{
		{"one that is too long", func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"id":"pi_1","status":"succeeded","reference":"` + strings.Repeat("x", maxAnswer) + `"}`))
		}},
		{"one that is not JSON", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("<html>")) }},
		{"one that sends us elsewhere", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, elsewhere.URL, http.StatusTemporaryRedirect)
		}},
		{"one that breaks off", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = w.Write([]byte(`{"id":`))
		}},
		{"none at all", func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }},
		{"a failure", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := provider(t, tt.handle)
			_, err := g.Confirm(t.Context(), "key", "pi_1")
			if err == nil || payment.NeverSent(err) {
				t.Errorf("confirm = %v, want an error that leaves the outcome unknown", err)
			}
		})
	}
}

func TestClientGivesUpWhenTheCallersTimeIsOver(t *testing.T) {
	t.Parallel()
	ctx, timeIsOver := context.WithCancel(t.Context())
	defer timeIsOver()
	g := provider(t, func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body) // only behind it does the server see that the client goes away
		timeIsOver()
		<-r.Context().Done() // silent from the first byte on
	})
	_, err := g.Confirm(ctx, "key", "pi_1")
	if !errors.Is(err, context.Canceled) || payment.NeverSent(err) {
		t.Errorf("confirm at a silent provider = %v, want an end that leaves the outcome unknown", err)
	}
}

func TestClientSendsEachRequestOnce(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	g := provider(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet { // leaves a connection behind that the next request uses again
			_, _ = w.Write([]byte(`{}`))
			return
		}
		requests.Add(1)
		panic(http.ErrAbortHandler)
	})
	if _, _, err := g.ByID(t.Context(), "pi_1"); err != nil {
		t.Fatal(err)
	}
	if _, err := g.Confirm(t.Context(), "key", "pi_1"); err == nil {
		t.Error("confirm whose answer was lost = nil, want an error")
	}
	if got := requests.Load(); got != 1 {
		t.Errorf("confirm reached the provider %d times, want once: whether to send again is the saga's decision", got)
	}
}

func TestNeverSentIsSaidOnlyWhenItIsCertain(t *testing.T) {
	t.Parallel()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := ln.Addr().String()
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	g := openAt(t, "http://"+nobody)
	if _, err := g.Confirm(t.Context(), "key", "pi_1"); !payment.NeverSent(err) {
		t.Errorf("payment.NeverSent(%v) = false, want true: nobody listens", err)
	}
	lost := provider(t, func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })
	if _, err := lost.Confirm(t.Context(), "key", "pi_1"); payment.NeverSent(err) {
		t.Errorf("payment.NeverSent(%v) = true, want false: the request arrived", err)
	}
}

func TestACancelThatIsRefusedMeansChargedOnlyWhenTheIntentSaysSo(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name   string
		cancel string // the body of the 409
		lookUp string // the intent, "": the provider does not know it
		ok     bool
	}{
		{"charged", `{"code":"already_succeeded"}`, `{"id":"pi_1","status":"succeeded"}`, true},
		{"charged, by a provider with other words", `{"code":"invalid_state"}`, `{"id":"pi_1","status":"succeeded"}`, true},
		{"another request works on it", `{"code":"locked"}`, `{"id":"pi_1","status":"processing"}`, false},
		{"the look-up is behind", `{"code":"already_succeeded"}`, `{"id":"pi_1","status":"requires_confirmation"}`, false},
		{"a proxy's page", `<html>`, `{"id":"pi_1","status":"requires_confirmation"}`, false},
		{"the intent is unknown", `{"code":"already_succeeded"}`, "", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			g := provider(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case r.Method == http.MethodPost:
					w.WriteHeader(http.StatusConflict)
					_, _ = w.Write([]byte(tt.cancel))
				case tt.lookUp == "":
					w.WriteHeader(http.StatusNotFound)
				default:
					_, _ = w.Write([]byte(tt.lookUp))
				}
			})
			cancelled, err := g.Cancel(t.Context(), "pi_1")
			if cancelled || (err == nil) != tt.ok {
				t.Errorf("cancel = %v, %v, want false and an error: %v", cancelled, err, !tt.ok)
			}
		})
	}
}

func TestAProviderThatFailsEveryoneIsLeftAlone(t *testing.T) {
	t.Parallel()
	var requests atomic.Int32
	g := provider(t, func(w http.ResponseWriter, _ *http.Request) {
		requests.Add(1)
		w.WriteHeader(http.StatusBadGateway)
	})
	var last error
	for range 200 {
		_, last = g.Confirm(t.Context(), "key", "pi_1")
	}
	if !payment.NeverSent(last) || requests.Load() >= 200 {
		t.Errorf("after %d of 200 requests confirm = %v, want the circuit to open", requests.Load(), last)
	}
}

func TestNewRefusesAnythingButAnHTTPAddress(t *testing.T) {
	t.Parallel()
	for _, base := range []string{"", "localhost:8090", "ftp://localhost", "http://", "http://user:secret@", "://"} {
		if _, err := New(base); err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("New(%q) = %v, want an error without the password", base, err)
		}
	}
}

func TestAWrongProviderURLKeepsItsPasswordToItself(t *testing.T) {
	t.Parallel()
	for _, base := range []string{"http://shop:hunter2@pay\x7fments", "http://shop:hunter2/x@payments", "shop:hunter2@payments", "ftp://shop:hunter2@payments"} {
		if _, err := New(base); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("New(%q) = %v, want an error without the password", base, err)
		}
	}
}
