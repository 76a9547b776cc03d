// Package inboxtest lets a service prove about its own handlers what package inbox promises: that the effects of every
// message happen once, in the order of its key, whatever Kafka, Postgres and the group do meanwhile.
//
// A [Trial] takes the service's routes and a database that has its tables and those of the inbox. It brings a broker in
// this process, so a test needs Postgres and no Kafka. It publishes messages and does to the consumers what production does:
// messages come twice, keys arrive interleaved in any order, members of the group come and go, the connection dies between
// a handler and its commit, commits of offsets are lost, and in the end the group forgets its offsets and everything is
// delivered again.
//
//	sent, err := trial.Run(ctx)                  // messages as they were published, when all have their fate
//	effects := …                                 // a query of the service's own tables: whose effect came after whose
//	err = inboxtest.Judge(sent, effects).Err()
//
// The judge looks at the service's tables and at nothing else, so it finds a handler that writes past its transaction,
// one that forgets a message and says nil, and one that lets a key get out of order. A handler whose tables keep no order,
// such as one that adds up, is judged by its sums: compare them with those of the messages that were sent.
//
// A run that finds nothing proves something only if it could have found something: [Report] counts what was done, and Run
// fails when a fault never happened. Break on purpose what you test, such as by writing through the pool, and see the
// verdict.
package inboxtest
