package sandbox

import (
	"fmt"
	"slices"
	"sync"
)

// What a fault can be. They are chosen for what a caller can and cannot know afterwards.
const (
	faultDrop = "drop" // done and journaled, then the connection is dropped: the caller cannot know
	faultSlow = "slow" // done, answered after [Config.Slow]
	faultHold = "hold" // not sent until the fault ends
)

var (
	smtpFaults    = []string{"", "451", "550", faultDrop, faultSlow}
	paymentFaults = []string{"", "500", "503", faultDrop, faultSlow}
	lookupFaults  = []string{"", "404", "503"}
	webhookFaults = []string{"", faultHold}
)

// Faults is the body of POST /v1/faults; it replaces what was set before, so {} ends every fault.
type Faults struct {
	// SMTP is what happens to mails: "451" and "550" refuse them after DATA, "drop" accepts and journals them and drops
	// the connection without a word, "slow" answers late.
	SMTP string `json:"smtp"`
	// SMTPCount is how many mails are hit; 0 is all until the fault is replaced.
	SMTPCount int `json:"smtp_count"`
	// Payments is what happens to POST requests about payments: "500" and "503" refuse them undone, "drop" does them and
	// drops the connection, "slow" answers late.
	Payments string `json:"payments"`
	// PaymentsCount is how many requests are hit; 0 is all until the fault is replaced.
	PaymentsCount int `json:"payments_count"`
	// Lookups is what happens to GET requests about payment intents: "404" answers as a provider does whose look-ups lag
	// behind what it has done, "503" not at all.
	Lookups string `json:"lookups"`
	// LookupsCount is how many look-ups are hit; 0 is all until the fault is replaced.
	LookupsCount int `json:"lookups_count"`
	// Webhooks is what happens to events: "hold" keeps them until the fault is replaced.
	Webhooks string `json:"webhooks"`
}

func (f Faults) check() error {
	if !slices.Contains(smtpFaults, f.SMTP) {
		return fmt.Errorf("smtp is one of %q", smtpFaults)
	}
	if !slices.Contains(paymentFaults, f.Payments) {
		return fmt.Errorf("payments is one of %q", paymentFaults)
	}
	if !slices.Contains(lookupFaults, f.Lookups) {
		return fmt.Errorf("lookups is one of %q", lookupFaults)
	}
	if !slices.Contains(webhookFaults, f.Webhooks) {
		return fmt.Errorf("webhooks is one of %q", webhookFaults)
	}
	if f.SMTPCount < 0 || f.PaymentsCount < 0 || f.LookupsCount < 0 {
		return fmt.Errorf("counts are not negative")
	}
	return nil
}

// faultBox holds the faults that are set.
type faultBox struct {
	mu  sync.Mutex
	set Faults
}

func (b *faultBox) replace(f Faults) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.set = f
}

func (b *faultBox) current() Faults {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.set
}

// nextMail returns the fault that hits the mail at hand, or "".
func (b *faultBox) nextMail() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return take(&b.set.SMTP, &b.set.SMTPCount)
}

// nextPayment returns the fault that hits the payment request at hand, or "".
func (b *faultBox) nextPayment() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return take(&b.set.Payments, &b.set.PaymentsCount)
}

// nextLookup returns the fault that hits the look-up at hand, or "".
func (b *faultBox) nextLookup() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return take(&b.set.Lookups, &b.set.LookupsCount)
}

func take(fault *string, count *int) string {
	now := *fault
	if *count > 0 {
		if *count--; *count == 0 {
			*fault = ""
		}
	}
	return now
}
