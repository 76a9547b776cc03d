// Package outbox publishes messages to Kafka if, and only if, the Postgres transaction that wrote them commits.
//
// A producer calls [Write] inside its own transaction, next to the rows the message is about. A [Relay] reads the
// outbox and publishes each message under its key, so messages with one topic and key arrive as they were committed.
//
// # What is promised
//
// No committed message is skipped, however late its transaction commits and however many run beside it. Messages of one
// topic and key first appear in Kafka in the order in which they were committed. A transaction that stays open for
// hours delays nobody else's messages. A message that Kafka refuses for good parks its own key, and no other.
//
// # Where it ends
//
// Delivery is at least once: a relay that stops between Kafka's ack and its own checkpoint publishes a page again.
// Package inbox is the other half; it drops those duplicates by [Message.ID]. A writer that commits with
// synchronous_commit = off can see a message published that a crash of Postgres then takes back. The relay must be
// connected to the primary; the promotion of an asynchronous replica loses what the replica had not received.
//
// # How it works
//
// The relay keeps a snapshot of Postgres, not a position: a poll reads the rows that are visible now and were not
// visible at the snapshot of the poll before (the visibility rule of Skype's PgQ). Every row is in exactly one such
// window, no matter when its transaction took its id or how late it commits. Within a window rows are in the order of
// their sequence numbers; [Write] locks the key until commit, so a later message of a key never has a smaller one.
//
// Rows are never updated or deleted. They live in a ring of eight leaves of ten minutes each, and the relay truncates
// a leaf when every relay has passed what is in it and its rows are more than an hour old. Until then [Replay] can send
// them again.
//
// # Setting up
//
// Run [Migrations] with goose in the schema that holds the business tables; every name in them is unqualified. Then
// give the roles what they need: SELECT outbox_grant('writer_role', 'relay_role'). The writer's role may insert
// messages, and neither read, change nor number them.
//
// Behind PgBouncer in transaction mode open the pool in pgx's exec or cache_describe mode, and set [Writer.Schema] and
// [RelayOptions.Schema]. Migrations need a direct connection.
//
// Several relays may run with one name: one leads, the others stand by and take over within five seconds of its death.
// Relays with different names each publish every message.
package outbox
