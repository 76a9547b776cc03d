package api

import (
	"context"
	"crypto/rand"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// StoredKey is what is known of an API key: everything but its secret.
type StoredKey struct {
	// ID is the beginning of the secret's hash, enough to tell keys apart.
	ID        string
	Name      string
	Role      Role
	UserID    string // of a user key
	CreatedAt time.Time
	RevokedAt *time.Time
}

// NewSecret returns a random secret for [AddKey].
func NewSecret() string { return "ofk_" + rand.Text() }

// Keys returns all keys by name, the revoked ones included.
func Keys(ctx context.Context, owner interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}) ([]StoredKey, error) {
	rows, _ := owner.Query(ctx, `
		SELECT left(encode(hash, 'hex'), 12), name, role, coalesce(user_id, ''), created_at, revoked_at
		FROM orders.api_keys
		ORDER BY name, created_at`) // CollectRows reports the error
	keys, err := pgx.CollectRows(rows, pgx.RowToStructByPos[StoredKey])
	if err != nil {
		return nil, fmt.Errorf("read api keys: %w", err)
	}
	return keys, nil
}

// RevokeKey ends a key by its [StoredKey.ID]. The api goes on accepting it for 2 s at most. It reports false when another
// call has revoked the key before.
func RevokeKey(ctx context.Context, owner interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, id string) (bool, error) {
	tag, err := owner.Exec(ctx, `
		UPDATE orders.api_keys
		SET revoked_at = now()
		WHERE left(encode(hash, 'hex'), 12) = $1 AND revoked_at IS NULL`, id)
	if err != nil {
		return false, fmt.Errorf("revoke api key %s: %w", id, err)
	}
	return tag.RowsAffected() > 0, nil
}
