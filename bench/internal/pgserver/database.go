package pgserver

import (
	"context"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
	"github.com/pressly/goose/v3"
)

// Within makes an empty database, hands its owner's URL to use, and removes it.
func (s *Server) Within(ctx context.Context, name string, use func(url string) error) error {
	url, err := s.Create(ctx, name)
	if err != nil {
		return err
	}
	err = use(url)
	if dropErr := s.Drop(ctx, name); err == nil {
		err = dropErr
	}
	return err
}

// Migrate runs goose migrations, each set under the name of the table that keeps its version.
func Migrate(ctx context.Context, url string, sets map[string]fs.FS) error {
	config, err := pgx.ParseConfig(url)
	if err != nil {
		return err
	}
	db := stdlib.OpenDB(*config)
	defer db.Close()
	for name, files := range sets {
		tables, err := goose.NewProvider(goose.DialectPostgres, db, files, goose.WithTableName(name))
		if err != nil {
			return err
		}
		if _, err := tables.Up(ctx); err != nil {
			return err
		}
	}
	return nil
}

// Settle comes after many rows were written: it vacuums and analyses the tables as autovacuum would, and makes the checkpoint:
// either would else fall into what is measured.
func Settle(ctx context.Context, db interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
},
) error {
	for _, statement := range []string{`VACUUM (ANALYZE)`, `CHECKPOINT`} {
		if _, err := db.Exec(ctx, statement); err != nil {
			return err
		}
	}
	return nil
}
