package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sync/errgroup"
)

// target is a running api.
type target struct{ url, key string }

// place posts orders from clients at once for d, each as soon as the one before is answered, and returns how many were
// accepted. Any answer but 201 fails it.
func (t target) place(ctx context.Context, clients int, d time.Duration) (int64, error) {
	transport := &http.Transport{MaxIdleConnsPerHost: clients}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, Timeout: 30 * time.Second}
	var accepted atomic.Int64
	deadline := time.Now().Add(d)
	group, ctx := errgroup.WithContext(ctx)
	for c := range clients {
		group.Go(func() error {
			for n := 0; time.Now().Before(deadline); n++ {
				if err := t.post(ctx, client, c*1000+n%1000); err != nil {
					return err
				}
				accepted.Add(1)
			}
			return nil
		})
	}
	err := group.Wait()
	return accepted.Load(), err
}

func (t target) post(ctx context.Context, client *http.Client, user int) error {
	body := fmt.Appendf(nil, `{"user_id":"bench-%d","currency":"EUR","email":"bench@example.com","payment_method":"pm_ok","items":[{"sku":"sku-mug","quantity":1}]}`, user)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, t.url+"/v1/orders", bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+t.key)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Idempotency-Key", uuid.NewString())
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("POST /v1/orders: %s: %s", resp.Status, answer)
	}
	return nil
}
