package inbox

import "sync"

// batchLimit is what a route learns from failures.
type batchLimit struct {
	mu      sync.Mutex
	limit   int // 0: none
	clean   int // batches since the limit moved
	guarded int // batches still to run with savepoints
}

const (
	guardedBatches = 100 // after a failure
	cleanToDouble  = 10
	noLimit        = 1 << 20
)

func (b *batchLimit) size() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.limit == 0 {
		return noLimit
	}
	return b.limit
}

// shrink makes batches single: the handler's writes meet those of other batches in another order.
func (b *batchLimit) shrink() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.limit, b.clean = 1, 0
}

// committed notes a batch without trouble; batches double slowly back to their full size.
func (b *batchLimit) committed() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.guarded = max(b.guarded-1, 0)
	if b.limit == 0 {
		return
	}
	if b.clean++; b.clean < cleanToDouble {
		return
	}
	b.clean = 0
	if b.limit *= 2; b.limit > 500 {
		b.limit = 0
	}
}

// guard makes the next batches run with savepoints.
func (b *batchLimit) guard() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.guarded = guardedBatches
}

func (b *batchLimit) isGuarded() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.guarded > 0
}
