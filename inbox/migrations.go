package inbox

import (
	"embed"
	"io/fs"
	"slices"
	"strings"
)

//go:embed migrations/*.sql
var migrations embed.FS

//go:embed migrations_anyid/*.sql
var migrationsAnyID embed.FS

// Migrations returns the goose migrations of the inbox, in order, at the root of the file system. Their names are
// unqualified: they create the inbox in the first schema of the search_path. Keep their version table apart from your
// own, for example with goose.WithTableName("inbox_migrations"). The role that consumes needs SELECT, INSERT, UPDATE
// and DELETE on processed_messages, inbox_holds, parked_messages and inbox_paused_consumers, SELECT and INSERT on inbox_audit,
// SELECT on inbox_pauses, and nothing on inbox_edits, which is for the people who act on parked messages.
func Migrations() fs.FS { return sub(migrations, "migrations") }

// MigrationsAnyID returns [Migrations] and one more, for consumers with [Options.AnyID]: it puts an unpartitioned table in
// the place of the ring of processed_messages, and keeps what was remembered. An inbox that has [Migrations] already can be
// given it later; grants on the table must be given again. There is no way back.
func MigrationsAnyID() fs.FS {
	return folders{Migrations(), sub(migrationsAnyID, "migrations_anyid")}
}

func sub(embedded embed.FS, name string) fs.FS {
	dir, err := fs.Sub(embedded, name)
	if err != nil {
		panic(err) // the embedded folder has that name
	}
	return dir
}

// folders is two folders as one.
type folders [2]fs.FS

func (f folders) Open(name string) (fs.File, error) {
	file, err := f[1].Open(name)
	if err != nil || name == "." {
		return f[0].Open(name)
	}
	return file, nil
}

func (f folders) ReadDir(name string) ([]fs.DirEntry, error) {
	var all []fs.DirEntry
	for _, dir := range f {
		entries, err := fs.ReadDir(dir, name)
		if err != nil {
			return nil, err
		}
		all = append(all, entries...)
	}
	slices.SortFunc(all, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	return all, nil
}
