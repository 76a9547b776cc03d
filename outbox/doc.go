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
// give the roles what they need, after every migration: SELECT outbox_grant('writer_role', 'relay_role'). The writer's
// role may insert messages, and neither read, change nor number them.
//
// Behind PgBouncer in transaction mode open the pool in pgx's exec or cache_describe mode, and set [Writer.Schema] and
// [RelayOptions.Schema]. Migrations need a direct connection.
//
// examples/outbox in this module is a whole program. Package outboxtest judges a service's own outbox.
//
// Several relays may run with one name: one leads, the others stand by and take over within five seconds of its death.
// Relays with different names each publish every message, from a cursor of their own. A name that is added later begins
// with the oldest message that the ring still holds. The ring waits for every name that it knows: [Forget] one that is
// given up. The migration makes the name "relay" known; forget it if yours has another.
//
// # Looking after it
//
// [Inspect] shows who leads, what waits and how full the ring is; [Examine] finds what is wrong and says what to do;
// [Relay.Healthy] is for a readiness check. [ListParkedKeys], [Release], [Discard] and [DiscardKey] settle what Kafka
// refused; [PlanReplay] and [Replay] publish again. What people decide is written down in the table outbox_audit.
//
// # Questions
//
// Why not SKIP LOCKED? Two workers that each take the next free rows publish two messages of one key in any order; and
// rows that are updated or deleted bloat the table, the more the longer any snapshot is held.
//
// Why not NOTIFY in the business transaction? Postgres lets transactions that notify commit one at a time, in the whole
// server: 56 to 71 % fewer transactions per second were measured. [Relay.Kick] comes after the commit instead.
//
// Why not LISTEN? A notification that comes while nobody listens is lost, so the relay has to poll all the same; a
// pooler in transaction mode does not pass it on; and a poll costs a fifth of a millisecond.
//
// What happens when the relay crashes? A standby leads once the lease is over, 4 s at most by default, from the saved
// cursor. What was acknowledged after it, a page or 50 ms, is published again with the same ids. A relay that was only
// paused is fenced: it can repeat what it had read, but not move the cursor.
//
// What when Postgres crashes, or a standby is promoted? Each poll tells the server's timeline, its start and a token that
// a crash takes away. When one differs, the relay drops what it has in memory and begins at its saved cursor, because
// the transaction ids of lost transactions are given out again. Commits that a promoted standby had not received are
// lost, also those whose messages were published.
//
// What when the database is restored into another server? Transaction ids mean nothing there. The first leader notices
// by the system identifier and rebases before it publishes: what was published stays so, what was not is published, and
// a doubt becomes a duplicate. It refuses while the sequence is below the rows. After a restore to an earlier time, what
// was published since is unknown to the outbox; its ids may come again from their writers, or never.
//
// How large does the ring get? It holds the last 70 to 80 minutes, a message at its payload and some 320 bytes: 1,000
// messages of 300 bytes a second take 3 GB. A relay that is down makes it grow for as long, and nothing is lost; a
// transaction that stays open, and a dump, hold back the leaves that they use. [RelayOptions.Retention] shortens it.
package outbox
