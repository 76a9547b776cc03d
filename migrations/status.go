package migrations

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// SchemaStatus is where one part of a schema stands.
type SchemaStatus struct {
	Schema string `json:"schema"`
	// Part is a library's name, or "schema" for the schema's own tables.
	Part string `json:"part"`
	// Version is the last migration that was applied, 0 when none was.
	Version int64 `json:"version"`
	// Latest is the last one that this program knows.
	Latest int64 `json:"latest"`
}

// Pending reports whether [Up] has something to do.
func (s SchemaStatus) Pending() bool { return s.Version < s.Latest }

// Status reports where every schema stands. It changes nothing, and works on an empty database too.
func Status(ctx context.Context, ownerURL string) ([]SchemaStatus, error) {
	schemas, err := allSchemas()
	if err != nil {
		return nil, err
	}
	conn, err := pgx.Connect(ctx, ownerURL)
	if err != nil {
		return nil, fmt.Errorf("connect as the owner: %w", err)
	}
	defer func() { _ = conn.Close(context.WithoutCancel(ctx)) }()
	var all []SchemaStatus
	for _, s := range schemas {
		for _, p := range s.parts {
			status, err := partStatus(ctx, conn, s, p)
			if err != nil {
				return nil, err
			}
			all = append(all, status)
		}
	}
	return all, nil
}

func partStatus(ctx context.Context, conn *pgx.Conn, s schema, p part) (SchemaStatus, error) {
	status := SchemaStatus{Schema: s.name, Part: p.name}
	latest, err := latestVersion(p.files)
	if err != nil {
		return status, fmt.Errorf("read the %s migrations of schema %s: %w", p.name, s.name, err)
	}
	status.Latest = latest
	table := pgx.Identifier{s.name, p.table}.Sanitize()
	var exists bool
	if err := conn.QueryRow(ctx, `SELECT to_regclass($1) IS NOT NULL`, table).Scan(&exists); err != nil {
		return status, fmt.Errorf("look for %s: %w", table, err)
	}
	if !exists {
		return status, nil
	}
	if err := conn.QueryRow(ctx, `SELECT coalesce(max(version_id), 0) FROM `+table).Scan(&status.Version); err != nil {
		return status, fmt.Errorf("read the version in %s: %w", table, err)
	}
	return status, nil
}

// latestVersion reads the highest number in the names of a folder's files: 00003_orders.sql is 3.
func latestVersion(files fs.FS) (int64, error) {
	names, err := fs.Glob(files, "*.sql")
	if err != nil {
		return 0, fmt.Errorf("list files: %w", err)
	}
	var latest int64
	for _, name := range names {
		number, _, _ := strings.Cut(path.Base(name), "_")
		version, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the version in the name %s: %w", name, err)
		}
		latest = max(latest, version)
	}
	return latest, nil
}
