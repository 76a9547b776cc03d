package api

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgxpool"
)

// cursors makes the cursors of lists. A cursor is the place where a page ended, signed together with the list it belongs to:
// one that was made up, changed, or taken from another list is refused instead of giving a page that looks right.
type cursors struct{ secret []byte }

// newCursors reads the secret that all api processes of a database share, so that a cursor is good at each of them.
func newCursors(ctx context.Context, pool *pgxpool.Pool) (cursors, error) {
	var c cursors
	err := pool.QueryRow(ctx, `SELECT secret FROM api_secrets WHERE name = 'cursor'`).Scan(&c.secret)
	if err != nil {
		return cursors{}, fmt.Errorf("read cursor secret: %w", err)
	}
	return c, nil
}

// macBytes of the signature are kept: 80 bits, which nobody guesses over HTTP.
const macBytes = 10

// make returns the cursor of a place in a list.
func (c cursors) make(list, place string) string {
	return base64.RawURLEncoding.EncodeToString(append(c.sign(list, place), place...))
}

// place returns where in the list the cursor points.
func (c cursors) place(list, cursor string) (string, bool) {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(cursor)
	if err != nil || len(raw) <= macBytes {
		return "", false
	}
	place := string(raw[macBytes:])
	return place, hmac.Equal(raw[:macBytes], c.sign(list, place))
}

func (c cursors) sign(list, place string) []byte {
	mac := hmac.New(sha256.New, c.secret)
	mac.Write([]byte(strings.Join([]string{list, place}, "\x00")))
	return mac.Sum(nil)[:macBytes]
}
