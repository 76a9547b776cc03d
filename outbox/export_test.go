package outbox

import "time"

// SetSlotWidth tells r that tests have made the ring's slots shorter.
func (r *Relay) SetSlotWidth(d time.Duration) {
	r.slotWidth = d
	r.opts.Retention = d
	r.tidyEvery = d / 4
}
