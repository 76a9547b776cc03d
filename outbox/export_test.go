package outbox

import "time"

// SetSlotWidth tells r, before it runs, that tests have changed how long the ring's slots are.
func (r *Relay) SetSlotWidth(d time.Duration) {
	r.slotWidth, r.opts.Retention, r.tidyEvery = d, d, d/4
}

// SetTidyEvery says, before r runs, how often it looks for leaves to truncate.
func (r *Relay) SetTidyEvery(d time.Duration) { r.tidyEvery = d }
