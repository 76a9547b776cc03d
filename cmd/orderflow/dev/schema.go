package dev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/internal/postgres"
	"github.com/orderflow-dev/orderflow/migrations"
	"github.com/orderflow-dev/orderflow/outbox"
	"github.com/orderflow-dev/orderflow/services/api"
)

// schemas are those with an outbox, each of which has a relay.
var schemas = []string{"orders", "email", "warehouse"}

// prepareDatabase brings the database to this program's schema and adds the catalog and the API key. On a database that
// is up to date it only looks.
func (s *system) prepareDatabase(ctx context.Context, ownerURL string) error {
	began := time.Now()
	before, err := migrations.Status(ctx, ownerURL)
	if err != nil {
		return err
	}
	detail := "up to date"
	if upToDate(before) {
		if err := s.tryRoles(ctx, ownerURL); err != nil {
			return err
		}
	} else {
		if s.opts.PostgresURL != "" {
			s.report.progress("schema", "gives the roles of your server the public development password")
		}
		if err := migrations.Up(ctx, ownerURL, migrations.Options{RolePassword: migrations.DevRolePassword, Log: s.log}); err != nil {
			return err
		}
		detail = "migrated: " + strings.Join(schemas, ", ")
	}
	conn, err := pgx.Connect(ctx, ownerURL)
	if err != nil {
		return fmt.Errorf("connect to postgres: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	if err := order.SeedCatalog(ctx, conn); err != nil {
		return err
	}
	if s.opts.PostgresURL != "" {
		s.report.progress("schema", "adds the public api key "+api.DevKey)
	}
	key := api.Key{Secret: api.DevKey, Role: api.RoleService, Name: "orderflow dev"}
	if err := api.AddKey(ctx, conn, key); err != nil {
		return err
	}
	s.report.part("schema", detail+", catalog and api key in place", "", time.Since(began))
	return nil
}

// tryRoles logs in as every role, since a Postgres of the user's that is up to date may be a real one: then its passwords are
// not the public one, and are none of our business.
func (s *system) tryRoles(ctx context.Context, ownerURL string) error {
	for _, schema := range schemas {
		for _, role := range []string{schema, schema + "_relay"} {
			url, err := migrations.RoleURL(ownerURL, role, migrations.DevRolePassword)
			if err != nil {
				return err
			}
			conn, err := pgx.Connect(ctx, url)
			if pgErr, ok := errors.AsType[*pgconn.PgError](err); ok && strings.HasPrefix(pgErr.Code, "28") {
				return &RolePassword{Role: role}
			}
			if err != nil {
				return fmt.Errorf("connect to postgres as %s: %w", role, err)
			}
			if err := conn.Close(ctx); err != nil {
				return fmt.Errorf("connect to postgres as %s: %w", role, err)
			}
		}
	}
	return nil
}

// RolePassword is the error of [Run] on a migrated Postgres whose roles do not have the development password.
type RolePassword struct{ Role string }

func (e *RolePassword) Error() string {
	return "role " + e.Role + " of this Postgres does not have the public development password"
}

func upToDate(status []migrations.SchemaStatus) bool {
	for _, part := range status {
		if part.Version != part.Latest {
			return false
		}
	}
	return true
}

// refillKafka tells the relays to publish again what the outboxes still hold, when the broker's log is new. They do it
// before anything else, in the old order; consumers drop what they have seen.
func (s *system) refillKafka(ctx context.Context, ownerURL string) error {
	if _, err := os.Stat(s.refillMarker()); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	pool, err := postgres.Open(ctx, ownerURL, postgres.Options{ApplicationName: "orderflow dev", MaxConns: 2})
	if err != nil {
		return err
	}
	defer pool.Close()
	var refilled []string
	for _, schema := range schemas {
		var any bool
		if err := pool.QueryRow(ctx, `SELECT EXISTS (SELECT FROM `+pgx.Identifier{schema, "outbox"}.Sanitize()+`)`).Scan(&any); err != nil {
			return fmt.Errorf("look into the outbox of %s: %w", schema, err)
		}
		if !any {
			continue
		}
		if _, err := outbox.Replay(ctx, pool, schema, outbox.ReplayOptions{Since: time.Unix(1, 0)}); err != nil {
			return err
		}
		refilled = append(refilled, schema)
	}
	if len(refilled) > 0 {
		s.report.line("     kafka      is filled again from the outboxes of %s", strings.Join(refilled, ", "))
	}
	return os.Remove(s.refillMarker())
}
