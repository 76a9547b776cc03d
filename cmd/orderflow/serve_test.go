package main

import (
	"context"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
)

// serving is a service that runs in this process.
type serving struct {
	t     *testing.T
	out   buffer
	stop  context.CancelFunc
	ended chan struct{}
	code  int
}

func serveInBackground(t *testing.T, args ...string) *serving {
	t.Helper()
	ctx, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	s := &serving{t: t, stop: stop, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		s.code = run(ctx, args, &s.out, &s.out)
	}()
	t.Cleanup(func() { stop(); <-s.ended })
	return s
}

// says waits until the service has logged every word.
func (s *serving) says(words ...string) {
	s.t.Helper()
	limit := time.After(20 * time.Second)
	for {
		said, missing := s.out.String(), ""
		for _, word := range words {
			if !strings.Contains(said, word) {
				missing = word
			}
		}
		if missing == "" {
			return
		}
		select {
		case <-s.ended:
			s.t.Fatalf("the service ended (exit %d) and never said %q:\n%s", s.code, missing, said)
		case <-limit:
			s.t.Fatalf("the service has not said %q within 20 s:\n%s", missing, said)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (s *serving) interrupt() int {
	s.stop()
	<-s.ended
	return s.code
}

func portOf(t *testing.T, addr string) int {
	t.Helper()
	_, port, err := net.SplitHostPort(addr)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestAServiceThatStartsBeforeKafkaWaitsForIt(t *testing.T) {
	t.Parallel()
	db := migrated.New(t)
	for _, tc := range []struct {
		name string
		args []string
	}{
		{"relay", []string{"relay", "--orders-database-url", db.RoleURL("orders_relay")}},
		{"order", []string{"order", "--database-url", db.RoleURL("orders")}},
		{"email", []string{"email", "--database-url", db.RoleURL("email")}},
		{"warehouse", []string{"warehouse", "--database-url", db.RoleURL("warehouse")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			broker, ops := unused(t), unused(t)
			s := serveInBackground(t, append(tc.args, "--kafka", broker, "--ops-addr", ops, "--dev")...)
			s.says("start waits", broker, "start it")
			kafkatest.NewFake(t, kfake.Ports(portOf(t, broker)), kfake.SeedTopics(event.Partitions, event.Topics()...))
			wantReady(t, s, "http://"+ops+"/readyz")
			if code := s.interrupt(); code != 0 {
				t.Errorf("exit %d after an interrupt, want 0:\n%s", code, s.out.String())
			}
		})
	}
}

func wantReady(t *testing.T, s *serving, url string) {
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 5 * time.Second}
	limit := time.After(30 * time.Second)
	for {
		if resp, err := client.Get(url); err == nil {
			_ = resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case <-s.ended:
			t.Fatalf("the service ended with exit %d:\n%s", s.code, s.out.String())
		case <-limit:
			t.Fatalf("the service is not ready within 30 s:\n%s", s.out.String())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestAStartThatWaitsInVainEndsWith5(t *testing.T) {
	t.Parallel()
	nowhere := unused(t)
	database := "postgres://me@" + nowhere + "/x"
	for _, tc := range []struct {
		name   string
		args   []string
		stderr string
	}{
		{"the api without Postgres", []string{"api", "--database-url", database}, "Postgres"},
		{"the relay without Kafka", []string{"relay", "--orders-database-url", database, "--kafka", nowhere}, "Kafka"},
		{"the warehouse without Kafka", []string{"warehouse", "--database-url", database, "--kafka", nowhere}, "Kafka"},
		{"the order service without Postgres", []string{"order", "--database-url", database, "--kafka", nowhere, "--dev"}, "Postgres"},
		{"the email service without topics", []string{"email", "--database-url", migrated.New(t).RoleURL("email"), "--dev",
			"--kafka", kafkatest.New(t).Addrs[0]}, "orderflow migrate"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			args := append(tc.args, "--wait", "3s")
			if tc.args[0] != "api" {
				args = append(args, "--ops-addr", "")
			}
			got := orderflow(t.Context(), args...)
			if got.code != exitUnreachable || !strings.Contains(got.stderr, tc.stderr) || !strings.Contains(got.stderr, "start waits") {
				t.Errorf("exit %d, %s; want %d, what it waited for and %q", got.code, got.stderr, exitUnreachable, tc.stderr)
			}
		})
	}
}

func TestAnInterruptEndsTheWaitOfAStart(t *testing.T) {
	t.Parallel()
	nowhere := unused(t)
	database := "postgres://me@" + nowhere + "/x"
	for name, args := range map[string][]string{
		"for Postgres": {"api", "--database-url", database},
		"for Kafka":    {"email", "--database-url", database, "--kafka", nowhere, "--ops-addr", ""},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := serveInBackground(t, append(args, "--wait", "1h")...)
			s.says("start waits")
			if code := s.interrupt(); code != 0 || !strings.Contains(s.out.String(), "service stopped") {
				t.Errorf("exit %d after an interrupt, want 0:\n%s", code, s.out.String())
			}
		})
	}
}

func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	limit := time.After(20 * time.Second)
	for !done() {
		select {
		case <-limit:
			t.Fatalf("%s: not within 20 s", what)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
