package dev

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// startPatience is how long a part may take to become ready. After a crash the leases of the processes that died must run
// out first, and on a busy machine the clients of the run before take what the start needs.
const startPatience = 2 * time.Minute

// await returns once url answers 200. It returns early with the reason when a part has ended by itself.
func (s *system) await(ctx context.Context, name, url string) error {
	ctx, cancel := context.WithTimeout(ctx, startPatience)
	defer cancel()
	ticker := time.NewTicker(5 * time.Millisecond)
	defer ticker.Stop()
	for {
		err := s.probe(ctx, url)
		if err == nil {
			return nil
		}
		select {
		case failure := <-s.failed:
			return failure
		case <-ctx.Done():
			return fmt.Errorf("%s did not become ready: %w", name, err)
		case <-ticker.C:
		}
	}
}

func (s *system) probe(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, http.NoBody)
	if err != nil {
		return err
	}
	resp, err := s.web.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(io.LimitReader(resp.Body, 4096))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return errors.New(strings.TrimSpace(string(said)))
	}
	return nil
}
