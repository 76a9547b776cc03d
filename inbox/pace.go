package inbox

import "time"

const (
	slowAtLeast   = 10 * time.Millisecond
	slowTimes     = 10
	paceRemembers = 256 // messages
)

// pace is how long the handler of a route usually takes for a message. Handlers of batches do not say.
type pace struct{ usual time.Duration }

// learn moves the usual towards what the handler took for n messages: an exponentially weighted moving average.
func (p *pace) learn(took time.Duration, n int) {
	if n == 0 {
		return
	}
	mean := took / time.Duration(n)
	if p.usual == 0 {
		p.usual = mean
		return
	}
	p.usual += (mean - p.usual) * time.Duration(min(n, paceRemembers)) / paceRemembers
}

// slow reports whether a message took far longer than is usual. Where every message does, as on a server under load, none is
// slow: taking each alone would add to the load.
func (p *pace) slow(took time.Duration) bool { return took >= slowAtLeast && took > slowTimes*p.usual }
