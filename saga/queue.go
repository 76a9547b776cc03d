package saga

import (
	"slices"
	"sync"
	"time"
)

// queue hands tasks to the workers, those that stand at the same step together.
type queue struct {
	mu       sync.Mutex
	ready    *sync.Cond
	groups   map[groupKey][]*task
	order    []groupKey       // of the groups, oldest first
	limits   map[groupKey]int // batch sizes that deadlocks made smaller
	held     map[string]*task // by lane: everything claimed
	calling  map[*task]bool   // with a call under way, or about to be
	noSlot   []*task          // wait for a call to end
	suspects []*task          // run one at a time, the least suspected first
	trial    *task            // the one whose turn it is, until it leaves or has got past where engines died
	turn     bool             // suspects and others take turns
	slots    int              // free calls
	batch    int
	draining bool // start nothing, record what comes back
	dead     bool // the process is gone, as far as the workers know
	busy     int  // workers in a transaction
	later    int  // tasks in a timer
}

type groupKey struct {
	def    *Definition
	step   int
	undo   bool
	record bool
	alone  *task
}

func newQueue(opts EngineOptions) *queue {
	q := &queue{
		groups: map[groupKey][]*task{}, limits: map[groupKey]int{}, held: map[string]*task{},
		calling: map[*task]bool{}, slots: opts.MaxCalls, batch: opts.BatchSize,
	}
	q.ready = sync.NewCond(&q.mu)
	return q
}

func (t *task) group() groupKey {
	k := groupKey{def: t.s.def, step: t.s.step, undo: t.s.in.Failure.Kind != "", record: t.ev != nil}
	if t.solo {
		k.alone = t
	}
	return k
}

// add takes in newly claimed tasks.
func (q *queue) add(tasks []*task) {
	q.mu.Lock()
	for _, t := range tasks {
		q.held[t.lane] = t
	}
	q.pushLocked(tasks...)
	q.mu.Unlock()
}

// forgive takes back that an engine died at lanes which this one held itself: it was slow, and is alive.
func (q *queue) forgive(c *claimed) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for lane := range c.crashed {
		if q.held[lane] != nil {
			delete(c.crashed, lane)
		}
	}
}

// push makes tasks ready for a worker. It returns those whose lanes this engine has claimed anew meanwhile, and which
// bring an outcome that the new task does not know.
func (q *queue) push(tasks ...*task) (stale []*task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.pushLocked(tasks...)
}

func (q *queue) pushLocked(tasks ...*task) (stale []*task) {
	for _, t := range tasks {
		delete(q.calling, t)
		// While draining only outcomes are of interest; the rest is given back at the end.
		if q.held[t.lane] != t && t.ev != nil {
			stale = append(stale, t)
			continue
		}
		if q.dead || q.draining && t.ev == nil || q.held[t.lane] != t {
			q.acquitLocked(t)
			continue
		}
		if t.suspect {
			q.suspects = append(q.suspects, t)
			continue
		}
		k := t.group()
		if len(q.groups[k]) == 0 {
			q.order = append(q.order, k)
		}
		q.groups[k] = append(q.groups[k], t)
	}
	q.ready.Broadcast()
	return stale
}

// after runs f after a pause, which the end of the queue waits for unless it is dead.
func (q *queue) after(pause time.Duration, f func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.later++
	time.AfterFunc(pause, func() {
		f()
		q.mu.Lock()
		defer q.mu.Unlock()
		q.later--
		q.ready.Broadcast()
	})
}

// pop waits for the next group. It returns nil when there will be none.
func (q *queue) pop() (groupKey, []*task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for {
		if q.dead {
			return groupKey{}, nil
		}
		if q.turn = !q.turn; q.turn || len(q.order) == 0 {
			if t := q.nextSuspect(); t != nil {
				return t.group(), []*task{t}
			}
		}
		if len(q.order) > 0 {
			break
		}
		if q.draining && len(q.calling) == 0 && q.busy == 0 && q.later == 0 {
			q.ready.Broadcast()
			return groupKey{}, nil
		}
		q.ready.Wait()
	}
	k := q.order[0]
	q.order = q.order[1:]
	tasks := q.groups[k]
	size := q.batch
	if l := q.limits[k]; l > 0 {
		size = l
	}
	if len(tasks) > size {
		q.groups[k] = tasks[size:]
		q.order = append(q.order, k)
		tasks = tasks[:size]
	} else {
		delete(q.groups, k)
	}
	q.busy++
	return k, tasks
}

// nextSuspect takes the suspect that is on trial, or puts the next one there. A trial lasts over calls and what they said
// being recorded: only then it is on record that the engine survived them.
func (q *queue) nextSuspect() *task {
	i := slices.Index(q.suspects, q.trial)
	if q.trial == nil && len(q.suspects) > 0 {
		i = 0
		for j, t := range q.suspects {
			if t.s.deaths() < q.suspects[i].s.deaths() {
				i = j
			}
		}
	}
	if i < 0 {
		return nil
	}
	t := q.suspects[i]
	q.suspects = slices.Delete(q.suspects, i, i+1)
	q.trial = t
	q.busy++
	return t
}

// ran ends what pop began.
func (q *queue) ran(suspect bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.busy--
	// What was woken for a free slot may have left without taking it.
	q.wakeLocked()
	if q.draining || suspect {
		q.ready.Broadcast()
	}
}

// shrink answers a deadlock: the group runs one by one, and doubles back with each success.
func (q *queue) shrink(k groupKey) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.limits[k] = 1
}

func (q *queue) grow(k groupKey) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if l := q.limits[k]; l > 0 {
		if q.limits[k] = 2 * l; 2*l >= q.batch {
			delete(q.limits, k)
		}
	}
}

// slot takes a free call for t, or makes it wait for one. Nothing is sent while draining.
func (q *queue) slot(t *task) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.draining || q.dead || q.slots == 0 {
		return false
	}
	q.slots--
	q.calling[t] = true
	return true
}

// waitSlot parks a task until a call ends.
func (q *queue) waitSlot(t *task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.slots == 0 {
		q.noSlot = append(q.noSlot, t)
		return
	}
	q.pushLocked(t)
}

// returned makes a task ready whose call has come back.
func (q *queue) returned(t *task) (stale []*task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.freeSlotLocked(t)
	return q.pushLocked(t)
}

// freeSlot ends a call of t, or the plan of one.
func (q *queue) freeSlot(t *task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.freeSlotLocked(t)
}

func (q *queue) freeSlotLocked(t *task) {
	q.slots++
	delete(q.calling, t)
	q.wakeLocked()
	q.ready.Broadcast()
}

// wakeLocked makes as many tasks ready that wait for a slot as there are slots. One that finds none waits again.
func (q *queue) wakeLocked() {
	for woken := 0; woken < q.slots && len(q.noSlot) > 0; {
		next := q.noSlot[0]
		q.noSlot = q.noSlot[1:]
		if q.held[next.lane] != next { // its lane was lost while it waited
			q.acquitLocked(next)
			continue
		}
		q.pushLocked(next)
		woken++
	}
}

// drop forgets tasks whose lanes were given up or lost.
func (q *queue) drop(tasks ...*task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, t := range tasks {
		q.acquitLocked(t)
		if q.held[t.lane] == t {
			delete(q.held, t.lane)
		}
	}
}

// acquit ends the trial of a task that goes on and is no suspect any more.
func (q *queue) acquit(t *task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.acquitLocked(t)
}

func (q *queue) acquitLocked(t *task) {
	if q.trial == t {
		q.trial = nil
		q.ready.Broadcast()
	}
}

func (q *queue) drain() { q.end(func() { q.draining = true }) }

func (q *queue) die() { q.end(func() { q.dead = true }) }

func (q *queue) end(how func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	how()
	for k, tasks := range q.groups {
		outcomes := tasks[:0:0]
		for _, t := range tasks {
			if t.ev != nil && !q.dead {
				outcomes = append(outcomes, t)
			}
		}
		if len(outcomes) == 0 {
			delete(q.groups, k)
			continue
		}
		q.groups[k] = outcomes
	}
	q.suspects = slices.DeleteFunc(q.suspects, func(t *task) bool {
		leaves := t.ev == nil || q.dead
		if leaves {
			q.acquitLocked(t)
		}
		return leaves
	})
	order := q.order[:0:0]
	for _, k := range q.order {
		if len(q.groups[k]) > 0 {
			order = append(order, k)
		}
	}
	q.order = order
	q.ready.Broadcast()
}

// free is how many more lanes may be claimed.
func (q *queue) free(limit int) int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return limit - len(q.held)
}

// waiting returns the claims of lanes that wait inside the engine and whose lease may end before by.
func (q *queue) waiting(by time.Time) (tasks []*task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, t := range q.held {
		if !q.calling[t] && t.until.Before(by) {
			tasks = append(tasks, t)
		}
	}
	return tasks
}

func (q *queue) renewed(until time.Time, tasks []*task) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, t := range tasks {
		t.until = until
	}
}

// claims returns every lane still held.
func (q *queue) claims() (claims []claim) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, t := range q.held {
		claims = append(claims, t.claim)
	}
	return claims
}
