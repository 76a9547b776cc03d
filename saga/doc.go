// Package saga carries work through steps in Postgres and in the world outside, and takes it back when a step fails.
// It survives a crash at every point, and it never guesses what became of a call.
//
// A [Definition] is a table of steps, each with its compensation beside it:
//
//	saga.Define("book-trip", 1,
//		saga.Local("check dates", t.check),
//		saga.Local("hold seat", t.hold).Undo(t.release),
//		saga.Remote("charge card", t.charge).Query(t.findCharge).Undo(t.refund),
//		saga.Local("confirm", t.confirm).Pivot(),
//	).Deadline(15 * time.Minute).OnFailed(t.tell)
//
// [Start] starts instances inside the caller's transaction. An [Engine] claims them, and runs steps until each has
// ended completed or compensated. Any number of engines may run on one database.
//
// # What is promised
//
// A local step's writes and its journal are one transaction. A remote step's intent is committed before the call, its
// outcome after; a call is sent under one idempotency key for ever, so one order is charged once however often it is
// tried. A call that ends without an answer is unknown: it is asked about ([RemoteStep.Query]), sent again only if the
// answer is [NeverExisted] or [NotYet] while the other side still knows the key, and otherwise the instance is in doubt
// until an answer comes ([Settle]) or a person gives one ([Resolve]).
//
// A rejection, a cancel request or a deadline before the pivot undoes, in reverse, every step that succeeded or may
// have succeeded. A compensation is tried until it succeeds; after many refusals, or a day without an answer, the instance
// is stuck, never silently failed. After the pivot the instance only goes forward. A success that turns up after compensation began is undone
// too, once.
//
// Instances of one lane run in the order in which they were started, one at a time: one that is in doubt or stuck holds
// its own lane and no other. A lane is leased, and every write is fenced by the lease, so an engine that was paused
// past its lease can write nothing. An instance that takes its engine's process down with it, from whatever step, call or
// query, is stuck after 12 of them ([EngineOptions.MaxCrashes]), and those that the process held beside it go on.
//
// # Where it ends
//
// "Once" ends where the other side ignores idempotency keys, or answers a query with NeverExisted for a call that did
// something. A local step must not reach outside its transaction. A set-based step ([LocalBatch]) that rejects an
// instance must have left it out of its writes.
//
// # Waking up
//
// Nothing notifies from inside a business transaction: NOTIFY serialises commits. Whoever starts a saga in the engine's
// process calls [Engine.Kick] after its commit; the ground is a poll of 2 to 100 ms.
//
// # What is measured
//
// With [EngineOptions.Meter], by definition and step where that makes sense:
//
//	saga_live            gauge: instances that have not ended, by state
//	saga_oldest          gauge, s: how long the oldest instance in_doubt and stuck has been so, by state
//	saga_overdue         gauge: lanes that should have run more than a minute ago
//	saga_steps           local steps run, by kind (do, undo, end) and outcome (succeeded, rejected, stuck, failed)
//	saga_step_duration   histogram, s: the same; a batch counts once
//	saga_call_duration   histogram, s: calls, by kind (do, query, undo) and outcome, of which a do has unknown and
//	                     not_sent besides, and a query never_existed and not_yet
//	saga_compensations   tries of compensations, local and remote, by outcome: one that failed is tried again
//	saga_finished        instances that ended, by state and failure
//	saga_reruns          instances whose transaction failed for the database's reasons
//	saga_fenced          lanes lost to another engine or to an operator
//
// The gauges are the database's, and every engine shows the same: take the highest. deploy/alerts/saga.yml has alerts on
// them for Prometheus, where counters end in _total and times in _seconds.
//
// # Connections
//
// The engine needs six to eight connections: one for each worker, one to look for work, one to count what is live every few
// seconds, and one, seldom two, for calls that save progress.
package saga
