package migrations

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// DevRolePassword is the password of the roles in development and tests. It is public: nothing but those may use it.
const DevRolePassword = "orderflow-dev-only" //nolint:gosec // public on purpose

// RoleURL returns ownerURL with the role and its password in place of the owner's.
func RoleURL(ownerURL, role, password string) (string, error) {
	u, err := url.Parse(ownerURL)
	if err != nil || (u.Scheme != "postgres" && u.Scheme != "postgresql") {
		// The parser's message would repeat the URL and the password in it.
		return "", errors.New("read the owner's URL: it must look like postgres://user:password@host:5432/database")
	}
	u.User = url.UserPassword(role, password)
	return u.String(), nil
}

// ensureRoles creates the roles of a schema. Roles belong to the whole server, so migrations of two databases of one
// server meet here, outside each other's lock.
func ensureRoles(ctx context.Context, conn *pgx.Conn, s schema, password string) error {
	for _, role := range []string{s.role(), s.relayRole()} {
		for attempt := 1; ; attempt++ {
			err := ensureRole(ctx, conn, role, s.name, password)
			if err == nil {
				break
			}
			if attempt == 10 || !concurrentChange(err) {
				return fmt.Errorf("create role %s: %w", role, err)
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("create role %s: %w", role, ctx.Err())
			case <-time.After(time.Duration(attempt) * 10 * time.Millisecond):
			}
		}
	}
	return nil
}

func ensureRole(ctx context.Context, conn *pgx.Conn, role, schemaName, password string) error {
	var exists, path bool
	err := conn.QueryRow(ctx, `
		SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1),
			EXISTS (SELECT FROM pg_roles WHERE rolname = $1 AND 'search_path=' || $2 = ANY (rolconfig))`,
		role, schemaName).Scan(&exists, &path)
	if err != nil {
		return fmt.Errorf("look for it: %w", err)
	}
	if !exists && password == "" {
		return errors.New("it does not exist and no password is set for it")
	}
	name := pgx.Identifier{role}.Sanitize()
	if !exists {
		if _, err := conn.Exec(ctx, `CREATE ROLE `+name+` LOGIN`); err != nil {
			return err
		}
	}
	if password != "" {
		// Statements about roles take no parameters. A verifier holds nothing that has to be quoted.
		kept, err := verifier(password)
		if err != nil {
			return err
		}
		if _, err := conn.Exec(ctx, `ALTER ROLE `+name+` LOGIN PASSWORD '`+kept+`'`); err != nil {
			return err
		}
	}
	// On the role and not in the connection, so that unqualified names resolve behind a pooler too.
	if !path {
		if _, err := conn.Exec(ctx, `ALTER ROLE `+name+` SET search_path = `+pgx.Identifier{schemaName}.Sanitize()); err != nil {
			return err
		}
	}
	return nil
}

// concurrentChange reports whether err says that another session changed the same role at the same moment.
func concurrentChange(err error) bool {
	pgErr, ok := errors.AsType[*pgconn.PgError](err)
	if !ok {
		return false
	}
	switch pgErr.Code {
	case "42710", "23505": // both created it: "already exists", or the unique index of the catalog
		return true
	case "XX000": // "tuple concurrently updated"
		return true
	}
	return false
}

// grantLibraries gives the service's role and the relay's what they need of the libraries' tables. It runs with every
// [Up], so that a table which a newer library brings is covered.
func grantLibraries(ctx context.Context, conn *pgx.Conn, s schema) error {
	statements := []string{
		fmt.Sprintf(`GRANT USAGE ON SCHEMA %s TO %s, %s`, s.name, s.role(), s.relayRole()),
		fmt.Sprintf(`SELECT %s.outbox_grant(%s, %s)`, s.name, quote(s.role()), quote(s.relayRole())),
		fmt.Sprintf(`GRANT SELECT, INSERT, UPDATE, DELETE ON %[1]s.processed_messages, %[1]s.inbox_holds, %[1]s.parked_messages TO %[2]s`, s.name, s.role()),
		fmt.Sprintf(`GRANT SELECT, INSERT, UPDATE, DELETE ON %[1]s.inbox_paused_consumers TO %[2]s`, s.name, s.role()),
		fmt.Sprintf(`GRANT SELECT ON %s.inbox_pauses TO %s`, s.name, s.role()),
		// What people did is written down for good.
		fmt.Sprintf(`GRANT SELECT, INSERT ON %s.inbox_audit TO %s`, s.name, s.role()),
	}
	if s.uses("saga") {
		statements = append(statements,
			fmt.Sprintf(`GRANT SELECT, INSERT, UPDATE, DELETE ON %[1]s.saga_lanes, %[1]s.saga_instances, %[1]s.saga_journal TO %[2]s`, s.name, s.role()),
			fmt.Sprintf(`GRANT SELECT, INSERT ON %s.saga_audit TO %s`, s.name, s.role()))
	}
	for _, statement := range statements {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("grant the tables of the libraries in schema %s: %w", s.name, err)
		}
	}
	return nil
}

// quote makes a literal of one of our own role names, which hold no quotes.
func quote(name string) string { return "'" + name + "'" }
