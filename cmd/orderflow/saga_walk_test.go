package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/internal/await"
)

// The walk of docs/operations.md: a refund that the provider has made and tells nobody of goes in doubt, is found, compared,
// resolved, and gone, with the command line alone.
func TestFromAlarmToResolution(t *testing.T) {
	readyFile := filepath.Join(t.TempDir(), "ready.json")
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	defer stop()
	var out buffer
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		run(ctx, []string{"dev", "--ephemeral", "--ready-file", readyFile, "--seed-orders", "0"}, &out, &out)
	}()
	defer func() { stop(); <-ended }()
	ready := waitReady(t, readyFile, os.Getpid(), ended, out.String)
	use := func(code int, args ...string) string {
		t.Helper()
		got := orderflow(t.Context(), append(args, "--data-dir", ready.DataDir)...)
		if got.code != code {
			t.Fatalf("orderflow %s = exit %d, want %d: %s%s", strings.Join(args, " "), got.code, code, got.stdout, got.stderr)
		}
		return got.stdout + got.stderr
	}
	eventually := func(what string, ok func() bool) {
		t.Helper()
		try := func(context.Context) error {
			if !ok() {
				return errors.New("not yet")
			}
			return nil
		}
		if err := await.New(nil, startLimit).For(t.Context(), what, try, func(error) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}

	var order struct{ ID string }
	if err := json.Unmarshal([]byte(use(0, "orders", "create", "--random", "--wait", "--timeout", "1m", "-o", "json")), &order); err != nil {
		t.Fatal(err)
	}
	fetch(t, http.MethodPost, ready.Sandbox+"/v1/faults", `{"payments": "drop", "lookups": "404", "webhooks": "hold"}`)
	use(0, "orders", "refund", order.ID, "--reason", "it arrived broken")
	pool, err := pgxpool.New(t.Context(), ready.Postgres)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	eventually("the refund to be in doubt", func() bool {
		_, err := pool.Exec(t.Context(), `UPDATE orders.saga_journal SET key_since = key_since - interval '1 day' WHERE name = 'refund payment'`)
		if err != nil {
			t.Fatal(err)
		}
		return !strings.Contains(use(0, "saga", "list", "--state", "in_doubt"), "no such sagas")
	})
	const alarm = `saga_live{state="in_doubt"} `
	eventually("the alarm", func() bool {
		return strings.Contains(fetch(t, http.MethodGet, ready.Ops["order"]+"/metrics", ""), alarm+"1\n")
	})

	var doubtful []struct{ ID string }
	if err := json.Unmarshal([]byte(use(0, "saga", "list", "--state", "in_doubt", "-o", "json")), &doubtful); err != nil || len(doubtful) != 1 {
		t.Fatalf("saga list = %+v, %v, want the refund", doubtful, err)
	}
	refund := doubtful[0].ID
	if got := use(0, "saga", "show", refund); !strings.Contains(got, "do refund payment: unknown, key "+refund+":refund-payment:1") {
		t.Errorf("saga show does not say which call is unknown, and under which key:\n%s", got)
	}
	// The look-up does not show the intent, the list does.
	both := use(0, "payments", "show", refund)
	list := regexp.MustCompile(`reconcile (--since \S+ --until \S+)`).FindStringSubmatch(both)
	if list == nil || !strings.Contains(both, order.ID) || !regexp.MustCompile(`there +no such intent`).MatchString(both) {
		t.Fatalf("payments show does not say where the provider may know it:\n%s", both)
	}
	reconciled := use(exitCheckFailed, append([]string{"payments", "reconcile"}, strings.Fields(list[1])...)...)
	said := regexp.MustCompile(regexp.QuoteMeta(order.ID) + `.* refunded as (re_\S+), `).FindStringSubmatch(reconciled)
	if said == nil {
		t.Fatalf("reconcile does not say as what the provider has refunded it:\n%s", reconciled)
	}
	if got := use(0, "payments", "show", order.ID, "-o", "json"); !strings.Contains(got, `"refund_id": "`+refund+`"`) {
		t.Errorf("payments show of the order does not name its refund:\n%s", got)
	}
	use(exitNotFound, "payments", "show", uuid.NewString())
	resolve := []string{"saga", "resolve", refund, "--refunded", said[1], "--reason", "seen in the provider's list"}
	seen := regexp.MustCompile(`--rev (\d+) --yes does it`).FindStringSubmatch(use(0, resolve...))
	if seen == nil {
		t.Fatal("resolve without --yes does not say which revision it shows")
	}
	if got := use(0, "saga", "show", refund); !strings.Contains(got, "in_doubt") {
		t.Errorf("resolve without --yes changed the saga:\n%s", got)
	}
	use(0, append(resolve, "--rev", seen[1], "--yes")...)
	eventually("the refund to have ended", func() bool { return strings.Contains(use(0, "saga", "show", refund), "completed") })
	if got := use(0, "saga", "list", "--state", "in_doubt"); !strings.Contains(got, "no such sagas") {
		t.Errorf("saga list still shows it:\n%s", got)
	}
	use(0, "payments", "reconcile", "--until", "1s")
	eventually("the end of the alarm", func() bool {
		return strings.Contains(fetch(t, http.MethodGet, ready.Ops["order"]+"/metrics", ""), alarm+"0\n")
	})
}

// fetch returns what a server answers.
func fetch(t *testing.T, method, url, body string) string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	raw, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		t.Fatalf("%s %s = %s, %v: %s", method, url, resp.Status, err, raw)
	}
	return string(raw)
}
