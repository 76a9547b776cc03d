package outbox_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/outbox"
)

// writerKinds are the transactions that differ in what a snapshot says of them. Each writes its batch once.
var writerKinds = []struct {
	name string
	run  func(c *chaos, ctx context.Context, random *rand.Rand, batch []outbox.Message) error
}{
	{"plain transactions", transaction(nil, nil)},
	{"late writes under early ids", transaction(func(ctx context.Context, tx pgx.Tx, _ *rand.Rand) error {
		return execute(ctx, tx, `SELECT pg_current_xact_id(), pg_sleep(0.01)`)
	}, nil)},
	{"commits held back", transaction(nil, func(ctx context.Context, tx pgx.Tx, random *rand.Rand) error {
		return execute(ctx, tx, `SELECT pg_sleep($1)`, random.Float64()/30)
	})},
	{"rollbacks", transaction(nil, func(context.Context, pgx.Tx, *rand.Rand) error { return errChangedMind })},
	// More subtransactions than a backend shows to a snapshot.
	{"many subtransactions", transaction(func(ctx context.Context, tx pgx.Tx, _ *rand.Rand) error {
		return execute(ctx, tx, `
			DO $$ BEGIN FOR i IN 1..70 LOOP
				BEGIN INSERT INTO orders.scratch VALUES (i); EXCEPTION WHEN division_by_zero THEN END;
			END LOOP; END $$`)
	}, nil)},
	{"savepoints released", (*chaos).writeInSavepoint},
	{"savepoints undone", (*chaos).writeInUndoneSavepoint},
	{"prepared transactions", (*chaos).writePrepared},
}

var errChangedMind = errors.New("rolled back on purpose")

func execute(ctx context.Context, tx pgx.Tx, sql string, args ...any) error {
	_, err := tx.Exec(ctx, sql, args...)
	return err
}

// writeMany commits transactions of all kinds on few keys. Every other run has no big windows but those of an outage, or
// there would be little else.
func (c *chaos) writeMany(random *rand.Rand) {
	heavy := c.seed%2 == 0
	for range 30 {
		size := 1 + random.IntN(4)
		if heavy && random.IntN(100) == 0 {
			size = 520 // more than a poll returns
		}
		var batch []outbox.Message
		for n := range size {
			m := message("orders", fmt.Sprint("key-", random.IntN(4)), n)
			m.ID = uuid.New()
			if heavy && random.IntN(50) == 0 {
				m.Payload = make([]byte, 10_000) // larger than a poll returns
			}
			batch = append(batch, m)
		}
		kind := writerKinds[random.IntN(len(writerKinds))]
		if err := kind.run(c, c.t.Context(), random, batch); err != nil {
			c.t.Errorf("%s: %v", kind.name, err)
			return
		}
		c.total.Add(kind.name, 1)
	}
}

// writeForTheWholeRing holds a transaction open until its slot is current for the second time.
func (c *chaos) writeForTheWholeRing() {
	m := message("orders", "slow", 1)
	m.ID = uuid.New()
	whole := transaction(nil, func(ctx context.Context, tx pgx.Tx, _ *rand.Rand) error {
		return execute(ctx, tx, `SELECT pg_sleep($1)`, (9 * turn).Seconds())
	})
	if err := whole(c, c.t.Context(), nil, []outbox.Message{m}); err != nil {
		c.t.Errorf("writer of the whole ring: %v", err)
	}
}

// transaction does something before it writes its batch, and something after that.
func transaction(
	before, after func(ctx context.Context, tx pgx.Tx, random *rand.Rand) error,
) func(c *chaos, ctx context.Context, random *rand.Rand, batch []outbox.Message) error {
	return func(c *chaos, ctx context.Context, random *rand.Rand, batch []outbox.Message) error {
		return c.commit(ctx, batch, func(tx pgx.Tx) error {
			if before != nil {
				if err := before(ctx, tx, random); err != nil {
					return err
				}
			}
			if err := c.write(ctx, tx, batch); err != nil || after == nil {
				return err
			}
			return after(ctx, tx, random)
		})
	}
}

// commit runs do in a transaction, and notes what came of it.
func (c *chaos) commit(ctx context.Context, batch []outbox.Message, do func(tx pgx.Tx) error) error {
	err := pgx.BeginFunc(ctx, c.db.Pool, do)
	if errors.Is(err, errChangedMind) {
		return nil
	}
	if err == nil {
		c.history.Committed(batch...)
	}
	return err
}

func (c *chaos) write(ctx context.Context, tx pgx.Tx, batch []outbox.Message) error {
	if err := (outbox.Writer{Schema: schema}).Write(ctx, tx, batch...); err != nil {
		return err
	}
	c.history.Written(batch...)
	return nil
}

func (c *chaos) writeInSavepoint(ctx context.Context, _ *rand.Rand, batch []outbox.Message) error {
	return c.commit(ctx, batch, func(tx pgx.Tx) error {
		return pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error { return c.write(ctx, tx, batch) })
	})
}

// writeInUndoneSavepoint commits a transaction of which nothing may arrive.
func (c *chaos) writeInUndoneSavepoint(ctx context.Context, _ *rand.Rand, batch []outbox.Message) error {
	return c.commit(ctx, nil, func(tx pgx.Tx) error {
		err := pgx.BeginFunc(ctx, tx, func(tx pgx.Tx) error {
			if err := c.write(ctx, tx, batch); err != nil {
				return err
			}
			return errChangedMind
		})
		if errors.Is(err, errChangedMind) {
			return nil
		}
		return err
	})
}

// writePrepared commits in two phases: the transaction is open on no connection in between.
func (c *chaos) writePrepared(ctx context.Context, _ *rand.Rand, batch []outbox.Message) error {
	name := uuid.NewString()
	tx, err := c.db.Pool.Begin(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // after PREPARE there is nothing to roll back
	if err := c.write(ctx, tx, batch); err != nil {
		return err
	}
	if err := execute(ctx, tx, `PREPARE TRANSACTION '`+name+`'`); err != nil {
		return err
	}
	if _, err := c.db.Pool.Exec(ctx, `COMMIT PREPARED '`+name+`'`); err != nil {
		return err
	}
	c.history.Committed(batch...)
	return nil
}
