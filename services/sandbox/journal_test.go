package sandbox

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// A real kill -9, in the middle of traffic: whatever was answered for is there afterwards, with the same answers.
func TestAKilledSandboxForgetsNothingItAnsweredFor(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, kill := spawn(t, dir, "")

	type told struct{ path, key, body, answer string }
	var (
		mu    sync.Mutex
		known []told
		mails []string
		wg    sync.WaitGroup
		seen  atomic.Int32
	)
	for worker := range 8 {
		wg.Go(func() {
			for i := 0; ; i++ {
				ref := fmt.Sprintf("order-%d-%d", worker, i)
				create := told{"/v1/payment_intents", ref, createJSON("pm_ok", ref), ""}
				r, err := b.try(t.Context(), http.MethodPost, create.path, create.key, create.body)
				if err != nil {
					return // killed
				}
				create.answer = r.body
				confirm := told{"/v1/payment_intents/" + r.field(t, "id") + "/confirm", ref, "", ""}
				mu.Lock()
				known = append(known, create)
				mu.Unlock()
				if r, err = b.try(t.Context(), http.MethodPost, confirm.path, confirm.key, ""); err != nil {
					return
				}
				confirm.answer = r.body
				mu.Lock()
				known = append(known, confirm)
				mu.Unlock()
				if err := smtp.SendMail(b.smtp, nil, "shop@example.com", []string{"a@example.com"}, testMail(ref)); err != nil {
					return
				}
				mu.Lock()
				mails = append(mails, ref)
				mu.Unlock()
				seen.Add(1)
			}
		})
	}
	waitFor(t, "100 orders", func() bool { return seen.Load() >= 100 })
	kill()
	wg.Wait()

	again, _ := start(t, Config{DataDir: dir})
	for _, k := range known {
		if r := again.post(t, k.path, k.key, k.body); r.body != k.answer || !r.replayed {
			t.Fatalf("POST %s again after the kill: got %s, replayed %t, want %s", k.path, r.body, r.replayed, k.answer)
		}
	}
	accepted := map[string]int{}
	for _, e := range again.entries(t) {
		if e.Kind == kindMail {
			accepted[e.MessageID]++
		}
	}
	for _, ref := range mails {
		if accepted[ref+"@example.com"] != 1 {
			t.Fatalf("mail %s after the kill: accepted %d times, want once", ref, accepted[ref+"@example.com"])
		}
	}
}

func TestStateIsTheSameAfterARestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, stop := start(t, Config{DataDir: dir})
	confirm := func(b *box, id string) int {
		r, _ := b.try(t.Context(), http.MethodPost, "/v1/payment_intents/"+id+"/confirm", id, "")
		return r.status
	}
	charged, refunded := b.create(t, "a", "pm_ok", "charged"), b.create(t, "b", "pm_ok", "refunded")
	canceled, declined := b.create(t, "c", "pm_ok", "canceled"), b.create(t, "d", "pm_declined", "declined")
	lost, errored := b.create(t, "e", "pm_lost_answer", "lost"), b.create(t, "f", "pm_error_once", "errored")
	for _, id := range []string{charged, refunded, declined, lost, errored} {
		confirm(b, id)
	}
	b.post(t, "/v1/refunds", "r", `{"payment_intent":"`+refunded+`"}`)
	b.post(t, "/v1/payment_intents/"+canceled+"/cancel", "", "")
	ids := []string{charged, refunded, canceled, declined, lost, errored}
	var before []string
	for _, id := range ids {
		before = append(before, b.get(t, "/v1/payment_intents/"+id).body)
	}
	journal := b.get(t, "/v1/journal").body
	stop()

	b, _ = start(t, Config{DataDir: dir})
	for i, id := range ids {
		if got := b.get(t, "/v1/payment_intents/"+id).body; got != before[i] {
			t.Errorf("intent after a restart: got %s, want %s", got, before[i])
		}
	}
	if got := b.get(t, "/v1/journal").body; got != journal {
		t.Errorf("journal after a restart: got %s, want %s", got, journal)
	}
	if got := confirm(b, lost); got != 200 {
		t.Errorf("confirm whose answer was lost, after a restart: got %d, want 200", got)
	}
	if got := confirm(b, errored); got != 200 {
		t.Errorf("confirm that had its one error, after a restart: got %d, want 200", got)
	}
}

func TestATornTailIsCutAndDamageIsRefused(t *testing.T) {
	t.Parallel()
	whole := `{"seq":1,"at":"2026-01-02T03:04:05Z","kind":"mail","message_id":"a"}` + "\n" +
		`{"seq":2,"at":"2026-01-02T03:04:05Z","kind":"mail","message_id":"b"}` + "\n"
	for _, tc := range []struct {
		name, content string
		entries       int // -1: refused
	}{
		{"no file content at all", "", 0},
		{"whole lines", whole, 2},
		{"half a line at the end", whole + `{"seq":3,"at":"2026-`, 2},
		{"a line without its end was not synced with it", whole + `{"seq":3,"at":"2026-01-02T03:04:05Z","kind":"mail"}`, 2},
		{"zeros, as some file systems leave them", whole + strings.Repeat("\x00", 700), 2},
		{"a bad line in the middle", strings.Replace(whole, `{"seq":1`, `{"seq":`, 1), -1},
		{"a missing line", strings.Replace(whole, `"seq":2`, `"seq":3`, 1), -1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			if err := os.WriteFile(filepath.Join(dir, journalFile), []byte(tc.content), 0o600); err != nil {
				t.Fatal(err)
			}
			for round := range 2 {
				entries := 0
				j, err := openJournal(dir, slog.New(slog.DiscardHandler), func(entry, span) error { entries++; return nil })
				if (err != nil) != (tc.entries < 0) {
					t.Fatalf("open: got error %v, want entries %d", err, tc.entries)
				}
				if err != nil {
					return
				}
				if entries != tc.entries+round {
					t.Errorf("open: got %d entries, want %d", entries, tc.entries+round)
				}
				if _, err := j.append(&entry{Kind: kindMail}); err != nil {
					t.Errorf("append: %v", err)
				}
				if err := j.close(); err != nil {
					t.Errorf("close: %v", err)
				}
				left, err := os.ReadFile(filepath.Join(dir, journalFile))
				if err != nil || int64(len(left)) != j.size || bytes.Count(left, []byte("\n")) != entries+1 {
					t.Errorf("file: got %d bytes, %v, want the %d whole lines in %d bytes and nothing of the tail", len(left), err, entries+1, j.size)
				}
			}
		})
	}
}

func TestOneSandboxPerDataDirectory(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	b, _ := start(t, Config{DataDir: dir})
	b.get(t, "/healthz")
	err := Run(t.Context(), slog.New(slog.DiscardHandler), Config{DataDir: dir, Listener: listenLocal(t), SMTPListener: listenLocal(t)})
	if err == nil || !strings.Contains(err.Error(), "another sandbox") {
		t.Errorf("second sandbox: got %v, want to be refused", err)
	}
}

// A disk that fails takes the answers with it: nothing is answered for that may not be there.
func TestABrokenJournalAnswersForNothing(t *testing.T) {
	t.Parallel()
	j, err := openJournal(t.TempDir(), slog.New(slog.DiscardHandler), func(entry, span) error { return nil })
	if err != nil {
		t.Fatal(err)
	}
	p := newPayments(&webhooks{})
	p.journal = j
	if err := j.file.Close(); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := p.create(request{op: opCreate, key: "k"}, createBody{1, "EUR", "pm_ok", "o"}); !errors.Is(err, errJournalBroken) {
			t.Errorf("create on a broken disk: got %v, want %v", err, errJournalBroken)
		}
	}
	select {
	case <-j.failed:
	default:
		t.Error("a broken journal does not end the sandbox")
	}
}

// Readers and writers share syncs; without that, charges would queue behind one another's disk writes.
func BenchmarkJournal(b *testing.B) {
	j, err := openJournal(b.TempDir(), slog.New(slog.DiscardHandler), func(entry, span) error { return nil })
	if err != nil {
		b.Fatal(err)
	}
	defer j.close()
	b.SetParallelism(32)
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if _, err := j.append(&entry{Kind: kindCharge, PaymentIntent: "pi_0", Amount: 1250, Currency: "EUR"}); err != nil {
				b.Fatal(err)
			}
			if err := j.commit(); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "entries/s")
}
