package outbox_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
)

// traced is told of the statements of a pool. Either function may be nil.
type traced struct {
	begins, ends func(sql string)
}

type tracedSQL struct{}

func (tr traced) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if tr.begins != nil {
		tr.begins(data.SQL)
	}
	return context.WithValue(ctx, tracedSQL{}, data.SQL)
}

func (tr traced) TraceQueryEnd(ctx context.Context, _ *pgx.Conn, _ pgx.TraceQueryEndData) {
	if tr.ends != nil {
		tr.ends(ctx.Value(tracedSQL{}).(string))
	}
}

func tracedPool(t testing.TB, db *pgtest.DB, tracer traced) *pgxpool.Pool {
	t.Helper()
	config := db.Pool.Config()
	config.ConnConfig.Tracer = tracer
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pool.Close)
	return pool
}
