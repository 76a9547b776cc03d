package outbox

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// writersSQL selects the roles that may write messages, and are neither superusers nor the owner, who may do anything.
func (e *examination) writersSQL() string {
	return `
		SELECT r.oid, r.rolname
		FROM pg_roles r
		JOIN pg_class c ON c.oid = '` + e.table("outbox") + `'::regclass
		WHERE NOT r.rolsuper AND r.rolname NOT LIKE 'pg\_%' AND NOT pg_has_role(r.oid, c.relowner, 'USAGE')
			AND has_column_privilege(r.oid, c.oid, 'payload', 'INSERT')`
}

// commits looks for writers whose transactions Postgres reports as committed before they are. Which of the settings
// counts is as in process_settings of Postgres' postinit.c: of the role in the database, of the role, of the database,
// of all roles, of the server.
func (e *examination) commits(ctx context.Context) error {
	rows, err := e.pool.Query(ctx, `
		WITH writer AS (`+e.writersSQL()+`
		), here AS (
			SELECT oid FROM pg_database WHERE datname = current_database()
		), setting AS (
			SELECT setdatabase, setrole, split_part(config, '=', 2) AS value
			FROM pg_db_role_setting
			CROSS JOIN unnest(setconfig) AS config
			WHERE config LIKE 'synchronous_commit=%'
			UNION ALL
			-- The server's. A setting of this very session hides it.
			SELECT NULL, NULL, CASE WHEN source IN ('default', 'configuration file', 'command line') THEN reset_val END
			FROM pg_settings
			WHERE name = 'synchronous_commit'
		)
		SELECT w.rolname, effective.*
		FROM writer w
		CROSS JOIN here
		CROSS JOIN LATERAL (
			SELECT CASE
					WHEN s.setrole = w.oid AND s.setdatabase = here.oid
						THEN format('ALTER ROLE %I IN DATABASE %I RESET synchronous_commit', w.rolname, current_database())
					WHEN s.setrole = w.oid THEN format('ALTER ROLE %I RESET synchronous_commit', w.rolname)
					WHEN s.setdatabase = here.oid THEN format('ALTER DATABASE %I RESET synchronous_commit', current_database())
					WHEN s.setrole = 0 THEN 'ALTER ROLE ALL RESET synchronous_commit'
					ELSE 'set synchronous_commit = on in the server''s configuration'
				END AS mend,
				lower(s.value) IN ('off', 'false', 'no', '0') AS asynchronous
			FROM setting s
			WHERE s.setrole IS NULL OR s.setrole IN (0, w.oid) AND s.setdatabase IN (0, here.oid)
			ORDER BY s.setrole DESC NULLS LAST, s.setdatabase DESC
			LIMIT 1
		) effective
		ORDER BY w.rolname`)
	if err != nil {
		return err
	}
	var (
		role, mend   string
		asynchronous *bool
		durable      []string
		found        int
	)
	_, err = pgx.ForEachRow(rows, []any{&role, &mend, &asynchronous}, func() error {
		if asynchronous != nil && !*asynchronous {
			durable = append(durable, role)
			return nil
		}
		found++
		if asynchronous == nil {
			e.found(Warn, fmt.Sprintf("how role %s commits cannot be seen from a session with its own synchronous_commit", role),
				"with off, a crash of Postgres can take back what was published", "examine as another role")
			return nil
		}
		e.found(Warn, fmt.Sprintf("role %s commits with synchronous_commit = off", role),
			"a message can be published whose transaction a crash of Postgres then takes back",
			mend+", then restart the writers: connections keep the setting they began with")
		return nil
	})
	switch {
	case err != nil:
		return err
	case len(durable) > 0:
		e.ok("commits of %s are durable, unless a session says otherwise", strings.Join(durable, ", "))
	case found == 0:
		e.ok("no role but the owner and superusers writes")
	}
	return nil
}

// grants looks for writers that could break the order or the cursor, or read what others wrote.
func (e *examination) grants(ctx context.Context) error {
	rows, err := e.pool.Query(ctx, `
		WITH writer AS (`+e.writersSQL()+`
		), ring AS (
			SELECT inhrelid AS rel FROM pg_inherits WHERE inhparent = '`+e.table("outbox")+`'::regclass
			UNION ALL
			SELECT '`+e.table("outbox")+`'::regclass
		), state AS (
			SELECT unnest(ARRAY['`+e.table("outbox_lease")+`', '`+e.table("outbox_cursor")+`', '`+e.table("outbox_parked")+`'])::regclass AS rel
		)
		SELECT w.rolname, array_remove(ARRAY[
			CASE WHEN bool_or(has_column_privilege(w.oid, rel, 'txid', 'INSERT')) THEN 'set txid' END,
			CASE WHEN bool_or(has_column_privilege(w.oid, rel, 'seq', 'INSERT')) THEN 'set seq' END,
			CASE WHEN bool_or(has_column_privilege(w.oid, rel, 'slot', 'INSERT')) THEN 'set slot' END,
			CASE WHEN has_sequence_privilege(w.oid, '`+e.table("outbox_seq_seq")+`', 'UPDATE') THEN 'set the sequence' END,
			CASE WHEN bool_or(has_any_column_privilege(w.oid, rel, 'SELECT')) THEN 'read messages' END,
			CASE WHEN bool_or(has_any_column_privilege(w.oid, rel, 'UPDATE')) THEN 'change messages' END,
			CASE WHEN bool_or(has_table_privilege(w.oid, rel, 'DELETE')) THEN 'delete messages' END,
			CASE WHEN bool_or(has_table_privilege(w.oid, rel, 'TRUNCATE')) THEN 'truncate the ring' END,
			CASE WHEN (SELECT bool_or(has_table_privilege(w.oid, s.rel, 'INSERT, UPDATE, DELETE, TRUNCATE')) FROM state s)
				THEN 'change what relays keep' END
		], NULL)
		FROM writer w
		CROSS JOIN ring
		GROUP BY w.oid, w.rolname
		ORDER BY w.rolname`)
	if err != nil {
		return err
	}
	var (
		role string
		can  []string
		good []string
		bad  int
	)
	_, err = pgx.ForEachRow(rows, []any{&role, &can}, func() error {
		if len(can) == 0 {
			good = append(good, role)
			return nil
		}
		bad++
		e.found(Fail, fmt.Sprintf("writer %s may %s", role, strings.Join(can, ", ")),
			"order and completeness rest on the values that Postgres gives; other services' messages are not a writer's to read",
			fmt.Sprintf("REVOKE ALL on the tables and the sequence of the outbox FROM %[1]s, then SELECT %[2]s('%[1]s', NULL)",
				role, e.table("outbox_grant")))
		return nil
	})
	switch {
	case err != nil:
		return err
	case len(good) > 0:
		e.ok("%s may add messages and nothing else", strings.Join(good, ", "))
	case bad == 0:
		e.found(Warn, "no role but the owner and superusers may write", "who writes as one of them may also number, change and delete messages",
			fmt.Sprintf("give services a role of their own: SELECT %s('writer', 'relay')", e.table("outbox_grant")))
	}
	return nil
}
