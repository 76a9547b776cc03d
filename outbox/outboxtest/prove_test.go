package outboxtest_test

import (
	"context"
	"testing"
	"time"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/outbox"
)

func TestMain(m *testing.M) { pgtest.Main(m) }

func TestTheExampleProvesAService(t *testing.T) {
	t.Parallel()
	db := pgtest.NewEmpty(t)
	db.Migrate(t, outbox.Migrations(), "orders")
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := prove(ctx, db.Pool, "orders"); err != nil {
		t.Error(err)
	}
}
