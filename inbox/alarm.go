package inbox

import "time"

// alarm is one timer for all who wait for a time: each look of each worker would start another one.
type alarm struct {
	timer *time.Timer // nil before the first
	at    time.Time   // when it is due; zero while nobody asked
}

// wakeAfter makes every waiter look again after d, or earlier if another one asked for that: whoever still waits then
// asks again. The caller holds mu.
func (l *lanes) wakeAfter(d time.Duration) {
	at := time.Now().Add(d)
	switch {
	case !l.alarm.at.IsZero() && !at.Before(l.alarm.at):
		return
	case l.alarm.timer == nil:
		l.alarm.timer = time.AfterFunc(d, l.wakeAll)
	default:
		l.alarm.timer.Reset(d)
	}
	l.alarm.at = at
}

// wakeAll takes the lock so that nobody misses it between a look and a wait.
func (l *lanes) wakeAll() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.alarm.at = time.Time{}
	l.changed.Broadcast()
}
