package email

import (
	"embed"
	"fmt"
	htmltemplate "html/template"
	"io"
	"strings"
	texttemplate "text/template"
	"unicode"

	"github.com/google/uuid"
	"github.com/wneessen/go-mail"

	"github.com/orderflow-dev/orderflow/internal/money"
)

//go:embed templates
var templateFiles embed.FS

// templates renders emails.
type templates struct {
	text *texttemplate.Template
	html *htmltemplate.Template
}

func parseTemplates() (*templates, error) {
	funcs := map[string]any{"money": money.Format, "line": oneLine, "times": func(a, b int64) int64 { return a * b }}
	text, err := texttemplate.New("").Funcs(funcs).ParseFS(templateFiles, "templates/*.txt")
	if err != nil {
		return nil, fmt.Errorf("parse the text templates: %w", err)
	}
	html, err := htmltemplate.New("").Funcs(funcs).ParseFS(templateFiles, "templates/*.html")
	if err != nil {
		return nil, fmt.Errorf("parse the HTML templates: %w", err)
	}
	return &templates{text, html}, nil
}

// oneLine keeps names from pretending to be lines of their own in the text part.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, s)
}

// view is what templates see.
type view struct {
	content
	OrderID uuid.UUID
	Subject string
}

func subject(kind string, order uuid.UUID) string {
	switch kind {
	case kindConfirmation:
		return fmt.Sprintf("Your order %s is confirmed", order)
	case kindShipped:
		return fmt.Sprintf("Your order %s is on its way", order)
	case kindRefund:
		return fmt.Sprintf("Your order %s is refunded", order)
	}
	return fmt.Sprintf("Your order %s could not be completed", order)
}

// bodies writes the two parts of an email.
func (t *templates) bodies(e *email, text, html io.Writer) error {
	v := view{content: e.Data, OrderID: e.OrderID, Subject: subject(e.Kind, e.OrderID)}
	if err := t.text.ExecuteTemplate(text, e.Kind+".txt", v); err != nil {
		return fmt.Errorf("render the text of a %s: %w", e.Kind, err)
	}
	if err := t.html.ExecuteTemplate(html, e.Kind+".html", v); err != nil {
		return fmt.Errorf("render the HTML of a %s: %w", e.Kind, err)
	}
	return nil
}

// message returns e as a mail from the given sender.
func (t *templates) message(e *email, from string) (*mail.Msg, error) {
	var text, html strings.Builder
	if err := t.bodies(e, &text, &html); err != nil {
		return nil, err
	}
	msg := mail.NewMsg(mail.WithNoDefaultUserAgent())
	if err := msg.From(from); err != nil {
		return nil, fmt.Errorf("sender's address: %w", err)
	}
	if err := msg.To(e.ToAddress); err != nil {
		return nil, errBadAddress // the parser's error would show the address
	}
	msg.Subject(subject(e.Kind, e.OrderID))
	msg.SetMessageIDWithValue(e.MessageID)
	// The date of the event: every try of the email is the same mail.
	msg.SetDateWithValue(e.CreatedAt)
	msg.SetGenHeader("X-Order-ID", e.OrderID.String())
	msg.SetGenHeader("X-Email-Kind", e.Kind)
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: nobody's out-of-office answers it
	msg.SetBodyString(mail.TypeTextPlain, text.String())
	msg.AddAlternativeString(mail.TypeTextHTML, html.String())
	return msg, nil
}
