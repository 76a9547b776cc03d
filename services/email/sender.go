package email

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"
)

// timing is the sender's patience. Its zero value is right; tests are in more of a hurry.
type timing struct {
	retryMin, retryMax time.Duration // between tries of one email; doubles. Default 2 s and 30 min
	grace              time.Duration // from the end of a send to the earliest question about it. Default 2 s
	circuit            time.Duration // how long a provider that does not work is left alone. Default 5 s
	poll               time.Duration // between looks when nobody kicks. Default 500 ms
}

func (t timing) withDefaults() timing {
	t.retryMin = cmp.Or(t.retryMin, 2*time.Second)
	t.retryMax = cmp.Or(t.retryMax, 30*time.Minute)
	t.grace = cmp.Or(t.grace, 2*time.Second)
	t.circuit = cmp.Or(t.circuit, 5*time.Second)
	t.poll = cmp.Or(t.poll, 500*time.Millisecond)
	return t
}

const (
	// batchSize is the most emails under one lease. Each of them is asked about after a crash.
	batchSize = 20
	// settleEvery is how long an outcome may wait for others to be written with it.
	settleEvery = 500 * time.Millisecond
	// permanentTries and temporaryTries are after how many tries a 5xx and a 4xx make an email failed.
	permanentTries = 3
	temporaryTries = 12
)

// errBadAddress means that an email's address is none. Events with such an address do not get as far.
var errBadAddress = errors.New("the recipient is not an address")

// sender delivers queued emails.
type sender struct {
	timing
	pool        *pgxpool.Pool
	log         *slog.Logger
	templates   *templates
	from        string
	providers   []*provider // the first that works is used
	connections int
	batch       int
	sendTimeout time.Duration
	lease       time.Duration
	kick        chan struct{}
	meters      meters
}

// newSender returns a sender from the emails in pool's schema to the providers of cfg. It does not own pool.
func newSender(pool *pgxpool.Pool, log *slog.Logger, meter metric.Meter, cfg Config, t timing) (*sender, error) {
	t = t.withDefaults()
	s := &sender{
		timing: t, pool: pool, log: log, from: cfg.From, connections: cfg.Connections, batch: batchSize,
		sendTimeout: cfg.SendTimeout,
		// Every send begins with sendTimeout and grace left of the lease, so a provider has made up its mind about it
		// when the lease ends. The rest is so that not every mail needs a renewal.
		lease: cfg.SendTimeout + t.grace + max(cfg.SendTimeout/2, time.Second),
		kick:  make(chan struct{}, 1),
	}
	var err error
	if s.templates, err = parseTemplates(); err != nil {
		return nil, err
	}
	if s.meters, err = newMeters(meter); err != nil {
		return nil, err
	}
	primary := access{"primary", cfg.SMTPAddr, cfg.SMTPUsername, cfg.SMTPPassword, cfg.LookupURL}
	fallback := access{"fallback", cfg.FallbackSMTPAddr, cfg.FallbackSMTPUsername, cfg.FallbackSMTPPassword, cfg.FallbackLookupURL}
	for _, a := range []access{primary, fallback} {
		if a.addr == "" {
			continue
		}
		p, err := newProvider(a, log, cfg.RatePerSecond, cfg.SendTimeout, t.circuit)
		if err != nil {
			return nil, err
		}
		s.providers = append(s.providers, p)
	}
	return s, nil
}

// kickNow makes a worker look for emails now. It never blocks.
func (s *sender) kickNow() {
	select {
	case s.kick <- struct{}{}:
	default:
	}
}

// Run delivers until ctx ends. A mail on its way is finished, the others go back into the queue.
func (s *sender) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for range s.connections {
		group.Go(func() error { s.work(ctx); return nil })
	}
	group.Go(func() error { s.watch(ctx); return nil })
	err := group.Wait()
	for _, p := range s.providers {
		p.close()
	}
	return err
}

// work is one worker: it delivers over connections of its own, one mail at a time.
func (s *sender) work(ctx context.Context) {
	conns := connections{}
	defer conns.close()
	for ctx.Err() == nil {
		n, err := s.round(ctx, conns)
		if err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "emails not delivered, will retry", slog.Any("error", err))
		}
		if n == s.batch && err == nil {
			s.kickNow() // there may be work for the others
			continue
		}
		timer := time.NewTimer(jitter(s.poll))
		select {
		case <-ctx.Done():
		case <-s.kick:
		case <-timer.C:
			conns.closeIdle()
		}
		timer.Stop()
	}
}

// round works on one batch and returns how many emails it had.
func (s *sender) round(ctx context.Context, conns connections) (n int, err error) {
	p, size, end := s.choose()
	if p == nil {
		return 0, nil // every circuit is open; nothing is claimed, so nothing is counted against anybody
	}
	defer end()
	// A connection first: emails are not taken while nobody knows whether they can be sent, however long that takes.
	if conns[p] == nil {
		if due, err := s.due(ctx); err != nil || !due {
			return 0, err
		}
		if err := conns.connect(ctx, p); err != nil {
			return 0, err
		}
	}
	b, err := s.claim(ctx, p.name, size)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, s.settle(ctx, b)) }()
	for i := range b.emails {
		e := &b.emails[i]
		var o outcome
		switch {
		case ctx.Err() != nil || i > 0 && !p.healthy():
			o = s.release(ctx, e)
		case e.InDoubt:
			o = s.ask(ctx, e)
		default:
			if o, err = s.send(ctx, p, conns, e, func() error { return s.renew(ctx, b, i) }); err != nil {
				return len(b.emails), err
			}
		}
		b.outcomes = append(b.outcomes, o)
		if time.Since(b.settled) > settleEvery {
			if err := s.settle(ctx, b); err != nil {
				return len(b.emails), err
			}
		}
	}
	return len(b.emails), nil
}

// choose returns the first provider that takes emails, and how many; nil while none does.
func (s *sender) choose() (p *provider, size int, end func()) {
	for _, p := range s.providers {
		if size, end := p.begin(s.batch); size > 0 {
			return p, size, end
		}
	}
	return nil, 0, func() {}
}

// release puts an email back that nothing was done with: at once when this process ends, later when it is the provider
// that cannot take it. An email that is in doubt stays so.
func (s *sender) release(ctx context.Context, e *email) outcome {
	o := outcome{id: e.ID, state: stateQueued, attempts: e.Attempts - 1, delay: s.poll}
	if e.InDoubt {
		o.state, o.attempts = stateSending, e.Attempts
	}
	if ctx.Err() != nil {
		o.delay = 0
	}
	return o
}

// ask finds out what became of an email in doubt.
func (s *sender) ask(ctx context.Context, e *email) outcome {
	o := outcome{id: e.ID, attempts: e.Attempts}
	accepted, err := s.lookUp(ctx, e)
	switch {
	case errors.Is(err, errNoLookup):
		o.state = stateQueued
		s.meters.count(ctx, e.Kind, "repeated")
		s.log.WarnContext(ctx, "email in doubt goes out again under its message id, because its provider has no look-up", e.attrs()...)
	case err != nil:
		o.state, o.delay, o.err = stateSending, s.backoff(e.Attempts), err.Error()
		s.log.WarnContext(ctx, "email stays in doubt, the provider does not say", append(e.attrs(), slog.Any("error", err))...)
	case accepted:
		o.state = stateSent
		s.meters.count(ctx, e.Kind, "found")
	default:
		o.state = stateQueued
		s.meters.count(ctx, e.Kind, "not_found")
	}
	return o
}

func (s *sender) lookUp(ctx context.Context, e *email) (bool, error) {
	if e.Provider == "" {
		return s.lookUpAnywhere(ctx, e)
	}
	for _, p := range s.providers {
		if p.name == e.Provider {
			return p.has(ctx, e.MessageID)
		}
	}
	return false, errNoLookup // the provider is configured no more
}

// lookUpAnywhere asks every provider for an email of which nobody knows who may have it. One that has no look-up is passed over
// if another has one.
func (s *sender) lookUpAnywhere(ctx context.Context, e *email) (bool, error) {
	answer := errNoLookup
	for _, p := range s.providers {
		accepted, err := p.has(ctx, e.MessageID)
		switch {
		case errors.Is(err, errNoLookup):
		case err != nil || accepted:
			return accepted, err
		default:
			answer = nil
		}
	}
	return false, answer
}

// send gives an email to p. It returns an error when the email is not this worker's any more, or nobody can say.
func (s *sender) send(ctx context.Context, p *provider, conns connections, e *email, hold func() error) (outcome, error) {
	msg, err := s.templates.message(e, s.from)
	if err != nil {
		return s.fail(ctx, e, err.Error()), nil
	}
	if p.limit.Wait(ctx) != nil {
		return s.release(ctx, e), nil //nolint:nilerr // the sender ends; so does waiting
	}
	began := time.Now()
	a, err := p.deliver(ctx, conns, msg, hold)
	if err != nil {
		return outcome{}, err
	}
	s.meters.took(ctx, p.name, time.Since(began))
	s.meters.count(ctx, e.Kind, string(a.fate))
	return s.conclude(ctx, p, e, a), nil
}

// conclude decides what follows from the provider's answer.
func (s *sender) conclude(ctx context.Context, p *provider, e *email, a answer) outcome {
	o := outcome{id: e.ID, attempts: e.Attempts, err: a.String()}
	// While the provider refuses nearly everything it is the provider that is wrong, and no email is given up for it.
	spent := p.healthy() && (a.fate == refused && e.Attempts >= permanentTries || a.fate == deferred && e.Attempts >= temporaryTries)
	switch {
	case a.fate == accepted:
		o.state, o.err = stateSent, ""
	case a.fate == unknown:
		o.state, o.delay = stateSending, s.grace
		s.log.WarnContext(ctx, "email in doubt, the provider will be asked", append(e.attrs(), slog.String("error", o.err))...)
	case a.fate == unreachable && a.during == connecting:
		o = s.release(ctx, e)
	case spent:
		o = s.fail(ctx, e, o.err)
	default:
		o.state, o.delay = stateQueued, s.backoff(e.Attempts)
		s.log.WarnContext(ctx, "email not accepted, will be tried again", append(e.attrs(), slog.String("error", o.err))...)
	}
	return o
}

// fail gives an email up. It stays in the table, where a person finds it.
func (s *sender) fail(ctx context.Context, e *email, reason string) outcome {
	s.meters.count(ctx, e.Kind, stateFailed)
	s.log.ErrorContext(ctx, "email failed", append(e.attrs(), slog.String("error", reason))...)
	return outcome{id: e.ID, state: stateFailed, attempts: e.Attempts, err: reason}
}

func (e *email) attrs() []any {
	return []any{slog.String("order_id", e.OrderID.String()), slog.String("message_id", e.ID.String()),
		slog.String("kind", e.Kind), slog.Int("attempt", e.Attempts)}
}

// backoff returns the delay behind the given try: it doubles, and half of it is random.
func (s *sender) backoff(attempt int) time.Duration {
	d := s.retryMin
	for range attempt - 1 {
		if d *= 2; d >= s.retryMax {
			return jitter(s.retryMax)
		}
	}
	return jitter(d)
}

// jitter spreads what would otherwise happen at once: it returns between half of d and d.
func jitter(d time.Duration) time.Duration {
	return d/2 + rand.N(d/2+1) //nolint:gosec // spreads load; nobody gains from guessing it
}

// watch measures the backlog.
func (s *sender) watch(ctx context.Context) {
	tick := time.NewTicker(5 * time.Second)
	defer tick.Stop()
	for {
		if err := s.measure(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "email backlog not measured", slog.Any("error", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

func (s *sender) measure(ctx context.Context) error {
	var queued, inDoubt int64
	var oldest float64
	err := s.pool.QueryRow(ctx, `
		SELECT count(*) FILTER (WHERE state = 'queued'),
			count(*) FILTER (WHERE state = 'sending' AND next_attempt_at < clock_timestamp()),
			coalesce(extract(epoch FROM clock_timestamp() - min(created_at)), 0)::float8
		FROM emails
		WHERE state IN ('queued', 'sending')`).Scan(&queued, &inDoubt, &oldest)
	if err != nil {
		return fmt.Errorf("measure the email backlog: %w", err)
	}
	s.meters.backlog(ctx, queued, inDoubt, oldest)
	return nil
}
