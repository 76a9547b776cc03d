package api

import (
	"context"
	"fmt"
	"time"
)

type overviewOutput struct{ Body overviewView }

// overviewView is what an operator asks first. It is cheap whatever the number of orders.
type overviewView struct {
	Pending       int64      `json:"pending" doc:"Orders that are not decided yet, counted up to 10000"`
	OldestPending *time.Time `json:"oldest_pending,omitempty" doc:"When the oldest of them was placed"`
	SoldOut       int64      `json:"sold_out" doc:"Products without available stock"`
}

func (a *api) overview(ctx context.Context, _ *struct{}) (*overviewOutput, error) {
	leave, err := a.slots.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	ctx, cancel := context.WithTimeout(ctx, readTimeout)
	defer cancel()
	out := &overviewOutput{}
	err = a.pool.QueryRow(ctx, `
		SELECT
			(SELECT count(*) FROM (SELECT FROM orders WHERE status = 'pending' LIMIT 10000) AS some),
			(SELECT created_at FROM orders WHERE status = 'pending' ORDER BY id LIMIT 1),
			(SELECT count(*) FROM stock WHERE available = 0)`).
		Scan(&out.Body.Pending, &out.Body.OldestPending, &out.Body.SoldOut)
	if err != nil {
		return nil, fmt.Errorf("read overview: %w", err)
	}
	if out.Body.OldestPending != nil {
		at := out.Body.OldestPending.UTC()
		out.Body.OldestPending = &at
	}
	return out, nil
}
