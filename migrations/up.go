package migrations

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/lock"
)

// ErrNewer is returned for a database that a newer version of the order system has migrated.
var ErrNewer = errors.New("the database is of a newer version")

// Options says what [Up] does. The zero value migrates every schema of a database whose roles exist.
type Options struct {
	// RolePassword is given to every role, new or not, as a SCRAM-SHA-256 verifier: the server and its log never see it. It
	// is of printable ASCII characters. Empty: roles that exist keep theirs, and a role that does not exist
	// is an error, because nobody could log in as it.
	RolePassword string
	// Schemas names the schemas to migrate, for services with databases of their own. Default all.
	Schemas []string
	// Log receives a line per applied migration. Default: nothing.
	Log *slog.Logger
}

// upLock is the advisory lock of a whole [Up]. goose's own lock is per folder, and is polled by the second; this one lets
// a second Up continue the moment the first is done.
const upLock = 7_305_800_422_601_511_714

// Up migrates the database that ownerURL leads to. The user in it owns what is created and needs the right to create
// roles and schemas. A failed Up leaves every finished migration in place and continues there the next time.
func Up(ctx context.Context, ownerURL string, opts Options) error {
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	schemas, err := choose(opts.Schemas)
	if err != nil {
		return err
	}
	config, err := pgx.ParseConfig(ownerURL)
	if err != nil {
		return fmt.Errorf("read the owner's URL: %w", err)
	}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return fmt.Errorf("connect as the owner: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }() // it also gives the lock back
	if _, err := conn.Exec(ctx, `SELECT pg_advisory_lock($1)`, int64(upLock)); err != nil {
		return fmt.Errorf("wait for another migration to end: %w", err)
	}
	// Everything is looked at before anything is changed.
	for _, s := range schemas {
		if err := refuseNewer(ctx, conn, s); err != nil {
			return err
		}
	}
	for _, s := range schemas {
		if err := ensureRoles(ctx, conn, s, opts.RolePassword); err != nil {
			return err
		}
		if err := upSchema(ctx, conn, config, s, opts.Log); err != nil {
			return err
		}
	}
	return nil
}

func refuseNewer(ctx context.Context, conn *pgx.Conn, s schema) error {
	for _, p := range s.parts {
		status, err := partStatus(ctx, conn, s, p)
		if err != nil {
			return err
		}
		if status.Version > status.Latest {
			return fmt.Errorf("migrate schema %s: %w: its %s tables are at version %d, this program knows %d; use the newer program",
				s.name, ErrNewer, p.name, status.Version, status.Latest)
		}
	}
	return nil
}

func upSchema(ctx context.Context, conn *pgx.Conn, config *pgx.ConnConfig, s schema, log *slog.Logger) error {
	if _, err := conn.Exec(ctx, `CREATE SCHEMA IF NOT EXISTS `+pgx.Identifier{s.name}.Sanitize()); err != nil {
		return fmt.Errorf("create schema %s: %w", s.name, err)
	}
	scoped := config.Copy()
	// Functions keep this path. pg_temp stands last, or a temporary table of the caller's would hide the real one inside
	// a function that runs with the owner's rights.
	scoped.RuntimeParams["search_path"] = pgx.Identifier{s.name}.Sanitize() + ", pg_temp"
	db := stdlib.OpenDB(*scoped)
	defer func() { _ = db.Close() }()
	for _, p := range s.parts {
		if err := upPart(ctx, db, s, p, log); err != nil {
			return err
		}
	}
	return grantLibraries(ctx, conn, s)
}

func upPart(ctx context.Context, db *sql.DB, s schema, p part, log *slog.Logger) error {
	provider, err := newProvider(db, p)
	if err != nil {
		return fmt.Errorf("read the %s migrations of schema %s: %w", p.name, s.name, err)
	}
	results, err := provider.Up(ctx)
	if partial, ok := errors.AsType[*goose.PartialError](err); ok {
		results = partial.Applied
	}
	for _, result := range results {
		log.InfoContext(ctx, "applied migration", "schema", s.name, "part", p.name, "file", result.Source.Path, "duration", result.Duration)
	}
	if err != nil {
		return fmt.Errorf("apply the %s migrations of schema %s: %w", p.name, s.name, err)
	}
	return nil
}

func newProvider(db *sql.DB, p part) (*goose.Provider, error) {
	locker, err := lock.NewPostgresSessionLocker()
	if err != nil {
		return nil, fmt.Errorf("set up goose's lock: %w", err)
	}
	return goose.NewProvider(goose.DialectPostgres, db, p.files,
		goose.WithTableName(p.table),
		goose.WithSessionLocker(locker),
		goose.WithDisableGlobalRegistry(true))
}
