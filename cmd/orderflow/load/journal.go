package load

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"
)

// Kinds of journal entries.
const (
	KindRun     = "run"     // a run begins
	KindRequest = "request" // about to be sent
	KindAnswer  = "answer"  // an attempt's answer, or why there is none
	KindOutcome = "outcome" // what the client finally knows of the order
	KindEnd     = "end"     // the run ended by itself; without it the generator was killed
)

// Outcomes of an order, as the client knows them.
const (
	Accepted = "accepted" // a 2xx: the order exists and must never be lost
	Refused  = "refused"  // an answer that no repetition changes: the order must not exist
	Unknown  = "unknown"  // never a definite answer: the order exists at most once
)

// Entry is one line of a journal. Fields that do not apply to its kind are left out.
type Entry struct {
	Kind     string          `json:"kind"`
	At       time.Time       `json:"at"`
	Run      string          `json:"run,omitempty"`
	API      string          `json:"api,omitempty"`
	N        int             `json:"n,omitempty"` // counts the orders of a run from 1
	Key      string          `json:"key,omitempty"`
	Attempt  int             `json:"attempt,omitempty"`
	UserID   string          `json:"user_id,omitempty"`
	Method   string          `json:"payment_method,omitempty"`
	Body     json.RawMessage `json:"body,omitempty"` // as sent, on the first attempt only
	Status   int             `json:"status,omitempty"`
	OrderID  string          `json:"order_id,omitempty"`
	Replayed bool            `json:"replayed,omitempty"`
	Millis   float64         `json:"ms,omitempty"`
	Error    string          `json:"error,omitempty"`
	Outcome  string          `json:"outcome,omitempty"`
	Summary  *Summary        `json:"summary,omitempty"`
}

// Journal appends entries to a file of JSON lines. It is safe for concurrent use; lines that come together share one
// fsync.
type Journal struct {
	file *os.File

	mu       sync.Mutex
	turned   sync.Cond
	pending  []byte
	appended int64 // entries handed in
	durable  int64 // entries on disk
	flushing bool
	err      error
}

// OpenJournal opens or makes the file at path, to append to. A last line that a crash cut off is closed, so that it
// stays one unreadable line and spoils no other.
func OpenJournal(path string) (*Journal, error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	j := &Journal{file: file}
	j.turned.L = &j.mu
	if size, err := file.Seek(0, io.SeekEnd); err == nil && size > 0 {
		last := make([]byte, 1)
		if _, err := file.ReadAt(last, size-1); err == nil && last[0] != '\n' {
			j.pending = append(j.pending, '\n')
		}
	}
	return j, nil
}

// Append writes one entry and returns once it is on disk. After a failure every later call fails too: a journal with
// holes proves nothing. On a nil Journal it does nothing.
func (j *Journal) Append(e Entry) error {
	if j == nil {
		return nil
	}
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode journal entry: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pending = append(append(j.pending, line...), '\n')
	j.appended++
	mine := j.appended
	for j.durable < mine && j.err == nil {
		if j.flushing {
			j.turned.Wait()
			continue
		}
		j.flush()
	}
	return j.err
}

// flush writes what is pending, for everyone who waits. It gives the lock up while the disk works.
func (j *Journal) flush() {
	lines, upTo := j.pending, j.appended
	j.pending, j.flushing = nil, true
	j.mu.Unlock()
	_, err := j.file.Write(lines)
	if err == nil {
		err = j.file.Sync()
	}
	j.mu.Lock()
	j.flushing, j.durable = false, upTo
	if err != nil {
		j.err = fmt.Errorf("write journal: %w", err)
	}
	j.turned.Broadcast()
}

// Close closes the file. Nothing may be appended afterwards.
func (j *Journal) Close() error {
	if j == nil {
		return nil
	}
	return errors.Join(j.err, j.file.Close())
}
