package outbox

import (
	"embed"
	"io/fs"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the goose migrations of the outbox, in order, at the root of the file system. Their names are
// unqualified: they create the outbox in the first schema of the search_path. Keep their version table apart from your
// own, for example with goose.WithTableName("outbox_migrations").
func Migrations() fs.FS {
	dir, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the embedded folder has that name
	}
	return dir
}
