package inbox

import (
	"math/rand/v2"
	"time"
)

// fullJitter returns a random delay below base × factor^n, at most limit. Jitter over the whole span spreads retries that
// started together (Brooker, "Exponential Backoff And Jitter", AWS 2015).
func fullJitter(base time.Duration, factor float64, n int, limit time.Duration) time.Duration {
	ceiling := float64(base)
	for range n {
		ceiling *= factor
		if ceiling >= float64(limit) {
			break
		}
	}
	return time.Duration(rand.Float64() * min(ceiling, float64(limit))) //nolint:gosec // jitter is no secret
}

// halfJitter is between half of the delay and all of it, for delays that must not be near zero.
func halfJitter(base time.Duration, factor float64, n int, limit time.Duration) time.Duration {
	d := base
	for range n {
		if d = time.Duration(float64(d) * factor); d >= limit {
			d = limit
			break
		}
	}
	return d/2 + fullJitter(d, 1, 0, d)/2
}
