// Package postgres opens the pools that services work with, and tells an outage from a mistake.
package postgres

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/await"
)

// ErrUnreachable is returned by [Open] when Postgres does not answer or refuses to.
var ErrUnreachable = errors.New("postgres is not reachable")

// Options says how a service uses its pool. The zero value is right for one that serves requests.
type Options struct {
	// ApplicationName is what pg_stat_activity shows. Default "orderflow".
	ApplicationName string
	// MaxConns is the most connections the pool opens. Default 10.
	MaxConns int32
	// StatementTimeout ends a statement that runs longer. Default 15 s, negative: none.
	StatementTimeout time.Duration
	// LockTimeout ends a statement that waits longer for a lock. Default 5 s, negative: none.
	LockTimeout time.Duration
	// IdleInTransactionTimeout cuts a session that holds a transaction open and does nothing. It bounds how long a frozen
	// process keeps its locks, so another one waits no longer than this. Default 10 s, negative: none.
	IdleInTransactionTimeout time.Duration
	// Wait is how long Open waits for a Postgres that is not there yet. Default nil: one try.
	Wait *await.Patience
	// ConnectTimeout bounds one try. Default 5 s.
	ConnectTimeout time.Duration
}

func (o Options) withDefaults() Options {
	set := func(d *time.Duration, value time.Duration) {
		if *d == 0 {
			*d = value
		}
	}
	set(&o.StatementTimeout, 15*time.Second)
	set(&o.LockTimeout, 5*time.Second)
	set(&o.IdleInTransactionTimeout, 10*time.Second)
	set(&o.ConnectTimeout, 5*time.Second)
	if o.ApplicationName == "" {
		o.ApplicationName = "orderflow"
	}
	if o.MaxConns == 0 {
		o.MaxConns = 10
	}
	return o
}

// Open returns a pool that has connected once. The caller closes it. The error of a Postgres that does not answer wraps
// [ErrUnreachable].
//
// Settings in the URL win over opts. Queries run as prepared statements, which halves what they cost Postgres. Behind
// PgBouncer in transaction mode, where the next transaction may be on another session, add
// default_query_exec_mode=cache_describe to the URL. The timeouts travel as startup parameters, which PgBouncer refuses
// unless they are in its ignore_startup_parameters; it then drops them, and they belong on the role (ALTER ROLE … SET).
func Open(ctx context.Context, url string, opts Options) (*pgxpool.Pool, error) {
	opts = opts.withDefaults()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		// pgx's message repeats the URL with the password struck out.
		return nil, fmt.Errorf("read the Postgres URL: %w", err)
	}
	// pgxpool's own default depends on the machine, so its presence in the URL is the only way to tell it from a wish.
	if !strings.Contains(url, "pool_max_conns") {
		config.MaxConns = opts.MaxConns
	}
	opts.apply(config)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("set up the Postgres pool: %w", err)
	}
	if err := connect(ctx, pool, opts.Wait); err != nil {
		pool.Close()
		return nil, err
	}
	return pool, nil
}

func (o Options) apply(config *pgxpool.Config) {
	conn := config.ConnConfig
	if conn.ConnectTimeout == 0 {
		conn.ConnectTimeout = o.ConnectTimeout
	}
	config.MaxConnLifetimeJitter = config.MaxConnLifetime / 10
	param := func(name, value string) {
		if _, set := conn.RuntimeParams[name]; !set {
			conn.RuntimeParams[name] = value
		}
	}
	timeout := func(name string, d time.Duration) {
		if d > 0 {
			param(name, strconv.FormatInt(d.Milliseconds(), 10))
		}
	}
	param("application_name", o.ApplicationName)
	timeout("statement_timeout", o.StatementTimeout)
	timeout("lock_timeout", o.LockTimeout)
	timeout("idle_in_transaction_session_timeout", o.IdleInTransactionTimeout)
}

// connect connects once. A wrong password or database is not waited for.
func connect(ctx context.Context, pool *pgxpool.Pool, patience *await.Patience) error {
	return patience.For(ctx, "postgres", func(ctx context.Context) error {
		if err := pool.Ping(ctx); err != nil {
			return unreachable(pool.Config().ConnConfig, err)
		}
		return nil
	}, Outage)
}
