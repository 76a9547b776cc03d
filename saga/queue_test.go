package saga

import (
	"testing"
	"time"
)

func TestAFreeCallGoesToWhoeverStillWantsIt(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		sentence      string
		before, after func(q *queue, second *task) // the call is free
	}{
		{"the first in line makes no call", func(*queue, *task) {}, func(q *queue, second *task) {
			if _, tasks := q.pop(); len(tasks) != 1 || tasks[0] != second {
				t.Errorf("pop = %v, want the first in line", tasks)
			}
			q.drop(second)
			q.ran(false)
		}},
		{"the first in line has lost its lane", func(q *queue, second *task) { q.drop(second) }, func(*queue, *task) {}},
	} {
		t.Run(tc.sentence, func(t *testing.T) {
			t.Parallel()
			q := newQueue(EngineOptions{MaxCalls: 1, BatchSize: 1})
			var tasks []*task
			for _, lane := range []string{"calling", "second", "third"} {
				tasks = append(tasks, &task{claim: claim{lane: lane}, s: &state{}})
			}
			q.add(tasks)
			for i, ts := range tasks {
				q.pop()
				if took := q.slot(ts); took != (i == 0) {
					t.Fatalf("slot of task %d = %v", i, took)
				}
				if i > 0 {
					q.waitSlot(ts)
				}
				q.ran(false)
			}
			tc.before(q, tasks[1])
			q.freeSlot(tasks[0])
			tc.after(q, tasks[1])
			popped := make(chan []*task, 1)
			go func() {
				_, next := q.pop()
				popped <- next
			}()
			select {
			case next := <-popped:
				if len(next) != 1 || next[0] != tasks[2] {
					t.Errorf("pop = %v, want the last in line", next)
				}
			case <-time.After(20 * time.Second):
				t.Error("nobody was woken for the free call within 20 s")
				q.die()
			}
		})
	}
}
