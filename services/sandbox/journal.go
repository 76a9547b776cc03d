package sandbox

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/orderflow-dev/orderflow/internal/filelock"
)

const journalFile = "journal.jsonl"

// The kinds of entry. The first four are what happened to money and mail and are what the public journal shows; the
// others are what else the provider must remember.
const (
	kindCharge = "charge"
	kindRefund = "refund"
	kindCancel = "cancel"
	kindMail   = "mail"

	kindIntent  = "intent"  // an intent was created
	kindDecline = "decline" // a confirm was declined
	kindError   = "error"   // pm_error_once or pm_refund_timeout_once has had its one error

	kindDelivered = "delivered" // the receiver of webhooks has taken an event
)

// entry is one line of the journal.
type entry struct {
	Seq            int64     `json:"seq"`
	At             time.Time `json:"at"`
	Kind           string    `json:"kind"`
	Reference      string    `json:"reference,omitempty"` // the order's id
	PaymentIntent  string    `json:"payment_intent,omitempty"`
	Refund         string    `json:"refund,omitempty"`
	Amount         int64     `json:"amount,omitempty"`
	Currency       string    `json:"currency,omitempty"`
	PaymentMethod  string    `json:"payment_method,omitempty"`
	IdempotencyKey string    `json:"idempotency_key,omitempty"`
	MessageID      string    `json:"message_id,omitempty"` // without its angle brackets
	From           string    `json:"from,omitempty"`
	To             []string  `json:"to,omitempty"`
	Subject        string    `json:"subject,omitempty"`
	OrderID        string    `json:"order_id,omitempty"`
	EmailKind      string    `json:"email_kind,omitempty"`
	Private        *private  `json:"private,omitempty"`
}

// private is the part of an entry that the public journal leaves out.
type private struct {
	RequestHash string  `json:"request_hash,omitempty"`
	Answer      *answer `json:"answer,omitempty"`
	Event       string  `json:"event,omitempty"` // id of the webhook that tells of the entry, if one does
	Raw         []byte  `json:"raw,omitempty"`   // the mail as it was received
}

// public reports whether e belongs into the public journal, and returns what of it is shown there.
func (e entry) public() (entry, bool) {
	e.Private = nil
	switch e.Kind {
	case kindCharge, kindRefund, kindCancel, kindMail:
		return e, true
	}
	return e, false
}

// errJournalBroken is what every request is told after a write or sync failed: what the disk holds is unknown then, and
// a later sync that succeeds proves nothing about the earlier one.
var errJournalBroken = errors.New("journal is broken")

var errJournalClosed = errors.New("journal is closed")

// span is where an entry's line lies in the file.
type span struct {
	off int64
	len int
}

// journal is an append-only file of entries. An entry counts once [journal.commit] has returned for it; entries that are
// appended while a sync is under way share the next one.
type journal struct {
	file *os.File

	mu      sync.Mutex
	synced  *sync.Cond
	buf     []byte // lines not yet handed to the file
	seq     int64  // of the last appended entry
	durable int64  // of the last entry on disk
	size    int64  // bytes on disk
	end     int64  // bytes on disk and in buf, and in the write under way
	syncing bool
	err     error
	failed  chan struct{} // closed when err is set
}

// openJournal opens or creates the journal in dir and calls apply with each of its entries, in order. A torn tail, left
// by a crash in the middle of a write, was never answered for and is cut off. The caller closes the journal.
func openJournal(dir string, log *slog.Logger, apply func(entry, span) error) (*journal, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("create the sandbox's data directory: %w", err)
	}
	file, err := os.OpenFile(filepath.Join(dir, journalFile), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the journal: %w", err)
	}
	j := &journal{file: file, failed: make(chan struct{})}
	j.synced = sync.NewCond(&j.mu)
	if err := j.load(log, apply); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return j, nil
}

func (j *journal) load(log *slog.Logger, apply func(entry, span) error) error {
	// Two sandboxes on one journal would each miss what the other answered for.
	if err := filelock.TryLock(j.file); err != nil {
		return fmt.Errorf("lock the journal, which another sandbox may be using: %w", err)
	}
	good, torn, err := j.read(apply)
	if err != nil {
		return err
	}
	if torn > 0 {
		log.Warn("journal had a torn tail", slog.Int64("bytes", torn))
		if err := j.file.Truncate(good); err != nil {
			return fmt.Errorf("cut the journal's torn tail: %w", err)
		}
	}
	if _, err := j.file.Seek(good, io.SeekStart); err != nil {
		return fmt.Errorf("seek in the journal: %w", err)
	}
	// What was read may still be in the page cache only, and is about to be answered for.
	if err := j.file.Sync(); err != nil {
		return fmt.Errorf("sync the journal: %w", err)
	}
	if err := syncDir(filepath.Dir(j.file.Name())); err != nil {
		return err
	}
	j.size, j.end, j.durable = good, good, j.seq
	return nil
}

// read applies every whole line and returns the length of what is good and of the torn tail behind it.
func (j *journal) read(apply func(entry, span) error) (good, torn int64, err error) {
	r := bufio.NewReaderSize(j.file, 1<<16)
	for {
		line, readErr := r.ReadBytes('\n')
		if readErr != nil && readErr != io.EOF {
			return 0, 0, fmt.Errorf("read the journal: %w", readErr)
		}
		if len(line) == 0 {
			return good, 0, nil
		}
		var e entry
		if bad := json.Unmarshal(line, &e); bad != nil || readErr == io.EOF || e.Seq != j.seq+1 {
			rest, err := io.Copy(io.Discard, r)
			if err != nil {
				return 0, 0, fmt.Errorf("read the journal: %w", err)
			}
			if rest > 0 || bad == nil && readErr == nil {
				// A whole line that is out of order, or lines behind a bad one: no torn write looks like that, and what
				// may have been answered for is not cut.
				return 0, 0, fmt.Errorf("journal %s is damaged at byte %d, behind entry %d", j.file.Name(), good, j.seq)
			}
			return good, int64(len(line)), nil
		}
		if err := apply(e, span{good, len(line)}); err != nil {
			return 0, 0, fmt.Errorf("journal entry %d: %w", e.Seq, err)
		}
		j.seq = e.Seq
		good += int64(len(line))
	}
}

// append gives e its number and time and queues it for the disk. The caller holds the lock of the state that e changes,
// so entries about one thing are in the order they happened; it must not answer for e before commit has returned.
func (j *journal) append(e *entry) (span, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.err != nil {
		return span{}, j.err
	}
	e.Seq, e.At = j.seq+1, time.Now().UTC()
	line, err := json.Marshal(e)
	if err != nil {
		return span{}, fmt.Errorf("encode journal entry: %w", err)
	}
	line = append(line, '\n')
	at := span{j.end, len(line)}
	j.buf = append(j.buf, line...)
	j.seq, j.end = e.Seq, j.end+int64(len(line))
	return at, nil
}

// commit returns once everything appended so far is on disk. Reads call it too: what they show may have been appended by
// a request that is still waiting for the disk, and must not be forgotten after it has been shown.
func (j *journal) commit() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	upTo := j.seq
	for j.durable < upTo && j.err == nil {
		if j.syncing {
			j.synced.Wait()
			continue
		}
		j.flush()
	}
	return j.err
}

// flush writes and syncs the buffer. It is called with the lock, and lets go of it while the disk is busy.
func (j *journal) flush() {
	buf, upTo := j.buf, j.seq
	j.buf, j.syncing = nil, true
	j.mu.Unlock()
	_, err := j.file.Write(buf)
	if err == nil {
		err = j.file.Sync()
	}
	j.mu.Lock()
	j.syncing = false
	if err != nil {
		j.err = fmt.Errorf("%w: %w", errJournalBroken, err)
		close(j.failed)
	} else {
		j.durable, j.size = upTo, j.size+int64(len(buf))
	}
	j.synced.Broadcast()
}

// at returns the entry at s.
func (j *journal) at(s span) (entry, error) {
	line := make([]byte, s.len)
	if _, err := j.file.ReadAt(line, s.off); err != nil {
		return entry{}, fmt.Errorf("read the journal: %w", err)
	}
	var e entry
	if err := json.Unmarshal(line, &e); err != nil {
		return entry{}, fmt.Errorf("decode journal entry: %w", err)
	}
	return e, nil
}

// stream writes the public entries behind seq after to w, as JSON lines.
func (j *journal) stream(w io.Writer, after int64) error {
	if err := j.commit(); err != nil {
		return err
	}
	j.mu.Lock()
	size := j.size
	j.mu.Unlock()
	lines := bufio.NewReaderSize(io.NewSectionReader(j.file, 0, size), 1<<16)
	out := bufio.NewWriterSize(w, 1<<16)
	enc := json.NewEncoder(out)
	for {
		line, err := lines.ReadBytes('\n')
		if err == io.EOF {
			return out.Flush()
		}
		if err != nil {
			return fmt.Errorf("read the journal: %w", err)
		}
		var e entry
		if err := json.Unmarshal(bytes.TrimSpace(line), &e); err != nil {
			return fmt.Errorf("decode journal entry: %w", err)
		}
		if shown, ok := e.public(); ok && e.Seq > after {
			if err := enc.Encode(shown); err != nil {
				return err
			}
		}
	}
}

// close writes what is left and closes the file. A request that comes later is refused: a file that is closed under it
// would look like a broken disk.
func (j *journal) close() error {
	err := j.commit()
	j.mu.Lock()
	defer j.mu.Unlock()
	for j.syncing {
		j.synced.Wait()
	}
	if j.err == nil {
		j.err = errJournalClosed
	}
	return errors.Join(err, filelock.Close(j.file))
}

// syncDir makes a newly created file's name durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("open the sandbox's data directory: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync the sandbox's data directory: %w", err)
	}
	return nil
}
