package inbox

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/orderflow-dev/orderflow/outbox"
)

// Consumer reads the topics of its routes as one member of a consumer group. Any number of processes may run one.
type Consumer struct {
	pool   *pgxpool.Pool
	group  string
	member string // the group in Kafka; the same but in tests of two owners of one partition
	routes *router
	opts   Options
	store  store
	meters meters

	circuit *circuit
	health  *health
	lanes   *lanes
	tried   evidence
	room    room
	ran     atomic.Bool
	joined  atomic.Bool
	fits    atomic.Bool // processed_messages is the table for the ids that are accepted

	id        uuid.UUID
	pausedWhy atomic.Pointer[string] // nil while the group is not paused

	mu         sync.Mutex // guards partitions
	partitions map[topicPartition]*partition
	commitMu   sync.Mutex // one commit at a time, so that a watermark never goes back
}

// NewConsumer returns a consumer of group. It does not own pool: the caller closes it after [Consumer.Run] returned.
// The inbox and outbox tables must be there; see [Migrations].
func NewConsumer(pool *pgxpool.Pool, group string, routes []Route, opts Options) (*Consumer, error) {
	var errs []error
	if pool == nil {
		errs = append(errs, errors.New("pool is nil"))
	}
	if group == "" {
		errs = append(errs, errors.New("group is empty"))
	}
	if opts.MaxHeld < 0 || opts.MaxHeldPerKey < 0 {
		errs = append(errs, errors.New("a limit of held messages is negative"))
	}
	if group != "" && opts.Rebuild == group {
		errs = append(errs, fmt.Errorf("group %q cannot rebuild itself: it knows what it has done", group))
	}
	if opts.BatchSize < 0 || opts.BatchSize > 500 {
		errs = append(errs, fmt.Errorf("batch size %d is not within 1 to 500", opts.BatchSize))
	}
	r, err := newRouter(routes)
	if err = errors.Join(append(errs, err)...); err != nil {
		return nil, fmt.Errorf("inbox consumer: %w", err)
	}
	opts = opts.withDefaults(group)
	m, err := newMeters(group, opts.Meter)
	if err != nil {
		return nil, fmt.Errorf("inbox consumer: %w", err)
	}
	opts.Log = opts.Log.With("group", group)
	c := &Consumer{
		pool: pool, id: uuid.New(), group: group, member: group, routes: r, opts: opts, meters: m,
		store:      store{schema: schemaPrefix(opts.Schema), group: group, dlqTopic: opts.DLQTopic, outbox: outbox.Writer{Schema: opts.Schema}, lease: opts.Lease},
		partitions: map[topicPartition]*partition{},
	}
	c.health = newHealth()
	c.circuit = newCircuit(opts.Log)
	c.lanes = newLanes(opts.BatchSize, opts.BatchWait, int64(opts.MaxBuffered)*10, c.circuit)
	c.tried.seen = map[[2]string]int64{}
	return c, nil
}

// Run consumes until ctx ends. Then it stops fetching, finishes the batches it has started, commits their offsets,
// leaves the group and returns nil. While the group is paused by [PauseGroup] it is no member. It returns an error when the
// client cannot be made, and when it is called again: a consumer runs once.
func (c *Consumer) Run(ctx context.Context) error {
	if c.ran.Swap(true) {
		return fmt.Errorf("consumer of group %s was run before", c.group)
	}
	// Started batches outlive ctx by DrainTimeout.
	work, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	ctx, end := context.WithCancel(ctx)
	defer end()
	stop := context.AfterFunc(ctx, c.lanes.close)
	defer stop()
	var client *kgo.Client
	var err error

	var loops sync.WaitGroup
	for range c.opts.Workers {
		loops.Go(func() { c.work(work) })
	}
	loops.Go(func() {
		if client, err = c.takePart(ctx); err != nil {
			end()
		}
	})
	loops.Go(func() { c.drainLoop(ctx, work) })
	loops.Go(func() { c.reclaimLoop(ctx) })
	loops.Go(func() { c.watch(ctx) })
	loops.Go(func() { c.gauge(ctx) })

	<-ctx.Done()
	deadline := time.AfterFunc(c.opts.DrainTimeout, func() {
		c.opts.Log.WarnContext(work, "started batches cancelled, the drain timeout passed")
		cancel()
	})
	loops.Wait()
	deadline.Stop()
	c.joined.Store(false)
	if client != nil {
		c.leave(work, client)
	}
	return err
}

// Ready returns nil while the consumer is a member of its group and can work; otherwise it says what it waits for.
func (c *Consumer) Ready() error {
	if why := c.notReady(); why != "" {
		return fmt.Errorf("consumer group %s: %s", c.group, why)
	}
	return nil
}

func (c *Consumer) decoder() decoder {
	return decoder{routes: c.routes, maxPayload: c.opts.MaxPayload, maxHeaders: c.opts.MaxHeaders, anyID: c.opts.AnyID}
}
