package email

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
)

// errNoLookup means that a provider cannot be asked.
var errNoLookup = errors.New("the provider has no look-up")

const messageIDHole = "{message_id}"

// lookupFor returns the address that asks for a Message-ID.
func lookupFor(base, messageID string) (string, error) {
	if strings.Contains(base, messageIDHole) {
		base = strings.ReplaceAll(base, messageIDHole, url.QueryEscape(messageID))
		messageID = ""
	}
	u, err := url.Parse(base)
	if err != nil || u.Host == "" {
		// Not quoted: its query may hold a key.
		return "", errors.New("the look-up's address is not a URL, such as https://provider.example/messages")
	}
	if messageID != "" {
		q := u.Query()
		q.Set("message_id", messageID)
		u.RawQuery = q.Encode()
	}
	return u.String(), nil
}

// has asks p whether it has accepted the mail with a Message-ID. Only a clear yes or no is an answer.
func (p *provider) has(ctx context.Context, messageID string) (bool, error) {
	if p.lookupURL == "" {
		return false, errNoLookup
	}
	address, err := lookupFor(p.lookupURL, messageID)
	if err != nil {
		return false, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return false, fmt.Errorf("ask the mail provider: %w", withoutQuery(err))
	}
	resp, err := p.http.Do(req)
	if err != nil {
		return false, fmt.Errorf("ask the mail provider: %w", withoutQuery(err))
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	if err != nil {
		return false, fmt.Errorf("ask the mail provider: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return false, fmt.Errorf("ask the mail provider: it answered %d", resp.StatusCode)
	}
	return parseFound(body)
}

// withoutQuery returns err without the query and the password of the address that it quotes: the error is logged and kept with
// the email, and either may be a key of the provider's.
func withoutQuery(err error) error {
	quoting, ok := errors.AsType[*url.Error](err)
	if !ok {
		return err
	}
	u, parseErr := url.Parse(quoting.URL)
	if parseErr != nil {
		return fmt.Errorf("%s: %w", quoting.Op, quoting.Err)
	}
	return fmt.Errorf("%s %s://%s%s: %w", quoting.Op, u.Scheme, u.Host, u.EscapedPath(), quoting.Err)
}

func parseFound(body []byte) (bool, error) {
	var list []json.RawMessage
	if err := json.Unmarshal(body, &list); err == nil && list != nil {
		return len(list) > 0, nil
	}
	var object struct {
		Messages []json.RawMessage `json:"messages"`
	}
	if err := json.Unmarshal(body, &object); err == nil && object.Messages != nil {
		return len(object.Messages) > 0, nil
	}
	return false, errors.New("ask the mail provider: the answer is neither an array nor an object with messages")
}
