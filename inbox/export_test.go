package inbox

// Overlap makes c read under a Kafka group of its own while its inbox stays the one of its group: it owns partitions
// that others own too, as a consumer does that was paused past its session and has not noticed.
func (c *Consumer) Overlap(member string) { c.member = member }

// FailedProbes returns how many probes of the open circuit have failed.
func (c *Consumer) FailedProbes() int {
	c.circuit.mu.Lock()
	defer c.circuit.mu.Unlock()
	if !c.circuit.open {
		return 0
	}
	return c.circuit.failures - 1 // the first one has opened it
}
