package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/mail"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/emersion/go-smtp"
)

type address struct {
	Name    string
	Address string
}

// message is mailpit's summary of a mail.
type message struct {
	ID        string
	MessageID string
	From      address
	To        []address
	Subject   string
	Created   time.Time
	Size      int
}

// mailbox keeps what was accepted, each mail as a line of JSON that is on disk before SMTP says so.
type mailbox struct {
	mu   sync.Mutex
	all  []message
	file *os.File
}

// openMailbox reads the mails kept at path; with "" they are kept in memory only.
func openMailbox(path string) (*mailbox, error) {
	box := &mailbox{}
	if path == "" {
		return box, nil
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the mailbox: %w", err)
	}
	raw, err := io.ReadAll(file)
	if err != nil {
		return nil, fmt.Errorf("read the mailbox: %w", err)
	}
	whole := int64(bytes.LastIndexByte(raw, '\n') + 1) // what is behind it was never answered for
	for line := range bytes.Lines(raw[:whole]) {
		var m message
		if err := json.Unmarshal(line, &m); err != nil {
			return nil, fmt.Errorf("read the mailbox: %w", err)
		}
		box.all = append(box.all, m)
	}
	if err := file.Truncate(whole); err != nil {
		return nil, fmt.Errorf("cut the mailbox's torn tail: %w", err)
	}
	box.file = file
	return box, nil
}

func (b *mailbox) close() {
	if b.file != nil {
		_ = b.file.Close() // each mail is synced
	}
}

func (b *mailbox) add(m message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	m.ID = strconv.Itoa(len(b.all) + 1)
	if b.file != nil {
		line, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if _, err := b.file.Write(append(line, '\n')); err != nil {
			return err
		}
		if err := b.file.Sync(); err != nil {
			return err
		}
	}
	b.all = append(b.all, m)
	return nil
}

// find returns the mails that match, the latest first.
func (b *mailbox) find(match func(message) bool) []message {
	b.mu.Lock()
	defer b.mu.Unlock()
	found := []message{}
	for _, m := range slices.Backward(b.all) {
		if match(m) {
			found = append(found, m)
		}
	}
	return found
}

// session takes one mail after the other over one connection.
type session struct {
	box *mailbox
	to  []address
}

func (s *session) Mail(string, *smtp.MailOptions) error { return nil }
func (s *session) Rcpt(to string, _ *smtp.RcptOptions) error {
	s.to = append(s.to, address{Address: to})
	return nil
}
func (s *session) Reset()        { s.to = nil }
func (s *session) Logout() error { return nil }

func (s *session) Data(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	parsed, err := mail.ReadMessage(bytes.NewReader(raw))
	if err != nil {
		return &smtp.SMTPError{Code: 554, Message: "not a mail"}
	}
	m := message{
		MessageID: strings.Trim(parsed.Header.Get("Message-Id"), "<> "), To: s.to,
		Subject: parsed.Header.Get("Subject"), Created: time.Now().UTC(), Size: len(raw),
	}
	if from, err := mail.ParseAddress(parsed.Header.Get("From")); err == nil {
		m.From = address{from.Name, from.Address}
	}
	return s.box.add(m)
}
