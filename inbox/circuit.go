package inbox

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"
)

// circuit stops the consumer while nothing would succeed. Open, it lets nothing pass until a delay is over; then it
// lets one probe pass, whose outcome closes it or opens it for longer.
type circuit struct {
	log *slog.Logger

	mu           sync.Mutex
	open         bool
	cause        error
	since        time.Time
	until        time.Time
	failures     int
	probing      bool
	needProgress bool // opened for too many failing messages: only a success closes it
	opened       int64
}

// The delay between probes doubles from the first to the second of these.
const (
	circuitMin = 200 * time.Millisecond
	circuitMax = 5 * time.Second
)

// errTooManyHolds opens the circuit instead of holding yet another key.
var errTooManyHolds = errors.New("more keys fail than a few bad messages explain")

func newCircuit(log *slog.Logger) *circuit { return &circuit{log: log} }

// permit says whether a caller may work now. While the circuit is open it returns how long to wait, or grants the one
// probe; whoever was granted it must call succeed, fail or skip.
func (c *circuit) permit(now time.Time) (wait time.Duration, probe bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.open:
		return 0, false
	case c.probing:
		return circuitMin, false
	case now.Before(c.until):
		return c.until.Sub(now), false
	}
	c.probing = true
	return 0, true
}

// fail opens the circuit, or keeps it open for longer.
func (c *circuit) fail(err error, probe bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open && !probe {
		return // a batch that was on its way when the circuit opened
	}
	now := time.Now()
	if !c.open {
		c.open, c.since, c.failures = true, now, 0
		c.opened++
		c.log.Warn("circuit open, consumer paused", "error", err)
	}
	c.cause, c.probing = err, false
	c.needProgress = errors.Is(err, errTooManyHolds)
	c.until = now.Add(halfJitter(circuitMin, 2, c.failures, circuitMax))
	c.failures++
}

// succeed reports a commit; progress says whether a message was applied by it.
func (c *circuit) succeed(probe, progress bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !probe {
		return
	}
	c.probing = false
	if c.needProgress && !progress {
		c.until = time.Now().Add(halfJitter(circuitMin, 2, c.failures, circuitMax))
		c.failures++
		return
	}
	c.log.Info("circuit closed, consumer works again", "open_for", time.Since(c.since))
	c.open, c.cause = false, nil
}

// skip returns a probe that found nothing to try.
func (c *circuit) skip() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.probing = false
}

// openError returns nil while the circuit is closed.
func (c *circuit) openError() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.open {
		return nil
	}
	return fmt.Errorf("circuit open since %s: %w", c.since.UTC().Format(time.RFC3339), c.cause)
}

// due reports whether an open circuit would grant a probe.
func (c *circuit) due(now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.open && !c.probing && !now.Before(c.until)
}
