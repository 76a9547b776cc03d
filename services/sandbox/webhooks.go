package sandbox

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	webhookTimeout  = 10 * time.Second // of one delivery
	webhookMaxPause = time.Minute      // between two deliveries of one event
	webhookParallel = 8                // deliveries at once
)

// eventType is the type of the webhook that tells of an entry, or "" where none does.
func eventType(kind string) string {
	switch kind {
	case kindCharge:
		return "payment_intent.succeeded"
	case kindDecline:
		return "payment_intent.payment_failed"
	case kindCancel:
		return "payment_intent.canceled"
	case kindRefund:
		return "refund.created"
	}
	return ""
}

// webhook is the body of a delivery.
type webhook struct {
	ID      string `json:"id"`
	Type    string `json:"type"`
	Created int64  `json:"created"` // Unix seconds
	Data    struct {
		Object intent `json:"object"`
	} `json:"data"`
}

// notice is an event that the receiver has not taken yet, or not as often as it is to be sent.
type notice struct {
	id     string
	intent string
	body   []byte
	left   int           // deliveries that must still succeed
	told   chan struct{} // closed when none is left
}

// delivery is one of a notice's.
type delivery struct {
	*notice
	attempt int
	due     time.Time
	busy    bool
}

// webhooks tells a receiver what has become of payments. Which events it owes is a fold of the journal: an entry with an
// event's id owes it, an entry of kind delivered settles it. So an event is delivered at least once, under one id, over
// every restart.
type webhooks struct {
	url, secret string
	// The pauses before an event is sent again: one that was not taken, and one that was and is to be repeated.
	retry, again time.Duration
	client       *http.Client
	log          *slog.Logger
	journal      *journal
	kick         chan struct{}

	mu   sync.Mutex
	owed []*delivery
	held bool // by a fault
}

func newWebhooks(cfg Config, log *slog.Logger) (*webhooks, error) {
	h := &webhooks{
		url: cfg.WebhookURL, secret: cfg.WebhookSecret, retry: cfg.WebhookRetry, again: cfg.Slow, log: log,
		kick: make(chan struct{}, 1),
		client: &http.Client{
			Transport: &http.Transport{MaxIdleConnsPerHost: webhookParallel, IdleConnTimeout: 30 * time.Second},
			Timeout:   webhookTimeout,
			// A receiver that has moved has not taken the event.
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
	}
	if h.url == "" {
		return h, nil
	}
	u, err := url.Parse(h.url)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("the webhook URL must look like https://shop.example/v1/webhooks/payments")
	}
	if h.secret == "" {
		return nil, errors.New("a webhook URL needs a webhook secret to sign with")
	}
	return h, nil
}

// on reports whether anybody is told anything.
func (h *webhooks) on() bool { return h.url != "" }

// owe adds what the journal's entry e owes. in is the intent as e left it.
func (h *webhooks) owe(e entry, in intent) error {
	w := webhook{ID: e.Private.Event, Type: eventType(e.Kind), Created: e.At.Unix()}
	w.Data.Object = in
	body, err := json.Marshal(w)
	if err != nil {
		return fmt.Errorf("encode webhook %s: %w", w.ID, err)
	}
	n := &notice{id: w.ID, intent: in.ID, body: body, left: 1, told: make(chan struct{})}
	if in.PaymentMethod == methodWebhookRepeated {
		n.left = 3
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	for i := range n.left {
		d := &delivery{notice: n}
		if i == 2 {
			d.due = time.Now().Add(h.again)
		}
		h.owed = append(h.owed, d)
	}
	h.wake()
	return nil
}

// told returns a channel that is closed when the receiver has taken an event.
func (h *webhooks) told(id string) <-chan struct{} {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, d := range h.owed {
		if d.id == id {
			return d.told
		}
	}
	taken := make(chan struct{})
	close(taken)
	return taken
}

// forget drops the deliveries of an event that the receiver has taken.
func (h *webhooks) forget(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.owed = slices.DeleteFunc(h.owed, func(d *delivery) bool { return d.id == id })
}

// hold keeps every event, or lets them go.
func (h *webhooks) hold(held bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.held = held
	h.wake()
}

func (h *webhooks) wake() {
	select {
	case h.kick <- struct{}{}:
	default:
	}
}

// run delivers what is owed until ctx ends, several deliveries at a time: one that is refused for ever delays no other.
func (h *webhooks) run(ctx context.Context) error {
	if !h.on() {
		return nil
	}
	defer h.client.CloseIdleConnections()
	var group errgroup.Group
	group.SetLimit(webhookParallel)
	for ctx.Err() == nil {
		next, wait := h.next(time.Now())
		if next != nil {
			group.Go(func() error {
				h.deliver(ctx, next)
				h.wake()
				return nil
			})
			continue
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
		case <-h.kick:
		case <-timer.C:
		}
		timer.Stop()
	}
	return group.Wait()
}

// next takes the delivery that has been due for longest, or says how long none will be.
func (h *webhooks) next(now time.Time) (*delivery, time.Duration) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var first *delivery
	for _, d := range h.owed {
		if !d.busy && (first == nil || d.due.Before(first.due)) {
			first = d
		}
	}
	switch {
	case first == nil || h.held:
		return nil, webhookMaxPause
	case first.due.After(now):
		return nil, first.due.Sub(now)
	}
	first.busy = true
	return first, 0
}

// deliver makes one delivery, and puts it off if the receiver does not take it.
func (h *webhooks) deliver(ctx context.Context, d *delivery) {
	err := h.journal.commit() // what is told of must not be forgotten after it
	if err == nil {
		err = h.post(ctx, d.body)
	}
	if err == nil {
		err = h.delivered(d)
	}
	if err == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	pause := min(h.retry<<min(d.attempt, 20), webhookMaxPause)
	d.attempt++
	d.busy, d.due = false, time.Now().Add(pause)
	if ctx.Err() == nil && d.attempt == 1 {
		h.log.WarnContext(ctx, "webhook not delivered", slog.String("event", d.id), slog.Duration("again_in", pause), slog.Any("error", err))
	}
}

func (h *webhooks) post(ctx context.Context, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("webhook request: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Webhook-Signature", sign(h.secret, time.Now(), body))
	resp, err := h.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	_, _ = io.CopyN(io.Discard, resp.Body, maxBody) // so that the connection can be used again
	if resp.StatusCode < 200 || resp.StatusCode > 299 {
		return fmt.Errorf("the receiver answered %d", resp.StatusCode)
	}
	return nil
}

// delivered notes a delivery that was taken, and with the last one that nothing of the event is owed. That is not synced:
// a crash that forgets it has the event delivered once more.
func (h *webhooks) delivered(d *delivery) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if d.left == 1 {
		e := &entry{Kind: kindDelivered, PaymentIntent: d.intent, Private: &private{Event: d.id}}
		if _, err := h.journal.append(e); err != nil {
			return err
		}
		close(d.told)
	}
	d.left--
	h.owed = slices.DeleteFunc(h.owed, func(other *delivery) bool { return other == d })
	return nil
}

// sign returns a Webhook-Signature, in the scheme of https://docs.stripe.com/webhooks#verify-manually.
func sign(secret string, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	mac := hmac.New(sha256.New, []byte(secret))
	_, _ = io.WriteString(mac, t+".")
	_, _ = mac.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(mac.Sum(nil))
}
