package sandbox

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

const (
	maxMail       = 1 << 20
	maxRecipients = 50
)

// mailbox is every mail that was accepted. Bodies stay in the journal.
type mailbox struct {
	journal *journal

	mu    sync.Mutex
	mails []mailEntry
}

type mailEntry struct {
	entry // without its private part
	at    span
}

func (m *mailbox) apply(e entry, at span) {
	e.Private = nil
	m.mails = append(m.mails, mailEntry{e, at})
}

// accept journals a mail and returns when it is on disk.
func (m *mailbox) accept(e entry) error {
	m.mu.Lock()
	at, err := m.journal.append(&e)
	if err == nil {
		m.apply(e, at)
	}
	m.mu.Unlock()
	if err != nil {
		return err
	}
	return m.journal.commit()
}

// mailFilter selects mails; its zero value selects all.
type mailFilter struct{ to, messageID, orderID string }

func (f mailFilter) match(e entry) bool {
	return (f.to == "" || slices.ContainsFunc(e.To, func(to string) bool { return strings.EqualFold(to, f.to) })) &&
		(f.messageID == "" || e.MessageID == f.messageID) &&
		(f.orderID == "" || e.OrderID == f.orderID)
}

// list returns the mails that match, in the order they were accepted.
func (m *mailbox) list(f mailFilter) ([]entry, error) {
	m.mu.Lock()
	found := []entry{}
	for _, e := range m.mails {
		if f.match(e.entry) {
			found = append(found, e.entry)
		}
	}
	m.mu.Unlock()
	return found, m.journal.commit()
}

// fullMail is a mail with its bodies.
type fullMail struct {
	entry
	Text string `json:"text"`
	HTML string `json:"html"`
}

// open returns the mail with the given seq, and false if there is none.
func (m *mailbox) open(seq int64) (fullMail, bool, error) {
	m.mu.Lock()
	i, ok := slices.BinarySearchFunc(m.mails, seq, func(e mailEntry, seq int64) int { return int(e.Seq - seq) })
	var at span
	if ok {
		at = m.mails[i].at
	}
	m.mu.Unlock()
	if !ok {
		return fullMail{}, false, nil
	}
	if err := m.journal.commit(); err != nil {
		return fullMail{}, false, err
	}
	e, err := m.journal.at(at)
	if err != nil {
		return fullMail{}, false, err
	}
	text, html, err := bodies(e.Private.Raw)
	if err != nil {
		return fullMail{}, false, fmt.Errorf("read mail %d: %w", seq, err)
	}
	e.Private = nil
	return fullMail{entry: e, Text: text, HTML: html}, true, nil
}

// smtpSession receives the mails of one SMTP connection.
type smtpSession struct {
	s    *server
	conn *smtp.Conn
	from string
	to   []string
}

func (s *server) newSMTPSession(conn *smtp.Conn) (smtp.Session, error) {
	return &smtpSession{s: s, conn: conn}, nil
}

func (t *smtpSession) Reset()        { t.from, t.to = "", nil }
func (t *smtpSession) Logout() error { return nil }

func (t *smtpSession) Mail(from string, _ *smtp.MailOptions) error {
	t.from = from
	return nil
}

func (t *smtpSession) Rcpt(to string, _ *smtp.RcptOptions) error {
	t.to = append(t.to, to)
	return nil
}

// Data receives one mail. A sender that hangs up before the final dot has not handed the mail over.
func (t *smtpSession) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	e, err := mailEntryOf(raw, t.from, t.to)
	if err != nil {
		return &smtp.SMTPError{Code: 554, EnhancedCode: smtp.EnhancedCode{5, 6, 0}, Message: "This is not a mail"}
	}
	fault := t.s.faults.nextMail()
	switch fault {
	case "451":
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "Try again later"}
	case "550":
		return &smtp.SMTPError{Code: 550, EnhancedCode: smtp.EnhancedCode{5, 7, 1}, Message: "Refused"}
	}
	if err := t.s.mail.accept(e); err != nil {
		t.s.log.Error("mail not journaled", slog.Any("error", err))
		return &smtp.SMTPError{Code: 451, EnhancedCode: smtp.EnhancedCode{4, 3, 0}, Message: "The sandbox is broken"}
	}
	switch fault {
	case faultDrop:
		_ = t.conn.Conn().Close() // that the sender sees an error is the point
	case faultSlow:
		t.s.sleep(nil, t.s.cfg.Slow)
	}
	return nil
}

// mailEntryOf reads what the journal shows of a mail from its headers.
func mailEntryOf(raw []byte, from string, to []string) (entry, error) {
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return entry{}, err
	}
	subject, err := new(mime.WordDecoder).DecodeHeader(msg.Header.Get("Subject"))
	if err != nil {
		subject = msg.Header.Get("Subject")
	}
	order := msg.Header.Get("X-Order-ID")
	return entry{
		Kind: kindMail, Reference: order, OrderID: order, EmailKind: msg.Header.Get("X-Email-Kind"),
		MessageID: bareMessageID(msg.Header.Get("Message-ID")), From: from, To: slices.Clone(to), Subject: subject,
		Private: &private{Raw: raw},
	}, nil
}

func bareMessageID(id string) string { return strings.Trim(strings.TrimSpace(id), "<>") }

// bodies returns the text and the HTML of a mail.
func bodies(raw []byte) (text, html string, err error) {
	msg, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return "", "", err
	}
	parts := map[string]string{}
	if err := collectParts(parts, msg.Header.Get, msg.Body, 0); err != nil {
		return "", "", err
	}
	return parts["text/plain"], parts["text/html"], nil
}

// collectParts adds the first part of each media type to parts.
func collectParts(parts map[string]string, header func(string) string, body io.Reader, depth int) error {
	media, params, err := mime.ParseMediaType(header("Content-Type"))
	if err != nil {
		media = "text/plain" // RFC 2045: what a mail without a usable type is
	}
	if strings.HasPrefix(media, "multipart/") {
		if depth == 5 {
			return errors.New("parts are nested too deeply")
		}
		mr := multipart.NewReader(body, params["boundary"])
		for {
			part, err := mr.NextRawPart()
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
			if err := collectParts(parts, part.Header.Get, part, depth+1); err != nil {
				return err
			}
		}
	}
	switch strings.ToLower(header("Content-Transfer-Encoding")) {
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, body)
	}
	content, err := io.ReadAll(body)
	if err != nil {
		return err
	}
	if _, ok := parts[media]; !ok {
		parts[media] = string(content)
	}
	return nil
}

// smtpServer returns the mail catcher. It takes mail from anybody, without encryption: it only ever listens for tests.
func (s *server) smtpServer() *smtp.Server {
	srv := smtp.NewServer(smtp.BackendFunc(s.newSMTPSession))
	srv.Domain = "sandbox"
	srv.MaxMessageBytes = maxMail
	srv.MaxRecipients = maxRecipients
	srv.ReadTimeout = 5 * time.Minute // RFC 5321, 4.5.3.2.7: a server waits at least so long for a command
	srv.WriteTimeout = 10 * time.Second
	srv.EnableSMTPUTF8 = true
	srv.ErrorLog = slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)
	return srv
}
