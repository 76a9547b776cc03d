package inbox

import (
	"cmp"
	"log/slog"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.opentelemetry.io/otel/metric"
)

// Options tunes a [Consumer]. The zero value is right, except that Kafka must name the brokers.
type Options struct {
	// Schema is where the inbox and outbox tables are. Default: the connection's search_path.
	Schema string

	// Kafka is passed to the client: seed brokers, dialer, session timeout, another balancer than cooperative-sticky.
	Kafka []kgo.Opt

	// InstanceID makes the process a static member of its group (KIP-345): one that ends and is back within the session
	// timeout, 45 s by default, gets the partitions it had, and nobody else's move. In return those partitions rest until
	// then. Each process needs one of its own that outlives restarts, such as the name of a pod of a StatefulSet; of two
	// with the same the older one loses its partitions. Default: none, a member that ends leaves at once.
	InstanceID string

	// DLQTopic receives a copy of each dead message through the outbox. Default: the group's name + ".dlq".
	DLQTopic string

	// Rebuild names another group of the same schema, with the same handlers, whose effects this consumer makes again where they
	// are missing. Every handler must recognise by its own rows what was done already: this group knows none of it. What
	// the other group has parked or discarded stays as it is, and so does a message of a key it holds that it has not met
	// yet: they get the fate "left" here. Default: none.
	Rebuild string

	// BatchSize is the most messages in one transaction. Default 100, at most 500.
	BatchSize int

	// BatchWait is how long a worker waits for a batch to fill. Default 5 ms; negative: not at all.
	BatchWait time.Duration

	// Workers is the number of transactions open at once. Each holds one connection of the pool, the drainer two
	// more. Default 4.
	Workers int

	// InlineAttempts is how often a failing message is tried while its key waits in memory, within 2 s, before it is
	// parked. Default 3.
	InlineAttempts int

	// RetryMin and RetryMax bound the delay between the tries of a parked message; it grows fourfold from one to the
	// next. Defaults 5 s and 30 min.
	RetryMin, RetryMax time.Duration

	// MaxTries is the number of counted tries after which a parked message is dead. A try counts only when Evidence
	// messages of its type succeeded since the try before: an outage kills nobody. Default 12.
	MaxTries int

	// Evidence is described at MaxTries. Default 20; negative: every try counts.
	Evidence int

	// Lease is how long a drainer keeps a held key to itself while one message of it is handled. The context of its handler
	// ends after four fifths of it, and that try has failed, with [ClassSlowHandler]. A handler that does not heed its context
	// loses the key when the lease ends, and its work is rolled back. Default 30 s.
	Lease time.Duration

	// DrainEvery is the pause between looks at the held keys. Default 250 ms.
	DrainEvery time.Duration

	// CommitEvery is the pause between offset commits. Default 200 ms.
	CommitEvery time.Duration

	// PauseEvery is the pause between looks whether the group is paused. Default 1 s.
	PauseEvery time.Duration

	// DrainTimeout is how long Run lets started batches go on after its context ended. Default 20 s.
	DrainTimeout time.Duration

	// StallAfter is how long nothing may move before the log says why. Default 30 s.
	StallAfter time.Duration

	// MaxHeldPerKey is the most messages of one key, and MaxHeld of the whole group, that may be parked at a time, dead
	// ones included; what several consumers park in the same moment may exceed it. A message that finds no room stays in
	// memory with its key, is tried again after RetryMin, and goes on by itself when there is room; other keys go on
	// meanwhile, and its partition pauses once MaxBuffered is used up. Nothing of it is lost or committed. [Consumer.Ready]
	// fails as long, the log has an error, and the metric inbox.holds.refused counts. Defaults 10,000 and 100,000.
	MaxHeldPerKey, MaxHeld int

	// AnyID accepts every ce_id that is not empty and has at most 256 bytes, for writers whose ids are no UUIDv7. A UUID
	// stays what it is; of any other id, [Message.ID] is the UUIDv5 of source and id, which together are unique
	// (CloudEvents 1.0). The inbox must have been made by [MigrationsAnyID]: a consumer pauses when it finds the other
	// table. No id is ever too old, so how long a message is remembered is for you to say: see Remember.
	AnyID bool

	// Remember is, with AnyID, how long after it was handled a message is remembered. One that is delivered again later is
	// handled again, so it must be longer than Kafka keeps the records of every topic that is read. Consumers delete what
	// is older, of their group, once an hour. Default 28 days.
	Remember time.Duration

	// MaxPayload in bytes, and MaxHeaders, are the limits over which a message is dead. Defaults 1 MiB and 100.
	MaxPayload, MaxHeaders int

	// MaxBuffered is the most messages of one partition in memory; over it, fetching the partition pauses. A
	// partition also pauses when its oldest unfinished message is 10 times as many offsets behind; at half of that a slow
	// key is parked. Default 5000.
	MaxBuffered int

	// MaxBufferedBytes is the most payload of all partitions in memory. Default 64 MiB.
	MaxBufferedBytes int64

	// AfterBatch is called after every committed batch, to kick what the batch made work for. It must not block.
	AfterBatch func()

	Log   *slog.Logger // default: nothing is logged
	Meter metric.Meter // default: nothing is measured
}

func (o Options) withDefaults(group string) Options {
	o.DLQTopic = cmp.Or(o.DLQTopic, group+".dlq")
	o.BatchSize = cmp.Or(o.BatchSize, 100)
	o.BatchWait = cmp.Or(o.BatchWait, 5*time.Millisecond)
	o.Workers = cmp.Or(o.Workers, 4)
	o.InlineAttempts = cmp.Or(o.InlineAttempts, 3)
	o.RetryMin = cmp.Or(o.RetryMin, 5*time.Second)
	o.RetryMax = cmp.Or(o.RetryMax, 30*time.Minute)
	o.MaxTries = cmp.Or(o.MaxTries, 12)
	o.Evidence = cmp.Or(o.Evidence, 20)
	o.Lease = cmp.Or(o.Lease, 30*time.Second)
	o.DrainEvery = cmp.Or(o.DrainEvery, 250*time.Millisecond)
	o.CommitEvery = cmp.Or(o.CommitEvery, 200*time.Millisecond)
	o.PauseEvery = cmp.Or(o.PauseEvery, time.Second)
	o.DrainTimeout = cmp.Or(o.DrainTimeout, 20*time.Second)
	o.StallAfter = cmp.Or(o.StallAfter, 30*time.Second)
	o.MaxHeldPerKey = cmp.Or(o.MaxHeldPerKey, 10_000)
	o.MaxHeld = cmp.Or(o.MaxHeld, 100_000)
	o.Remember = cmp.Or(o.Remember, horizonPast)
	o.MaxPayload = cmp.Or(o.MaxPayload, 1<<20)
	o.MaxHeaders = cmp.Or(o.MaxHeaders, 100)
	o.MaxBuffered = cmp.Or(o.MaxBuffered, 5000)
	o.MaxBufferedBytes = cmp.Or(o.MaxBufferedBytes, 64<<20)
	if o.AfterBatch == nil {
		o.AfterBatch = func() {}
	}
	o.Log = cmp.Or(o.Log, slog.New(slog.DiscardHandler))
	return o
}
