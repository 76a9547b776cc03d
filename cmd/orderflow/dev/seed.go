package dev

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/cmd/orderflow/apiclient"
	"github.com/orderflow-dev/orderflow/cmd/orderflow/load"
)

// seedOrders places the first orders, through the api like any other. Its requests are always the same, keys included, so
// a first start that was cut off ends with as many orders as one that was not.
func (s *system) seedOrders(ctx context.Context) error {
	if s.opts.Seed <= 0 {
		return nil
	}
	marker := filepath.Join(s.opts.DataDir, "seeded")
	if _, err := os.Stat(marker); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	began := time.Now()
	client := apiclient.New(s.ready.API, s.ready.APIKey, 4)
	defer client.Close()
	products, err := client.Products(ctx)
	if err != nil {
		return fmt.Errorf("seed orders: %w", err)
	}
	generator, err := load.NewGenerator(25, 8, products, load.Mix{Declines: 0.12, LostAnswers: 0.04})
	if err != nil {
		return fmt.Errorf("seed orders: %w", err)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(4)
	for n := range s.opts.Seed {
		body, err := json.Marshal(generator.Next())
		if err != nil {
			return err
		}
		group.Go(func() error {
			_, err := client.Place(ctx, fmt.Sprintf("orderflow-dev-seed-%d", n+1), body)
			return err
		})
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("seed orders: %w", err)
	}
	s.report.part("orders", fmt.Sprintf("%d placed, because this is the first start", s.opts.Seed), "", time.Since(began))
	return os.WriteFile(marker, nil, 0o600)
}
