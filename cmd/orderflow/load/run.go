package load

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"sync"
	"time"

	"github.com/google/uuid"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
)

// Options says what to send. The zero value of the fields below Duration is right.
type Options struct {
	// Rate is the number of orders per second.
	Rate float64
	// Duration is how long orders arrive. Zero: until Orders have.
	Duration time.Duration
	// Orders ends the run after that many. Zero: until Duration is over. One of the two is required.
	Orders int
	// AttemptTimeout bounds one request. Default 10 s.
	AttemptTimeout time.Duration
	// RetryFor is how long an order with an unknown outcome is sent again. It has to outlast a restart of the api.
	// Default 60 s.
	RetryFor time.Duration
	// Grace is how long requests that are under way when ctx ends may still take. Default 5 s.
	Grace time.Duration
	// MaxInFlight bounds the orders that are under way. When it is reached arrivals wait, which the summary counts.
	// Default 2000.
	MaxInFlight int
	// Journal records what was sent and answered. Nil: nothing does.
	Journal *Journal
	// Progress is called a few times per second.
	Progress func(Progress)
}

// Progress is how far a run is.
type Progress struct {
	Elapsed  time.Duration
	Sent     int
	Accepted int
	Refused  int
	Unknown  int
	InFlight int
}

func (o Options) withDefaults() (Options, error) {
	if o.Rate <= 0 || o.Rate > 100_000 {
		return o, fmt.Errorf("rate must be between 0 and 100,000 orders per second, not %g", o.Rate)
	}
	if o.Duration <= 0 && o.Orders <= 0 {
		return o, errors.New("a duration or a number of orders is required")
	}
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&o.AttemptTimeout, 10 * time.Second}, {&o.RetryFor, time.Minute}, {&o.Grace, 5 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if o.MaxInFlight == 0 {
		o.MaxInFlight = 2000
	}
	return o, nil
}

// Run places orders from next until the options say it is enough or ctx ends, waits for those under way, and returns what
// became of all of them. When ctx ends no order is sent for the first time any more; those under way get one grace
// period. An error is a journal that could not be written: without it the run is void.
func Run(ctx context.Context, client *apiclient.Client, next func() apiclient.NewOrder, opts Options) (Summary, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return Summary{}, err
	}
	r := &run{client: client, opts: opts, id: uuid.NewString(), began: time.Now(), slots: make(chan struct{}, opts.MaxInFlight)}
	if err := opts.Journal.Append(Entry{Kind: KindRun, At: r.began.UTC(), Run: r.id, API: client.Base()}); err != nil {
		return Summary{}, err
	}
	// Requests outlive ctx by the grace period, and a broken journal ends them at once.
	requests, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	r.abort = cancel
	defer context.AfterFunc(ctx, func() { time.AfterFunc(opts.Grace, func() { cancel(nil) }) })()

	stopTicker := r.tick()
	r.arrivals(ctx, requests, next)
	r.underWay.Wait()
	stopTicker()
	if err := context.Cause(requests); err != nil && !errors.Is(err, context.Canceled) {
		return r.summary(), err
	}
	s := r.summary()
	return s, opts.Journal.Append(Entry{Kind: KindEnd, At: time.Now().UTC(), Run: r.id, Summary: &s})
}

type run struct {
	client   *apiclient.Client
	opts     Options
	id       string
	began    time.Time
	slots    chan struct{}
	underWay sync.WaitGroup
	abort    context.CancelCauseFunc

	mu    sync.Mutex
	tally tally
}

// arrivals starts orders when they are due. It never waits for an answer.
func (r *run) arrivals(ctx, requests context.Context, next func() apiclient.NewOrder) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for n := 1; r.opts.Orders <= 0 || n <= r.opts.Orders; n++ {
		offset := time.Duration(float64(n-1) / r.opts.Rate * float64(time.Second))
		if r.opts.Duration > 0 && offset >= r.opts.Duration {
			return
		}
		due := r.began.Add(offset)
		timer.Reset(time.Until(due))
		select {
		case <-ctx.Done():
			return
		case <-requests.Done():
			return
		case <-timer.C:
		}
		if !r.slot(ctx) {
			return
		}
		o := next()
		r.underWay.Go(func() {
			defer func() { <-r.slots }()
			r.place(ctx, requests, n, due, o)
		})
	}
}

func (r *run) slot(ctx context.Context) bool {
	select {
	case r.slots <- struct{}{}:
		return true
	default:
	}
	r.count(func(t *tally) { t.heldBack++ })
	select {
	case r.slots <- struct{}{}:
		return true
	case <-ctx.Done():
		return false
	}
}

// place sends one order until its outcome is known.
func (r *run) place(ctx, requests context.Context, n int, due time.Time, o apiclient.NewOrder) {
	r.count(func(t *tally) { t.sent++ })
	key := fmt.Sprintf("load-%s-%d", r.id, n)
	body, err := json.Marshal(o)
	if err != nil {
		r.abort(fmt.Errorf("encode order: %w", err))
		return
	}
	giveUp := time.Now().Add(r.opts.RetryFor)
	entry := Entry{Run: r.id, N: n, Key: key, UserID: o.UserID, Method: o.PaymentMethod, Body: body}
	for attempt := 1; ; attempt++ {
		entry.Attempt = attempt
		placed, err := r.attempt(requests, entry, body)
		entry.Body = nil
		switch {
		case err == nil:
			r.settle(entry, Accepted, placed, time.Since(due))
			return
		case !apiclient.Unknown(err):
			r.settle(entry, Refused, placed, time.Since(due))
			return
		}
		pause := backoff(attempt, err)
		if ctx.Err() != nil || requests.Err() != nil || time.Now().Add(pause).After(giveUp) || !wait(ctx, pause) {
			r.settle(entry, Unknown, placed, time.Since(due))
			return
		}
	}
}

func (r *run) attempt(requests context.Context, entry Entry, body []byte) (apiclient.Placed, error) {
	entry.Kind, entry.At = KindRequest, time.Now().UTC()
	if err := r.opts.Journal.Append(entry); err != nil {
		r.abort(err)
		return apiclient.Placed{}, err
	}
	ctx, cancel := context.WithTimeout(requests, r.opts.AttemptTimeout)
	defer cancel()
	sent := time.Now()
	placed, err := r.client.Place(ctx, entry.Key, body)
	took := time.Since(sent)

	answer := Entry{
		Kind: KindAnswer, At: time.Now().UTC(), Run: r.id, N: entry.N, Key: entry.Key, Attempt: entry.Attempt,
		Status: placed.Status, OrderID: placed.Order.ID, Replayed: placed.Replayed, Millis: float64(took.Microseconds()) / 1000,
	}
	var problem *apiclient.Problem
	if errors.As(err, &problem) {
		answer.Status = problem.Status
	}
	if err != nil {
		answer.Error = err.Error()
	}
	r.count(func(t *tally) { t.attempt(entry.Attempt, answer.Status, placed.Replayed) })
	if jerr := r.opts.Journal.Append(answer); jerr != nil {
		r.abort(jerr)
	}
	return placed, err
}

func (r *run) settle(entry Entry, outcome string, placed apiclient.Placed, latency time.Duration) {
	r.count(func(t *tally) { t.settle(outcome, latency) })
	err := r.opts.Journal.Append(Entry{
		Kind: KindOutcome, At: time.Now().UTC(), Run: r.id, N: entry.N, Key: entry.Key, Attempt: entry.Attempt,
		UserID: entry.UserID, Method: entry.Method, OrderID: placed.Order.ID, Outcome: outcome,
	})
	if err != nil {
		r.abort(err)
	}
}

func (r *run) count(f func(*tally)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(&r.tally)
}

// tick reports progress until the returned function is called.
func (r *run) tick() (stop func()) {
	if r.opts.Progress == nil {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(200 * time.Millisecond)
		defer ticker.Stop()
		for {
			r.opts.Progress(r.progress())
			select {
			case <-ticker.C:
			case <-done:
				r.opts.Progress(r.progress())
				return
			}
		}
	}()
	return func() { close(done); <-ended }
}

func (r *run) progress() Progress {
	r.mu.Lock()
	defer r.mu.Unlock()
	return Progress{
		Elapsed: time.Since(r.began), Sent: r.tally.sent, Accepted: r.tally.accepted, Refused: r.tally.refused,
		Unknown: r.tally.unknown, InFlight: len(r.slots),
	}
}

// backoff is exponential with full jitter, 50 ms to 2 s, or what the api asked for if that is longer.
func backoff(attempt int, err error) time.Duration {
	ceiling := min(50*time.Millisecond<<min(attempt-1, 10), 2*time.Second)
	pause := time.Duration(rand.Int64N(int64(ceiling))) + time.Millisecond //nolint:gosec // no secret
	var problem *apiclient.Problem
	if errors.As(err, &problem) && problem.Status != http.StatusInternalServerError {
		// Capped, because a run of seconds gains nothing from an honest "come back in an hour".
		pause = max(pause, min(problem.RetryAfter, 5*time.Second))
	}
	return pause
}

func wait(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
