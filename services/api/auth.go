package api

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
)

// DevKey is the service key that `orderflow dev` creates. It is public: no other installation may have it.
const DevKey = "orderflow-dev-service-key"

// Role says what an API key may do.
type Role string

// A service key acts for every user, a user key for its own user only.
const (
	RoleService Role = "service"
	RoleUser    Role = "user"
)

// Key is an API key to be added. UserID is set for user keys only. Name says whose it is, for the operator.
type Key struct {
	Secret string
	Role   Role
	UserID string
	Name   string
}

// minKeyLength is what makes a guess hopeless for a random key.
const minKeyLength = 20

// AddKey stores a key's hash, so that [Run] accepts the key. owner is a connection of the schema's owner: the api's own
// role may read keys but not add any. A key that is there already is left as it is, also when it was revoked.
func AddKey(ctx context.Context, owner interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
}, key Key) error {
	if len(key.Secret) < minKeyLength {
		return fmt.Errorf("add api key %s: it has %d characters, fewer than %d", key.Name, len(key.Secret), minKeyLength)
	}
	hash := sha256.Sum256([]byte(key.Secret))
	_, err := owner.Exec(ctx, `
		INSERT INTO orders.api_keys (hash, role, user_id, name)
		VALUES ($1, $2, nullif($3, ''), $4)
		ON CONFLICT DO NOTHING`, hash[:], string(key.Role), key.UserID, key.Name)
	if err != nil {
		return fmt.Errorf("add api key %s: %w", key.Name, err)
	}
	return nil
}

// principal is who a request comes from.
type principal struct {
	role   Role
	userID string // of a user key
	name   string // of the key
	key    [sha256.Size]byte
}

// mayAct reports whether p may act for a user.
func (p principal) mayAct(userID string) bool { return p.role == RoleService || p.userID == userID }

// keyTTL is how long a key is believed without asking again, and so how long a revoked one still works, and one that was
// tried before it was added does not.
const keyTTL = 2 * time.Second

// maxCachedKeys bounds the memory that valid keys can take.
const maxCachedKeys = 10_000

// keyring finds the principal of a key.
type keyring struct {
	pool      *pgxpool.Pool
	gate      slots
	strangers *strangers

	mu    sync.Mutex
	found map[[sha256.Size]byte]keyEntry // also those that have to be looked up again
}

type keyEntry struct {
	principal principal
	until     time.Time
}

func newKeyring(pool *pgxpool.Pool, gate slots) *keyring {
	return &keyring{pool: pool, gate: gate, strangers: newStrangers(gate), found: map[[sha256.Size]byte]keyEntry{}}
}

// bearer returns the key of a request. More than one Authorization header, or another scheme, is no key.
func bearer(r *http.Request) (string, bool) {
	headers := r.Header["Authorization"]
	if len(headers) != 1 {
		return "", false
	}
	scheme, key, ok := strings.Cut(headers[0], " ")
	if !ok || !strings.EqualFold(scheme, "Bearer") || len(key) < minKeyLength || len(key) > 256 {
		return "", false
	}
	return key, true
}

// identify returns whose key it is that a request from some place brings. Its errors are problems, or come from the database.
func (k *keyring) identify(ctx context.Context, key string, from netip.Prefix) (principal, error) {
	hash := sha256.Sum256([]byte(key))
	now := time.Now()
	k.mu.Lock()
	entry, seen := k.found[hash]
	k.mu.Unlock()
	if seen && now.Before(entry.until) {
		return entry.principal, nil
	}
	if !seen {
		leave, err := k.strangers.enter(hash, from, now)
		if err != nil {
			return principal{}, err
		}
		defer leave()
	}
	leave, err := k.gate.enter()
	if err != nil {
		return principal{}, err
	}
	defer leave()
	p, known, err := k.lookUp(ctx, hash)
	if err != nil {
		return principal{}, err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if !known {
		delete(k.found, hash)
		k.strangers.refuse(hash, from, now)
		return principal{}, unauthorized()
	}
	if len(k.found) >= maxCachedKeys {
		clear(k.found)
	}
	k.found[hash] = keyEntry{principal: p, until: now.Add(keyTTL)}
	return p, nil
}

func (k *keyring) lookUp(ctx context.Context, hash [sha256.Size]byte) (p principal, known bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	var stored []byte
	err = k.pool.QueryRow(ctx, `
		SELECT hash, role, coalesce(user_id, ''), name
		FROM api_keys
		WHERE hash = $1 AND revoked_at IS NULL`, hash[:]).Scan(&stored, &p.role, &p.userID, &p.name)
	if errors.Is(err, pgx.ErrNoRows) {
		return principal{}, false, nil
	}
	if err != nil {
		return principal{}, false, fmt.Errorf("look up api key: %w", err)
	}
	p.key = hash
	// An index compares byte by byte and stops at the first difference; this comparison does not.
	return p, subtle.ConstantTimeCompare(stored, hash[:]) == 1, nil
}
