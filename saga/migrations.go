package saga

import (
	"embed"
	"io/fs"
)

//go:embed migrations/*.sql
var migrations embed.FS

// Migrations returns the goose migrations of the saga tables, at the root of the file system. The names in them are
// unqualified: they land in the first schema of the search_path that they are run with.
func Migrations() fs.FS {
	sub, err := fs.Sub(migrations, "migrations")
	if err != nil {
		panic(err) // the name is a constant that the embed directive holds true
	}
	return sub
}
