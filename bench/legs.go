package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/orderflow-dev/orderflow/bench/internal/table"
	"github.com/orderflow-dev/orderflow/internal/order"
	"github.com/orderflow-dev/orderflow/migrations"
	"github.com/orderflow-dev/orderflow/services/api"
)

// acceptLeg measures the api alone, a process of its own, against pgbench: rounds of both in turn.
func acceptLeg(ctx context.Context, p plan, server *postgres) ([]table.Row, error) {
	url, err := server.database(ctx, "accept")
	if err != nil {
		return nil, err
	}
	roleURL, err := migrations.RoleURL(url, "orders", rolePassword)
	if err != nil {
		return nil, err
	}
	addr, err := freeAddr(ctx)
	if err != nil {
		return nil, err
	}
	process, err := start(ctx, p.binary, "api", "--dev", "--database-url", roleURL, "--addr", addr, "--log-level", "warn")
	if err != nil {
		return nil, err
	}
	defer process.stop()
	t := target{url: "http://" + addr, key: api.DevKey}
	if err := process.await(ctx, func() bool { return answers(ctx, t.url+"/readyz") }); err != nil {
		return nil, err
	}
	var accepted, transactions, ratios []float64
	for n := range p.rounds {
		tps, err := server.runPgbench(ctx, url, p.clients, p.leg)
		if err != nil {
			return nil, err
		}
		count, err := t.place(ctx, p.clients, p.leg)
		if err != nil {
			return nil, err
		}
		perSec := float64(count) / p.leg.Seconds()
		fmt.Printf("accept, round %d: pgbench %.0f tps, api %.0f orders/s, ratio %.2f\n", n+1, tps, perSec, perSec/tps)
		accepted, transactions, ratios = append(accepted, perSec), append(transactions, tps), append(ratios, perSec/tps)
	}
	ratio := table.Median(ratios)
	return []table.Row{
		{Name: "pgbench, the same transaction (tps)", Value: table.Median(transactions), Format: "%.0f"},
		{Name: "api, accepted (orders/s)", Value: table.Median(accepted), Format: "%.0f"},
		{Name: "accepted ÷ pgbench", Value: ratio, Format: "%.2f", Aim: "≥ 0.5", Met: ratio >= 0.5},
	}, nil
}

// walkLeg measures whole walks: from the first request to the last order that is shipped and has both its mails.
func walkLeg(ctx context.Context, p plan, server *postgres) ([]table.Row, error) {
	url, err := server.database(ctx, "walk")
	if err != nil {
		return nil, err
	}
	tps, err := server.runPgbench(ctx, url, p.clients, p.leg)
	if err != nil {
		return nil, err
	}
	if url, err = server.Create(ctx, "walk_dev"); err != nil {
		return nil, err
	}
	ready := filepath.Join(server.Dir, "ready.json")
	process, err := start(ctx, p.binary, "dev", "--ephemeral", "--seed-orders", "0", "--pg-url", url, "--ready-file", ready)
	if err != nil {
		return nil, err
	}
	defer process.stop()
	var parts struct {
		API    string `json:"api"`
		APIKey string `json:"api_key"`
	}
	if err := process.await(ctx, func() bool {
		raw, err := os.ReadFile(ready)
		return err == nil && json.Unmarshal(raw, &parts) == nil
	}); err != nil {
		return nil, err
	}
	began := time.Now()
	count, err := target{url: parts.API, key: parts.APIKey}.place(ctx, p.clients, p.walkFor)
	if err != nil {
		return nil, err
	}
	done, err := awaitWalks(ctx, url, count, p.drainFor)
	if err != nil {
		return nil, err
	}
	perSec := float64(count) / done.Sub(began).Seconds()
	ratio := perSec / tps
	fmt.Printf("walk: pgbench %.0f tps, %d orders through all groups in %.1f s\n", tps, count, done.Sub(began).Seconds())
	return []table.Row{
		{Name: "through all groups, mails and shipments (orders/s)", Value: perSec, Format: "%.0f"},
		{Name: "through all groups ÷ pgbench", Value: ratio, Format: "%.2f", Aim: "≥ 0.15", Met: ratio >= 0.15},
	}, nil
}

// awaitWalks waits until count orders are shipped and both their mails are sent.
func awaitWalks(ctx context.Context, url string, count int64, limit time.Duration) (time.Time, error) {
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		return time.Time{}, err
	}
	defer conn.Close(ctx)
	for deadline := time.Now().Add(limit); ; {
		var shipped, mails int64
		err := conn.QueryRow(ctx, `
			SELECT (SELECT count(*) FROM orders.orders WHERE status = 'shipped'),
			       (SELECT count(*) FROM email.emails WHERE state = 'sent')`).Scan(&shipped, &mails)
		if err != nil {
			return time.Time{}, err
		}
		if shipped == count && mails == 2*count {
			return time.Now(), nil
		}
		if time.Now().After(deadline) {
			return time.Time{}, fmt.Errorf("walk: after %v %d of %d orders are shipped and %d of %d mails sent", limit, shipped, count, mails, 2*count)
		}
		select {
		case <-ctx.Done():
			return time.Time{}, ctx.Err()
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func seed(ctx context.Context, ownerURL string) error {
	conn, err := pgx.Connect(ctx, ownerURL)
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	if err := order.SeedCatalog(ctx, conn); err != nil {
		return err
	}
	return api.AddKey(ctx, conn, api.Key{Secret: api.DevKey, Role: api.RoleService, Name: "bench"})
}

func freeAddr(ctx context.Context) (string, error) {
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer listener.Close()
	return listener.Addr().String(), nil
}

func answers(ctx context.Context, url string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// process is a running orderflow.
type process struct {
	cmd    *exec.Cmd
	output bytes.Buffer
	ended  chan struct{}
	err    error // of Wait, once ended is closed
}

func start(ctx context.Context, binary string, args ...string) (*process, error) {
	p := &process{cmd: exec.CommandContext(ctx, binary, args...), ended: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.output, &p.output
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(syscall.SIGTERM) }
	p.cmd.WaitDelay = 20 * time.Second
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.ended)
	}()
	return p, nil
}

// await waits until the process is ready, and fails with its output when it ends before that.
func (p *process) await(ctx context.Context, ready func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for !ready() {
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended: %w\n%s", p.cmd, p.err, p.output.String())
		case <-ctx.Done():
			return errors.Join(ctx.Err(), fmt.Errorf("%s is not ready", p.cmd))
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended by itself
	<-p.ended
}
