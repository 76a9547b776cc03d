package migrations

import (
	"crypto/hmac"
	"crypto/pbkdf2"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
)

// scramIterations is Postgres' own number.
const scramIterations = 4096

// verifier returns what Postgres keeps of a password for SCRAM-SHA-256 (RFC 5803). Made here, it keeps the password itself out
// of the statement and so out of the server's log.
func verifier(password string) (string, error) {
	for _, r := range password {
		// Beyond ASCII a password is normalised first, and clients do not agree on how.
		if r < ' ' || r > '~' {
			return "", errors.New("its password must be of printable ASCII characters")
		}
	}
	salt := make([]byte, 16)
	_, _ = rand.Read(salt) // never fails
	return verifierWith(password, salt)
}

func verifierWith(password string, salt []byte) (string, error) {
	salted, err := pbkdf2.Key(sha256.New, password, salt, scramIterations, sha256.Size)
	if err != nil {
		return "", fmt.Errorf("hash its password: %w", err)
	}
	mac := func(text string) []byte {
		h := hmac.New(sha256.New, salted)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	stored := sha256.Sum256(mac("Client Key"))
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", scramIterations, b64(salt), b64(stored[:]), b64(mac("Server Key"))), nil
}
