package sandbox

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// received is one delivery, as the receiver saw it.
type received struct {
	webhook
	raw, signature string
}

// receiver takes webhooks.
type receiver struct {
	url string

	mu  sync.Mutex
	got []received
}

// newReceiver answers each delivery with what answer says: it is told the delivery and how many of its event came before.
func newReceiver(t *testing.T, answer func(d received, before int) int) *receiver {
	t.Helper()
	r := &receiver{}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		raw, err := io.ReadAll(req.Body)
		d := received{raw: string(raw), signature: req.Header.Get("Webhook-Signature")}
		if err != nil || json.Unmarshal(raw, &d.webhook) != nil || req.Header.Get("Content-Type") != "application/json" {
			t.Errorf("webhook: got %q as %q, %v, want JSON", raw, req.Header.Get("Content-Type"), err)
		}
		r.mu.Lock()
		before := 0
		for _, other := range r.got {
			if other.ID == d.ID {
				before++
			}
		}
		r.got = append(r.got, d)
		r.mu.Unlock()
		w.WriteHeader(answer(d, before))
	}))
	t.Cleanup(server.Close)
	r.url = server.URL
	return r
}

func takes(received, int) int { return http.StatusNoContent }

// about returns the deliveries about an order, in the order they came.
func (r *receiver) about(reference string) []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	var found []received
	for _, d := range r.got {
		if d.Data.Object.Reference == reference {
			found = append(found, d)
		}
	}
	return found
}

func (r *receiver) await(t *testing.T, reference string, n int) []received {
	t.Helper()
	waitFor(t, "webhooks about "+reference, func() bool { return len(r.about(reference)) >= n })
	return r.about(reference)
}

func (r *receiver) config() Config {
	return Config{WebhookURL: r.url, WebhookSecret: hookSecret, WebhookRetry: time.Millisecond}
}

// confirm confirms an intent and fails the test unless the answer has the status.
func (b *box) confirm(t *testing.T, id string, status int) {
	t.Helper()
	if r := b.post(t, "/v1/payment_intents/"+id+"/confirm", "confirm-"+id, ""); r.status != status {
		t.Fatalf("confirm: got %d %s, want %d", r.status, r.body, status)
	}
}

func TestAWebhookTellsOfEachThingThatHappened(t *testing.T) {
	t.Parallel()
	hooks := newReceiver(t, takes)
	b, _ := start(t, hooks.config())
	ids := map[string]string{}
	for _, method := range []string{"pm_ok", "pm_declined", "canceled"} {
		ids[method] = b.create(t, method, method, method)
	}
	b.confirm(t, ids["pm_ok"], http.StatusOK)
	b.confirm(t, ids["pm_declined"], http.StatusPaymentRequired)
	b.post(t, "/v1/payment_intents/"+ids["canceled"]+"/cancel", "", "")
	for _, tc := range []struct{ reference, want string }{
		{"pm_ok", "payment_intent.succeeded"}, {"pm_declined", "payment_intent.payment_failed"}, {"canceled", "payment_intent.canceled"},
	} {
		d := hooks.await(t, tc.reference, 1)[0]
		shown := strings.TrimSpace(b.get(t, "/v1/payment_intents/"+ids[tc.reference]).body)
		if d.Type != tc.want || !strings.Contains(d.raw, `"data":{"object":`+shown+`}`) || !strings.HasPrefix(d.ID, "evt_") {
			t.Errorf("webhook about %s: got %s, want a %s of %s", tc.reference, d.raw, tc.want, shown)
		}
	}
	b.post(t, "/v1/refunds", "r", `{"payment_intent":"`+ids["pm_ok"]+`"}`)
	if d := hooks.await(t, "pm_ok", 2)[1]; d.Type != "refund.created" || d.Data.Object.Refund == "" {
		t.Errorf("webhook: got %s, want refund.created with the refund's id", d.raw)
	}
}

func TestAWebhookIsSignedOverItsTimeAndItsBytes(t *testing.T) {
	t.Parallel()
	// From: printf '%s' '1767323045.{"id":"evt_1"}' | openssl dgst -sha256 -hmac whsec_test
	want := "t=1767323045,v1=f121f4aa13380581f2a95e878fd1621b234c7b263c1fecff2bc3a8ef778d5957"
	if got := sign(hookSecret, time.Unix(1767323045, 0), []byte(`{"id":"evt_1"}`)); got != want {
		t.Errorf("sign = %s, want %s", got, want)
	}
	hooks := newReceiver(t, takes)
	b, _ := start(t, hooks.config())
	b.confirm(t, b.create(t, "k", "pm_ok", "order"), http.StatusOK)
	d := hooks.await(t, "order", 1)[0]
	at, _, _ := strings.Cut(strings.TrimPrefix(d.signature, "t="), ",")
	mac := hmac.New(sha256.New, []byte(hookSecret))
	_, _ = io.WriteString(mac, at+"."+d.raw)
	if want := "t=" + at + ",v1=" + hex.EncodeToString(mac.Sum(nil)); d.signature != want {
		t.Errorf("Webhook-Signature: got %s, want %s", d.signature, want)
	}
}

// One that is never taken delays no other.
func TestAWebhookIsSentUntilItIsTaken(t *testing.T) {
	t.Parallel()
	hooks := newReceiver(t, func(d received, before int) int {
		switch d.Data.Object.Reference {
		case "hopeless":
			return http.StatusBadRequest
		case "moved":
			return []int{http.StatusFound, http.StatusOK}[min(before, 1)]
		}
		return []int{http.StatusInternalServerError, http.StatusNotFound, http.StatusAccepted}[min(before, 2)]
	})
	b, _ := start(t, hooks.config())
	for _, reference := range []string{"hopeless", "moved", "late"} {
		b.confirm(t, b.create(t, reference, "pm_ok", reference), http.StatusOK)
	}
	sent := hooks.await(t, "late", 3)
	hooks.await(t, "moved", 2)
	for _, d := range sent {
		if d.raw != sent[0].raw {
			t.Errorf("webhook again: got %s, want the same bytes as %s", d.raw, sent[0].raw)
		}
	}
	hooks.await(t, "hopeless", 5)
	if n, m := len(hooks.about("late")), len(hooks.about("moved")); n != 3 || m != 2 {
		t.Errorf("webhooks that were taken: sent %d and %d times, want 3 and 2", n, m)
	}
}

func TestNoAnswerWaitsForAWebhook(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	hooks := newReceiver(t, func(received, int) int { <-release; return http.StatusOK })
	t.Cleanup(func() { close(release) }) // before the receiver is closed
	b, _ := start(t, hooks.config())
	for i := range 3 * webhookParallel {
		b.confirm(t, b.create(t, strconv.Itoa(i), "pm_ok", "order"), http.StatusOK)
	}
	hooks.await(t, "order", 1)
}

func TestHeldWebhooksComeWhenTheFaultEnds(t *testing.T) {
	t.Parallel()
	hooks := newReceiver(t, takes)
	b, _ := start(t, hooks.config())
	b.post(t, "/v1/faults", "", `{"webhooks":"hold"}`)
	b.confirm(t, b.create(t, "held", "pm_ok", "held"), http.StatusOK)
	// One that is owed later shows that the first one had its chance.
	other := newReceiver(t, takes)
	c, _ := start(t, other.config())
	c.confirm(t, c.create(t, "free", "pm_ok", "free"), http.StatusOK)
	other.await(t, "free", 1)
	if n := len(hooks.about("held")); n != 0 {
		t.Errorf("%d webhooks came while they are held, want none", n)
	}
	b.post(t, "/v1/faults", "", `{}`)
	hooks.await(t, "held", 1)
}

// The receiver knows of the charge before the caller does, who may never know by itself.
func TestAWebhookMayComeBeforeTheAnswer(t *testing.T) {
	t.Parallel()
	var answered atomic.Bool
	release := make(chan struct{})
	hooks := newReceiver(t, func(received, int) int {
		<-release
		if answered.Load() {
			t.Error("the confirm was answered before its webhook was taken")
		}
		return http.StatusOK
	})
	t.Cleanup(func() { close(release) })
	b, _ := start(t, hooks.config())
	for _, tc := range []struct {
		method string
		status int // 0: no answer
	}{{"pm_webhook_first", http.StatusOK}, {"pm_webhook_only", 0}} {
		id := b.create(t, tc.method, tc.method, tc.method)
		answered.Store(false)
		done := make(chan reply, 1)
		go func() {
			r, err := b.try(context.Background(), http.MethodPost, "/v1/payment_intents/"+id+"/confirm", tc.method, "")
			answered.Store(true)
			if (err != nil) != (tc.status == 0) {
				t.Errorf("confirm of %s: got %d, %v, want %d", tc.method, r.status, err, tc.status)
			}
			done <- r
		}()
		hooks.await(t, tc.method, 1)
		release <- struct{}{}
		if r := <-done; r.status != tc.status {
			t.Errorf("confirm of %s: got %d, want %d", tc.method, r.status, tc.status)
		}
		if n := len(hooks.about(tc.method)); n != 1 {
			t.Errorf("webhooks about %s: sent %d times, want once", tc.method, n)
		}
	}
}

func TestARepeatedWebhookIsSentThreeTimesUnderOneID(t *testing.T) {
	t.Parallel()
	hooks := newReceiver(t, takes)
	cfg := hooks.config()
	cfg.Slow = 10 * time.Millisecond
	b, _ := start(t, cfg)
	b.confirm(t, b.create(t, "k", "pm_webhook_repeated", "order"), http.StatusOK)
	sent := hooks.await(t, "order", 3)
	if sent[1].raw != sent[0].raw || sent[2].raw != sent[0].raw {
		t.Errorf("webhooks: got %s, %s and %s, want the same three times", sent[0].raw, sent[1].raw, sent[2].raw)
	}
	b.confirm(t, b.create(t, "k2", "pm_webhook_repeated", "other"), http.StatusOK)
	hooks.await(t, "other", 3)
	if n := len(hooks.about("order")); n != 3 {
		t.Errorf("webhooks: sent %d times, want three", n)
	}
}

func TestWebhooksOutliveARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, stop := start(t, Config{DataDir: dir})
	b.confirm(t, b.create(t, "untold", "pm_ok", "untold"), http.StatusOK) // nobody is to be told of this one
	stop()

	refuses := newReceiver(t, func(d received, _ int) int {
		if d.Data.Object.Reference == "taken" {
			return http.StatusOK
		}
		return http.StatusServiceUnavailable
	})
	cfg := refuses.config()
	cfg.DataDir = dir
	b, stop = start(t, cfg)
	for _, reference := range []string{"taken", "owed"} {
		b.confirm(t, b.create(t, reference, "pm_ok", reference), http.StatusOK)
	}
	refuses.await(t, "taken", 1)
	before := refuses.await(t, "owed", 2)[0]
	stop()

	hooks := newReceiver(t, takes)
	cfg.WebhookURL = hooks.url
	b, _ = start(t, cfg)
	if d := hooks.await(t, "owed", 1)[0]; d.raw != before.raw {
		t.Errorf("webhook after a restart: got %s, want %s", d.raw, before.raw)
	}
	b.confirm(t, b.create(t, "new", "pm_ok", "new"), http.StatusOK)
	hooks.await(t, "new", 1) // what was owed before went out before
	if n, m := len(hooks.about("taken")), len(hooks.about("untold")); n+m != 0 {
		t.Errorf("after a restart: told %d times what was taken and %d times what was nobody's business, want neither", n, m)
	}
}

// A real kill -9 while no event is taken: each charge that was answered for is told of after it.
func TestAKilledSandboxOwesItsWebhooks(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	refuses := newReceiver(t, func(received, int) int { return http.StatusServiceUnavailable })
	b, kill := spawn(t, dir, refuses.url)
	references := []string{"a", "b", "c", "d"}
	for _, reference := range references {
		b.confirm(t, b.create(t, reference, "pm_ok", reference), http.StatusOK)
	}
	before := refuses.await(t, "a", 1)[0]
	kill()

	hooks := newReceiver(t, takes)
	cfg := hooks.config()
	cfg.DataDir = dir
	start(t, cfg)
	for _, reference := range references {
		if d := hooks.await(t, reference, 1)[0]; reference == "a" && d.raw != before.raw {
			t.Errorf("webhook after a kill: got %s, want %s", d.raw, before.raw)
		}
	}
}

func TestASandboxThatCannotSendWebhooksDoesNotStart(t *testing.T) {
	t.Parallel()
	for _, cfg := range []Config{
		{WebhookURL: "http://127.0.0.1:1/hooks"}, // no secret
		{WebhookURL: "127.0.0.1:1/hooks", WebhookSecret: hookSecret},
		{WebhookURL: "ftp://127.0.0.1/hooks", WebhookSecret: hookSecret},
	} {
		cfg.DataDir = t.TempDir()
		cfg.Listener, cfg.SMTPListener = listenLocal(t), listenLocal(t)
		if err := Run(t.Context(), slog.New(slog.DiscardHandler), cfg); err == nil {
			t.Errorf("Run with webhooks to %q = nil, want an error", cfg.WebhookURL)
		}
	}
}
