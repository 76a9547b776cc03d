package system

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
)

// MailsAt says that mail goes to the mailpit at base, not to the sandbox.
func (c *Client) MailsAt(base string) { c.mails = base }

// mailpit returns the mails that were accepted, as the sandbox's journal would have them: the Message-ID is made of the
// order's id and the email's kind.
func (c *Client) mailpit(ctx context.Context) ([]Entry, error) {
	const page = 500
	var entries []Entry
	for start := 0; ; start += page {
		answer, err := c.do(ctx, http.MethodGet, fmt.Sprintf("%s/api/v1/messages?start=%d&limit=%d", c.mails, start, page), nil, nil)
		if err != nil {
			return nil, err
		}
		var list struct {
			Messages []struct {
				MessageID string
				To        []struct{ Address string }
			}
		}
		if answer.Status != http.StatusOK {
			return nil, fmt.Errorf("list the mails: %d %s", answer.Status, answer.Body)
		}
		if err := json.Unmarshal(answer.Body, &list); err != nil {
			return nil, fmt.Errorf("list the mails: %w", err)
		}
		for _, m := range list.Messages {
			id, _, _ := strings.Cut(m.MessageID, "@")
			order, kind, _ := strings.Cut(id, ".")
			e := Entry{Kind: "mail", Reference: order, EmailKind: kind}
			for _, to := range m.To {
				e.To = append(e.To, to.Address)
			}
			entries = append(entries, e)
		}
		if len(list.Messages) < page {
			return entries, nil
		}
	}
}
