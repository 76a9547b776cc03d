// Package outboxtest lets a service prove about itself what package outbox promises: that nothing committed is lost,
// nothing rolled back arrives, and no key gets out of order.
//
// [History] is the judge. Writers note what they did in the order in which they saw it happen, and the history compares
// that with what arrived. It knows nothing of sequence numbers, snapshots or relays, so it judges any way from Postgres
// to Kafka: this package's relay, Kafka Connect, or one of your own.
//
//	var history outboxtest.History
//	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
//		if err := outbox.Write(ctx, tx, msg); err != nil { // msg.ID is set: the history knows messages by it
//			return err
//		}
//		history.Written(msg) // after Write has returned, before the commit
//		return nil
//	})
//	if err == nil {
//		history.Committed(msg)
//	} else {
//		history.Unknown(msg) // or nothing, if it was certainly rolled back
//	}
//
// [Broker] is an [outbox.Publisher] in memory, for tests that need no Kafka. It fails as Kafka does: it can be away,
// refuse a record for good and its whole batch with it, fail a batch once, be slow, and lose an answer.
//
//	broker := &outboxtest.Broker{}
//	relay, err := outbox.NewRelay(pool, broker, outbox.RelayOptions{})
//	… // go relay.Run(ctx), and write from many goroutines; kill relays meanwhile
//	err = broker.Wait(ctx, history.Complete)
//	err = history.Judge(broker.Records()).Err()
//
// A test against a real Kafka gives Judge what a consumer has read, partition by partition: the order matters only
// within a topic's key. Of each record it needs the ID, which is in the header ce_id.
//
// A run that finds nothing proves something only if it could have found something. Make writers meet: few keys, many
// writers, transactions that stay open after their Write, some that roll back. Then break on purpose what you test, such
// as [outbox.Writer.NoKeyLock] without another lock, and see the verdict.
package outboxtest
