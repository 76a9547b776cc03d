package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync/atomic"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

const (
	// patience is the most that one question to Redis may cost.
	patience = 50 * time.Millisecond
	// respite is how long Redis is left alone after it failed.
	respite = time.Second
)

// Options are the settings of a [Limiter].
type Options struct {
	// PerSecond is how many requests a second a key may make in the long run. Default 50.
	PerSecond int
	// Burst is how many a key may make at once after a pause. Default 2 × PerSecond.
	Burst int
	// Log receives a warning when Redis goes away and a note when it is back. Default: none.
	Log *slog.Logger
}

// Limiter limits requests by key. It is safe for concurrent use.
type Limiter struct {
	shared *redis_rate.Limiter // nil: memory only
	limit  redis_rate.Limit
	memory *memory
	log    *slog.Logger
	// resume is when Redis may be asked again, in Unix nanoseconds; 0 while it answers.
	resume atomic.Int64
}

// Decision is the answer to one request.
type Decision struct {
	Allowed bool
	// RetryAfter is how long to wait before the next try, if it was not allowed.
	RetryAfter time.Duration
	// Local reports that Redis was not asked or did not answer.
	Local bool
}

// Open returns a client that gives up fast, as a limiter needs it. address is a redis:// or rediss:// URL. The caller
// closes the client.
func Open(address string) (*redis.Client, error) {
	opts, err := redis.ParseURL(address)
	if err != nil {
		var quoting *url.Error // it quotes the whole address, with the password
		if errors.As(err, &quoting) {
			err = quoting.Err
		}
		return nil, fmt.Errorf("read the address of redis: %w", err)
	}
	opts.DialTimeout, opts.ReadTimeout, opts.WriteTimeout, opts.PoolTimeout = patience, patience, patience, patience
	opts.ContextTimeoutEnabled = true
	opts.MaxRetries = -1
	opts.DialerRetries = 1
	opts.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	return redis.NewClient(opts), nil
}

// New returns a limiter that counts in client's Redis, or, when client is nil, in memory only. The caller closes client.
func New(client *redis.Client, opts Options) *Limiter {
	if opts.PerSecond <= 0 {
		opts.PerSecond = 50
	}
	if opts.Burst <= 0 {
		opts.Burst = 2 * opts.PerSecond
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	l := &Limiter{
		limit:  redis_rate.Limit{Rate: opts.PerSecond, Burst: opts.Burst, Period: time.Second},
		memory: newMemory(opts.PerSecond, opts.Burst),
		log:    opts.Log,
	}
	if client != nil {
		l.shared = redis_rate.NewLimiter(client)
	}
	return l
}

// Allow counts one request of key and decides on it. It never fails and takes at most 50 ms.
func (l *Limiter) Allow(ctx context.Context, key string) Decision {
	if l.shared == nil || !l.mayAsk(time.Now()) {
		return l.memory.allow(key, time.Now())
	}
	ask, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	result, err := l.shared.Allow(ask, key, l.limit)
	if err != nil {
		if ctx.Err() == nil { // else the caller went away, which says nothing about Redis
			l.failed(ctx, err)
		}
		return l.memory.allow(key, time.Now())
	}
	if l.resume.Swap(0) != 0 {
		l.log.InfoContext(ctx, "redis is back, the rate limit is shared again")
	}
	return Decision{Allowed: result.Allowed > 0, RetryAfter: max(0, result.RetryAfter)}
}

// mayAsk reports whether Redis is to be asked now. When a respite ends only the first caller asks; the others go on without.
func (l *Limiter) mayAsk(now time.Time) bool {
	resume := l.resume.Load()
	if resume == 0 {
		return true
	}
	return now.UnixNano() >= resume && l.resume.CompareAndSwap(resume, now.Add(respite).UnixNano())
}

func (l *Limiter) failed(ctx context.Context, err error) {
	if l.resume.Swap(time.Now().Add(respite).UnixNano()) == 0 {
		l.log.WarnContext(ctx, "redis does not answer, the rate limit is this process's own for now", slog.Any("error", err))
	}
}
