package email

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
)

func TestQueuedEmailsAreDelivered(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	orders := o.queue(t, 3)
	o.start(t)
	o.await(t, 3, stateSent)
	o.wantOnce(t, orders)
	m := o.post.mails(t)[0]
	want := fmt.Sprintf("%s.confirmation@orderflow.example", m.OrderID)
	if m.MessageID != want || len(m.To) != 1 || m.To[0] != "ann@example.com" || !strings.Contains(m.Subject, m.OrderID) {
		t.Errorf("mail: got %+v, want Message-ID %s, to ann, about its order", m, want)
	}
	o.post.read(t, fmt.Sprintf("/v1/mail/%d", m.Seq), &m)
	if !strings.Contains(m.Text, "25.50 EUR") || !strings.Contains(m.HTML, "25.50 EUR") {
		t.Errorf("mail's bodies: got %q and %q, want the total in both", m.Text, m.HTML)
	}
	if r := o.row(t, orders[0]); r.Attempts != 1 || r.Provider != "primary" || r.Error != "" {
		t.Errorf("row: got %+v, want one try at the primary and no error", r)
	}
}

// F26: what the provider refuses is tried again, and accepted once.
func TestARefusedEmailIsTriedAgain(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.post.fault(t, `{"smtp":"451","smtp_count":2}`)
	orders := o.queue(t, 1)
	o.start(t)
	o.await(t, 1, stateSent)
	o.wantOnce(t, orders)
	if r := o.row(t, orders[0]); r.Attempts != 3 {
		t.Errorf("row: got %+v, want 3 attempts", r)
	}
}

// F26: a mail that is refused for good is given up where a person finds it, and holds up nobody.
func TestAnEmailThatIsRefusedForGoodIsFailedAndVisible(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.post.fault(t, `{"smtp":"550","smtp_count":3}`)
	refused := o.queue(t, 1)
	o.start(t)
	o.await(t, 1, stateFailed)
	others := o.queue(t, 5)
	o.await(t, 5, stateSent)
	o.wantOnce(t, others)
	r := o.row(t, refused[0])
	if r.Attempts != permanentTries || !strings.Contains(r.Error, "550") {
		t.Errorf("row: got %+v, want %d attempts and the 550", r, permanentTries)
	}
}

// F26: a provider that refuses everything is out of order; no email is given up for it.
func TestAProviderThatRefusesEverythingFailsNoEmail(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.post.fault(t, `{"smtp":"550"}`)
	orders := o.queue(t, 40)
	o.start(t)
	waitFor(t, "the circuit to open", func() bool { return o.count(t, `attempts > 0 AND state = 'queued'`) >= 10 })
	if _, err := o.Pool.Exec(t.Context(), `UPDATE email.emails SET attempts = $1`, permanentTries); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "an email to be tried more often than would fail it", func() bool {
		return o.count(t, fmt.Sprintf(`attempts > %d AND state = 'queued'`, permanentTries)) > 0
	})
	o.post.fault(t, `{}`)
	o.await(t, len(orders), stateSent)
	o.wantOnce(t, orders)
}

// F26: the answer is lost after the provider took the mail. Sending again would be the second mail.
func TestAnEmailWhoseAnswerWasLostIsAskedAbout(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.post.fault(t, `{"smtp":"drop","smtp_count":4}`)
	orders := o.queue(t, 10)
	o.start(t)
	o.await(t, 10, stateSent)
	o.wantOnce(t, orders)
}

// An email in doubt stays so while the provider cannot be asked.
func TestAnEmailInDoubtIsNotGuessedAbout(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	door := newDoor(t, strings.TrimPrefix(o.post.url, "http://"))
	o.cfg.LookupURL = "http://" + door.addr + "/v1/mail"
	door.shut()
	o.post.fault(t, `{"smtp":"drop","smtp_count":1}`)
	orders := o.queue(t, 1)
	o.start(t)
	waitFor(t, "a question that is not answered", func() bool {
		r := o.row(t, orders[0])
		return r.State == stateSending && strings.Contains(r.Error, "ask the mail provider")
	})
	door.open()
	o.await(t, 1, stateSent)
	o.wantOnce(t, orders)
}

// F26: the process dies between taking an email and noting what became of it.
func TestAnEmailThatADeadSenderLeftIsAskedAbout(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name     string
		sent     bool // before the crash
		provider string
		lookup   bool
		mails    int
	}{
		{"it was sent, and is found", true, "primary", true, 1},
		{"it was not sent, and is sent", false, "primary", true, 1},
		{"it was sent, and nobody can be asked: the provider gets it again under its Message-ID", true, "primary", false, 2},
		{"it was given to a provider that is configured no more", false, "fallback", true, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			o := newOffice(t)
			orders := o.queue(t, 1)
			if tc.sent {
				stop := o.start(t)
				o.await(t, 1, stateSent)
				stop()
			}
			_, err := o.Pool.Exec(t.Context(), `
				UPDATE email.emails
				SET state = 'sending', lease_token = gen_random_uuid(), sent_at = NULL, provider = $1, attempts = 1,
					next_attempt_at = clock_timestamp() + interval '100 ms'`, tc.provider)
			if err != nil {
				t.Fatal(err)
			}
			if !tc.lookup {
				o.cfg.LookupURL = ""
			}
			o.start(t)
			o.await(t, 1, stateSent)
			mails := o.post.mails(t)
			if len(mails) != tc.mails {
				t.Errorf("mails: got %d, want %d", len(mails), tc.mails)
			}
			for _, m := range mails {
				if want := orders[0].String() + ".confirmation@orderflow.example"; m.MessageID != want {
					t.Errorf("Message-ID: got %s, want %s every time", m.MessageID, want)
				}
			}
		})
	}
}

// F26, I17: real kills at arbitrary moments, with answers slow enough that many fall between send and mark.
func TestKilledSendersDeliverEachEmailOnce(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.cfg.SendTimeout = 2 * time.Second
	o.post.fault(t, `{"smtp":"slow"}`)
	orders := o.queue(t, 120)
	for round := range 4 {
		before := len(o.post.mails(t))
		kills := []func(){o.spawn(t), o.spawn(t)}
		// Not at a moment of the sender's choosing: when the provider has taken some more mails.
		waitFor(t, "mails to go out", func() bool { return len(o.post.mails(t)) >= before+5+round })
		for _, kill := range kills {
			kill()
		}
	}
	if o.count(t, `state = 'sending'`) == 0 {
		t.Error("no kill left an email in doubt: the test did not try what it is for")
	}
	o.post.fault(t, `{}`)
	o.start(t)
	o.await(t, len(orders), stateSent)
	o.wantOnce(t, orders)
}

func TestSendersSideBySideDeliverEachEmailOnce(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	orders := o.queue(t, 200)
	for range 3 {
		o.start(t)
	}
	o.await(t, len(orders), stateSent)
	o.wantOnce(t, orders)
}

func TestAStoppedSenderLeavesNothingInDoubt(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.post.fault(t, `{"smtp":"slow"}`)
	orders := o.queue(t, 60)
	stop := o.start(t)
	waitFor(t, "mails to go out", func() bool { return len(o.post.mails(t)) >= 3 })
	stop()
	sent := o.count(t, `state = 'sent'`)
	if queued := o.count(t, `state = 'queued' AND attempts = 0`); sent+queued != len(orders) || sent != len(o.post.mails(t)) {
		t.Errorf("after a stop: got %d sent, %d queued, %d mails, want every email to be one or the other", sent, queued, len(o.post.mails(t)))
	}
}

// A worker that connected for longer than its lease lasts must not send: the email is somebody else's by then.
func TestALostLeaseSendsNothing(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	orders := o.queue(t, 1)
	s, err := newSender(o.pool, discard(), nil, o.cfg, impatient())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.providers[0].close() })
	b, err := s.claim(t.Context(), "primary", 1)
	if err != nil || len(b.emails) != 1 {
		t.Fatalf("claim: got %d emails, %v, want 1", len(b.emails), err)
	}
	b.until = time.Now() // as if connecting had taken long
	if _, err := o.pool.Exec(t.Context(), `UPDATE emails SET lease_token = gen_random_uuid()`); err != nil {
		t.Fatal(err)
	}
	conns := connections{}
	t.Cleanup(conns.close)
	_, err = s.send(t.Context(), s.providers[0], conns, &b.emails[0], func() error { return s.renew(t.Context(), b, 0) })
	if !errors.Is(err, errLeaseLost) || len(o.post.mails(t)) != 0 {
		t.Errorf("send with a lost lease: got %v and %d mails, want %v and none", err, len(o.post.mails(t)), errLeaseLost)
	}
	b.outcomes = []outcome{{id: b.emails[0].ID, state: stateSent, attempts: 1}}
	if err := s.settle(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	if r := o.row(t, orders[0]); r.State != stateSending {
		t.Errorf("settle with a lost lease: got state %s, want it untouched", r.State)
	}
}

// F26: a provider that is away costs no email a try, and nothing is lost.
func TestAnAbsentProviderIsWaitedFor(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.post.stop()
	orders := o.queue(t, 30)
	o.start(t)
	waitFor(t, "tries to connect", func() bool { return strings.Contains(o.said.String(), "to=open") })
	if n := o.count(t, `state <> 'queued' OR attempts > 0`); n != 0 {
		t.Errorf("emails taken while the provider is away: got %d, want 0", n)
	}
	o.post = startPostAt(t, o.post)
	o.await(t, len(orders), stateSent)
	o.wantOnce(t, orders)
	if n := o.count(t, `attempts <> 1`); n != 0 {
		t.Errorf("emails with other than one attempt: got %d, want 0", n)
	}
}

func TestTheFallbackTakesOverWhileThePrimaryIsAway(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.post.stop()
	fallback := startPost(t)
	o.cfg.FallbackSMTPAddr, o.cfg.FallbackLookupURL = fallback.smtp, fallback.url+"/v1/mail"
	fallback.fault(t, `{"smtp":"drop","smtp_count":2}`) // and is asked itself about what it took
	orders := o.queue(t, 30)
	o.start(t)
	o.await(t, len(orders), stateSent)
	o.post = fallback
	o.wantOnce(t, orders)
}

// A provider that neither answers nor refuses keeps the one worker waiting that looks whether it is back, not the others.
func TestAMuteProviderDoesNotSlowTheFallback(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	mute := newMute(t)
	o.cfg.FallbackSMTPAddr, o.cfg.FallbackLookupURL = o.cfg.SMTPAddr, o.cfg.LookupURL
	o.cfg.SMTPAddr, o.cfg.SendTimeout = mute.addr, time.Second
	o.start(t)
	first := o.queue(t, 40)
	o.await(t, len(first), stateSent) // by the fallback, after a worker found the primary mute
	waitFor(t, "the others to find out", func() bool { return mute.now.Load() <= 1 })
	mute.most.Store(0)
	orders := append(first, o.queue(t, 200)...)
	o.await(t, len(orders), stateSent)
	o.wantOnce(t, orders)
	// The provider may notice only after the next worker has come that the one before has left.
	if n := mute.most.Load(); n > 2 {
		t.Errorf("workers waiting for the mute provider at once: got %d, want 1", n)
	}
}

// A provider closes connections that were idle; the next mail must not pay for it.
func TestAConnectionThatWasClosedIsReplaced(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	door := newDoor(t, o.post.smtp)
	o.cfg.SMTPAddr, o.cfg.Connections = door.addr, 1
	first := o.queue(t, 1)
	o.start(t)
	o.await(t, 1, stateSent)
	door.cut()
	orders := append(first, o.queue(t, 1)...)
	o.await(t, 2, stateSent)
	o.wantOnce(t, orders)
	if r := o.row(t, orders[1]); r.Attempts != 1 {
		t.Errorf("row: got %+v, want one attempt", r)
	}
	if door.accepted.Load() != 2 {
		t.Errorf("connections: got %d, want 2: one for each time", door.accepted.Load())
	}
}

func TestTheRateLimitIsKept(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.cfg.RatePerSecond = 40
	orders := o.queue(t, 20)
	began := time.Now()
	o.start(t)
	o.await(t, len(orders), stateSent)
	// Of 20 mails 4 go out at once; the others come 25 ms apart.
	if took := time.Since(began); took < 400*time.Millisecond {
		t.Errorf("20 mails at 40 per second: took %v, want 400 ms at least", took)
	}
	o.wantOnce(t, orders)
}

// I25
func TestLogsAndErrorsShowNoAddress(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	o.post.fault(t, `{"smtp":"451","smtp_count":1}`)
	o.queue(t, 1)
	stop := o.start(t)
	o.await(t, 1, stateSent)
	o.post.fault(t, `{"smtp":"drop","smtp_count":1}`)
	o.queue(t, 1)
	o.await(t, 2, stateSent)
	o.post.fault(t, `{"smtp":"550"}`)
	o.queue(t, 1)
	o.await(t, 1, stateFailed)
	stop()
	said := o.said.String()
	if !strings.Contains(said, "email not accepted") || !strings.Contains(said, "email in doubt") || !strings.Contains(said, "email failed") {
		t.Errorf("log: got %q, want a line about each trouble", said)
	}
	if strings.Contains(said, "ann@") || o.count(t, `error LIKE '%@%'`) != 0 {
		t.Errorf("an address is in the log or in the errors:\n%s", said)
	}
}

func TestMisconfiguredProvidersAreRefusedAtStart(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name string
		cfg  Config
	}{
		{"an address without a port", Config{SMTPAddr: "localhost"}},
		{"a port that is no number", Config{SMTPAddr: "localhost:smtp"}},
		{"a look-up that is no URL", Config{SMTPAddr: "localhost:25", LookupURL: "localhost/v1/mail"}},
		{"a fallback without a port", Config{SMTPAddr: "localhost:25", FallbackSMTPAddr: "localhost"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			if _, err := newSender(nil, discard(), nil, tc.cfg.withDefaults(), timing{}); err == nil {
				t.Errorf("newSender: got no error, want %s to be refused", tc.name)
			}
		})
	}
	if _, err := domainOf("not an address"); err == nil {
		t.Error("domainOf: got no error for a sender that is no address")
	}
}

// A claim takes what is due, oldest first, and leaves what others hold.
func TestAClaimTakesOnlyWhatIsDueAndFree(t *testing.T) {
	t.Parallel()
	o := newOffice(t)
	orders := o.queue(t, 3)
	if _, err := o.Pool.Exec(t.Context(), `UPDATE email.emails SET next_attempt_at = now() + interval '1 hour' WHERE order_id = $1`, orders[2]); err != nil {
		t.Fatal(err)
	}
	s, err := newSender(o.pool, discard(), nil, o.cfg, impatient())
	if err != nil {
		t.Fatal(err)
	}
	var got []uuid.UUID
	for range 3 {
		b, err := s.claim(t.Context(), "primary", 1)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range b.emails {
			got = append(got, e.OrderID)
		}
	}
	if len(got) != 2 || got[0] != orders[0] || got[1] != orders[1] {
		t.Errorf("three claims: got orders %v, want %v", got, orders[:2])
	}
}
