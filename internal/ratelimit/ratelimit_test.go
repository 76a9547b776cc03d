package ratelimit_test

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/internal/ratelimit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// open returns a limiter on the Redis at address. Patience is long for tests that are not about it, on a busy machine.
func open(t *testing.T, address string, opts ratelimit.Options) *ratelimit.Limiter {
	t.Helper()
	if opts.Patience == 0 {
		opts.Patience = 10 * time.Second
	}
	if address != "" {
		address = "redis://" + address
	}
	l, err := ratelimit.Open(address, opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// allowed asks n times and returns how often the answer was yes.
func allowed(t *testing.T, l *ratelimit.Limiter, key string, n int) int {
	t.Helper()
	count := 0
	for range n {
		if d := l.Allow(t.Context(), key); d.Allowed {
			count++
		} else if d.RetryAfter <= 0 {
			t.Errorf("Allow(%s) = %+v, want a RetryAfter", key, d)
		}
	}
	return count
}

func TestBurstThenTheRateInMemory(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l := open(t, "", ratelimit.Options{PerSecond: 10, Burst: 5})
		if got := allowed(t, l, "ada", 20); got != 5 {
			t.Errorf("%d of 20 at once, want the burst of 5", got)
		}
		time.Sleep(300 * time.Millisecond) //nolint:forbidigo // fake time
		if got := allowed(t, l, "ada", 20); got != 3 {
			t.Errorf("%d of 20 after 300 ms, want 3 at 10 a second", got)
		}
		if got := allowed(t, l, "ben", 20); got != 5 {
			t.Errorf("%d of 20 of another key, want its own burst of 5", got)
		}
		time.Sleep(time.Hour) //nolint:forbidigo // fake time
		if got := allowed(t, l, "ada", 20); got != 5 {
			t.Errorf("%d of 20 after an hour, want no more than the burst of 5", got)
		}
	})
}

// refilled is the most that a limit of one a second can have given back since began.
func refilled(began time.Time) int { return 1 + int(time.Since(began)/time.Second) }

func TestProcessesShareTheLimitThroughRedis(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	opts := ratelimit.Options{PerSecond: 1, Burst: 10}
	began := time.Now()
	var count atomic.Int64
	var group sync.WaitGroup
	for range 3 {
		l := open(t, server.Addr(), opts)
		group.Go(func() { count.Add(int64(allowed(t, l, "ada", 10))) })
	}
	group.Wait()
	if n := int(count.Load()); n < 10 || n > 10+refilled(began) {
		t.Errorf("three processes allowed %d of 30 together, want 10", n)
	}
}

func TestWithoutRedisTheLimitIsLocalNotGone(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	l := open(t, server.Addr(), ratelimit.Options{PerSecond: 1, Burst: 10})
	began := time.Now()
	if d := l.Allow(t.Context(), "ada"); !d.Allowed || d.Local {
		t.Fatalf("Allow with Redis = %+v", d)
	}
	server.Close()
	if got := allowed(t, l, "ada", 30); got < 10 || got > 10+refilled(began) {
		t.Errorf("%d of 30 without Redis, want the process's own burst of 10", got)
	}
	if err := server.Restart(); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for l.Allow(t.Context(), "ben").Local {
		if time.Now().After(deadline) {
			t.Fatal("the limit is still local 30 s after Redis came back")
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestAHangingRedisCostsOneQuestionASecond(t *testing.T) {
	t.Parallel()
	address, connections := mute(t)
	l := open(t, address, ratelimit.Options{PerSecond: 1, Burst: 1000, Patience: 50 * time.Millisecond})
	began := time.Now()
	if first := l.Allow(t.Context(), "ada"); !first.Allowed || !first.Local {
		t.Errorf("Allow = %+v, want a local yes", first)
	}
	if got := allowed(t, l, "ada", 500); got != 500 {
		t.Errorf("%d of 500 allowed, want all", got)
	}
	// A question that got no answer has used its connection up.
	if asked, most := connections(), 1+int(time.Since(began)/time.Second); asked > most {
		t.Errorf("501 requests asked Redis %d times in %v, want one question a second", asked, time.Since(began))
	}
}

// mute returns the address of a server that accepts and never answers, and how many connections it has had so far.
func mute(t *testing.T) (address string, connections func() int) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var count atomic.Int64
	var accepting sync.WaitGroup
	accepting.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			count.Add(1)
			defer func() { _ = conn.Close() }()
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		accepting.Wait()
	})
	return listener.Addr().String(), func() int { return int(count.Load()) }
}

func TestFlushedRedisStartsAFreshBurst(t *testing.T) {
	t.Parallel()
	server := miniredis.RunT(t)
	l := open(t, server.Addr(), ratelimit.Options{PerSecond: 1, Burst: 5})
	for range 2 {
		began := time.Now()
		if got := allowed(t, l, "ada", 20); got < 5 || got > 5+refilled(began) {
			t.Errorf("%d of 20, want 5", got)
		}
		server.FlushAll()
	}
}

func TestOpenKeepsThePasswordToItself(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"redis://:hunter2@host:port", "http://:hunter2@host"} {
		if _, err := ratelimit.Open(address, ratelimit.Options{}); err == nil || strings.Contains(fmt.Sprint(err), "hunter2") {
			t.Errorf("Open(%s) = %v, want an error without the password", address, err)
		}
	}
}

func TestAWrongRedisURLKeepsItsPasswordToItself(t *testing.T) {
	t.Parallel()
	for _, address := range []string{"redis://shop:hunter2@ca\x7fche", "redis://shop:hunter2/x@cache", "http://shop:hunter2@cache"} {
		if _, err := ratelimit.ParseURL(address); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("ParseURL(%q) = %v, want an error without the password", address, err)
		}
	}
}
