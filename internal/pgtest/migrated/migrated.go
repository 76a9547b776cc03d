// Package migrated gives each test a database with every migration applied, ready for services.
package migrated

import (
	"context"
	"testing"

	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/migrations"
)

// New returns a database with every schema, table and role. Migrations run once per test binary; each test gets a clone.
// [pgtest.DB.RolePool] connects as one of the roles, with exactly the rights the service has.
func New(t testing.TB) *pgtest.DB {
	t.Helper()
	return pgtest.New(t, "migrated", func(ctx context.Context, ownerURL string) error {
		return migrations.Up(ctx, ownerURL, migrations.Options{RolePassword: pgtest.RolePassword})
	})
}
