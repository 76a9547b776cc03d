// Package inbox consumes Kafka so that the effects of a message happen once, in key order, even behind a dead letter.
//
// A service lists its handlers as [Route]s and runs a [Consumer]. A handler gets a transaction and a message; what it
// writes through the transaction commits together with the row in processed_messages that remembers the message.
// A message that is delivered again finds that row and is dropped. Messages are known by their event id (ce_id), never
// by their offset: a relay may publish one message at two offsets.
//
//	consumer, err := inbox.NewConsumer(pool, "warehouse", []inbox.Route{
//		{Topic: "orders.completed", Type: "order.completed.v1", Handle: ship},
//	}, inbox.Options{Kafka: []kgo.Opt{kgo.SeedBrokers("localhost:9092")}})
//	…
//	err = consumer.Run(ctx) // until ctx ends
//
// examples/inbox in this module is a whole program. Package inboxtest proves a service's own handlers under faults.
//
// [Typed] and [TypedBatch] make routes whose handlers get payloads decoded.
//
// # Order
//
// Messages with one key of one topic are handled in the order they were published, one at a time. Different keys run
// in parallel and share transactions: up to [Options.BatchSize] messages commit at once. A handler for single messages
// may therefore write rows of its own key only; a handler that touches rows shared between keys is a [BatchHandler],
// which makes its shared writes in sorted order, last. A key for whose messages a handler takes ten times as long as usual, and
// 10 ms or more, is handled alone as long as messages of it are waiting, so that it delays no other key; before it stops its
// partition ([Options.MaxBuffered]) its messages go among the held ones, where they are worked in their order. That it was slow is
// forgotten when none of it is left: the next one shares a transaction again, and the keys in there wait for it. Only a [Handler]
// shows which key is slow. Nothing is promised across topics.
//
// # Errors
//
// The error a handler returns says what happens next:
//
//   - nil: the effects are committed.
//   - [Permanent]: no retry can help. The message is dead at once.
//   - [RetryAfter]: not before the given time.
//   - [Outage]: nothing would succeed now. The consumer pauses and probes; no message is blamed.
//   - [Discard]: the message is dropped, and remembered as discarded.
//   - anything else, a panic included, is transient: tried again at once a few times while only this key waits, then
//     parked.
//
// Errors of the database connection are an outage, whatever a handler wraps them in; a serialization failure or a
// deadlock runs the batch again.
//
// # Dead letters
//
// A parked message lies in the table parked_messages and its key has a row in inbox_holds. Later messages of the key
// are parked behind it. Every consumer drains the holds of its group with growing delays, head first; a message that
// keeps failing while others of its type succeed is dead. A copy of a dead message goes to the topic "<group>.dlq" through the
// outbox of the same schema. Its key stays held until [Replay] or [DiscardParked], unless its route says [ReleaseKey].
// [Retry] has held messages tried now. [GroupParked] tells causes apart, [EditParked] mends a payload, [ImportParked] puts back what was saved elsewhere.
//
// # Versions
//
// The last part of a type is its major version: order.placed.v2. Within one, writers add fields and readers ignore what
// they do not know. For a new one the consumers go first: deploy the route of v2 with an [Upcast] from v1, and it reads
// both; then the writers. A message of a version that is newer than its route's, or older without an upcaster, is held with
// its key until a consumer starts that reads it. An upcaster may go when no message of its version is left in the topic or
// among the parked.
//
// # Why nothing moves
//
// [Consumer.Why] says in words what messages wait for, and the log repeats it while nothing moves. [Consumer.Ready] fails
// while the consumer is no member of its group, pauses for an outage, or finds no room for another held message: the table of
// parked messages grows to [Options.MaxHeld] and no further.
//
// # Where it ends
//
// Effects outside the handler's transaction are not covered: record them as work to do and do them afterwards. A
// message is remembered for 28 days; older ids are parked, never run. That needs ids that say how old they are, UUIDv7; for
// writers with other ids there is [Options.AnyID]. A message whose key is missing has no order.
package inbox
