package inbox

import (
	"embed"
	"io/fs"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the goose migrations of the inbox, in order, at the root of the file system. Their names are
// unqualified: they create the inbox in the first schema of the search_path. Keep their version table apart from your
// own, for example with goose.WithTableName("inbox_migrations"). The role that consumes needs SELECT, INSERT, UPDATE
// and DELETE on the four tables.
func Migrations() fs.FS {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the embedded folder has that name
	}
	return dir
}
