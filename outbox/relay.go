package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"
	"golang.org/x/sync/errgroup"
)

// ErrRefused marks a record that the broker will never take as it is. The relay parks its key. Any other error of a
// [Publisher] means that the record may be sent again.
var ErrRefused = errors.New("refused")

// Publisher sends records. [KafkaPublisher] is the one for production, package outboxtest has one in memory.
type Publisher interface {
	// Publish sends page and blocks until each record is acknowledged by the broker or has failed, not much longer
	// than ctx. It returns one error for each record, nil for an acknowledged one, [ErrRefused] for one that cannot
	// be sent as it is; or nil when all are acknowledged.
	//
	// Records of one topic and key must be sent in the order of the page, and after one of them has failed no later
	// one of them may be acknowledged. Publish is called by one relay at a time unless the caller shares it.
	Publish(ctx context.Context, page []Record) []error
}

// RelayOptions are the settings of a [Relay]. The zero value is right for most.
type RelayOptions struct {
	// Name is who keeps the cursor. Relays of one name stand by for each other; each name publishes every message, a new
	// one from the oldest that the ring still holds. [Forget] a name that is given up. Default "relay".
	Name string
	// Schema holds the outbox. Default: the first on the search_path that has one. Required behind a pooler.
	Schema string
	// Source is the header ce_source: who publishes. Default "/" and the schema.
	Source string
	// PageSize is the most messages read and published at once from a backlog. Larger pages raise throughput, memory,
	// and the number of duplicates after a crash. Default 2500.
	PageSize int
	// PageBytes bounds the payload bytes of a page. A single larger message still is a page. Default 8 MiB.
	PageBytes int
	// Lease is how long a leader may be silent before a standby takes over. A page must be acknowledged within what is
	// left of it, so it should be well above the broker's worst answer. Default 4 s, at least 1 s.
	Lease time.Duration
	// MinPoll and MaxPoll bound the pause between polls, which doubles while nothing comes. Defaults 2 ms and 50 ms.
	MinPoll, MaxPoll time.Duration
	// Retention is how long published messages stay for [Replay] at least: from 10 minutes to an hour. The ring keeps
	// what is not published for as long as it takes. Default 1 h.
	Retention time.Duration
	// MaxAge is the age of the oldest unpublished message from which [Relay.Healthy] fails. Default 30 s.
	MaxAge time.Duration
	// Log receives changes of state. Default: nothing is logged.
	Log *slog.Logger
	// Meter receives the metrics named in metrics.go. Default: none.
	Meter metric.Meter
}

func (o RelayOptions) withDefaults() RelayOptions {
	o.Name = cmp.Or(o.Name, "relay")
	o.Source = cmp.Or(o.Source, "/"+o.Schema)
	o.PageSize = cmp.Or(o.PageSize, 2500)
	o.PageBytes = cmp.Or(o.PageBytes, 8<<20)
	o.Lease = cmp.Or(o.Lease, 4*time.Second)
	o.MinPoll = cmp.Or(o.MinPoll, 2*time.Millisecond)
	o.MaxPoll = max(o.MinPoll, cmp.Or(o.MaxPoll, 50*time.Millisecond))
	o.Retention = cmp.Or(o.Retention, time.Hour)
	o.MaxAge = cmp.Or(o.MaxAge, 30*time.Second)
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	if o.Meter == nil {
		o.Meter = noop.Meter{}
	}
	return o
}

func (o RelayOptions) check() error {
	var errs []error
	if o.PageSize < 1 || o.PageBytes < 1 {
		errs = append(errs, errors.New("PageSize and PageBytes must be positive"))
	}
	if o.Lease < time.Second {
		errs = append(errs, fmt.Errorf("Lease is %v, must be at least 1s", o.Lease))
	}
	if o.MinPoll < time.Millisecond {
		errs = append(errs, fmt.Errorf("MinPoll is %v, must be at least 1ms", o.MinPoll))
	}
	if o.Retention < slotWidth || o.Retention > (slots-2)*slotWidth {
		errs = append(errs, fmt.Errorf("Retention is %v, must be between %v and %v", o.Retention, slotWidth, (slots-2)*slotWidth))
	}
	return errors.Join(errs...)
}

// Relay publishes what is written to one outbox.
type Relay struct {
	pool      *pgxpool.Pool
	publisher Publisher
	opts      RelayOptions
	log       *slog.Logger
	source    []byte
	holder    string
	slotWidth time.Duration // of the ring; tests turn it faster
	tidyEvery time.Duration
	listMax   int
	kick      chan struct{}
	metrics   metrics
	seen      atomic.Pointer[sighting]
}

// NewRelay returns a relay from the outbox in pool's database to publisher. It owns neither: the caller closes both
// after [Relay.Run] has returned. The pool needs four connections.
func NewRelay(pool *pgxpool.Pool, publisher Publisher, opts RelayOptions) (*Relay, error) {
	opts = opts.withDefaults()
	if err := opts.check(); err != nil {
		return nil, fmt.Errorf("relay options: %w", err)
	}
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	r := &Relay{
		pool:      pool,
		publisher: publisher,
		opts:      opts,
		log:       opts.Log.With("relay", opts.Name, "schema", opts.Schema),
		source:    []byte(opts.Source),
		holder:    fmt.Sprintf("%s/%d/%s", host, os.Getpid(), uuid.NewString()[:8]),
		slotWidth: slotWidth,
		tidyEvery: 10 * time.Second,
		listMax:   listMax,
		kick:      make(chan struct{}, 1),
	}
	if r.metrics, err = newMetrics(r); err != nil {
		return nil, fmt.Errorf("relay metrics: %w", err)
	}
	return r, nil
}

// Kick makes the leading relay of this process look for messages now. Call it after a commit; it never blocks, and
// many kicks are one look.
func (r *Relay) Kick() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// Run leads when it can and stands by otherwise, until ctx ends. It then finishes the page in flight, gives the
// leadership away and returns nil. Postgres or the broker being away is waited out.
func (r *Relay) Run(ctx context.Context) error {
	defer r.metrics.unregister()
	var group errgroup.Group
	group.Go(func() error { r.watch(ctx); return nil })
	group.Go(func() error { r.serve(ctx); return nil })
	return group.Wait()
}

// serve runs one term of leadership after the other.
func (r *Relay) serve(ctx context.Context) {
	const shortest, longest = 50 * time.Millisecond, time.Second
	pause := shortest
	for ctx.Err() == nil {
		lease, err := r.stand(ctx)
		if err == nil {
			r.log.InfoContext(ctx, "relay leads", "epoch", lease.epoch)
			started := time.Now()
			err = r.lead(ctx, lease)
			if time.Since(started) > r.opts.Lease {
				pause = shortest
			}
		}
		if ctx.Err() != nil {
			return
		}
		r.log.WarnContext(ctx, "relay starts again from its cursor", "error", err)
		r.metrics.restarted(ctx)
		sleep(ctx, pause)
		pause = min(2*pause, longest)
	}
}

// sleep waits for d, or less if ctx ends.
func sleep(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	}
}
