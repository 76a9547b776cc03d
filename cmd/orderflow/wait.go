package main

import (
	"context"
	"errors"
	"syscall"
	"time"
)

// sleep waits for d. It returns false when ctx ends first.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// refused reports whether nothing listens where err was to connect to.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }
