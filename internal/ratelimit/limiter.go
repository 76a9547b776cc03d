package ratelimit

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-redis/redis_rate/v10"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// respite is how long Redis is left alone after it failed.
const respite = time.Second

// Options are the settings of a [Limiter].
type Options struct {
	// PerSecond is how many requests a second a key may make in the long run. Default 50.
	PerSecond int
	// Burst is how many a key may make at once after a pause. Default 2 × PerSecond.
	Burst int
	// Patience is the most that one question to Redis may cost. Default 50 ms.
	Patience time.Duration
	// Log receives a warning when Redis goes away and a note when it is back. Default: none.
	Log *slog.Logger
}

// Limiter limits requests by key. It is safe for concurrent use.
type Limiter struct {
	client   *redis.Client // nil: memory only
	shared   *redis_rate.Limiter
	limit    redis_rate.Limit
	memory   *memory
	patience time.Duration
	log      *slog.Logger
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

// Open returns a limiter that counts in the Redis at address, a redis:// or rediss:// URL, or, when address is empty, in
// memory only. It does not connect yet: a Redis that is away now may come later. The caller closes the limiter.
func Open(address string, opts Options) (*Limiter, error) {
	if opts.PerSecond <= 0 {
		opts.PerSecond = 50
	}
	if opts.Burst <= 0 {
		opts.Burst = 2 * opts.PerSecond
	}
	if opts.Patience <= 0 {
		opts.Patience = 50 * time.Millisecond
	}
	if opts.Log == nil {
		opts.Log = slog.New(slog.DiscardHandler)
	}
	l := &Limiter{
		limit:    redis_rate.Limit{Rate: opts.PerSecond, Burst: opts.Burst, Period: time.Second},
		memory:   newMemory(opts.PerSecond, opts.Burst),
		patience: opts.Patience,
		log:      opts.Log,
	}
	if address == "" {
		return l, nil
	}
	settings, err := ParseURL(address)
	if err != nil {
		return nil, err
	}
	quiet()
	settings.DialTimeout, settings.PoolTimeout = opts.Patience, opts.Patience
	settings.ReadTimeout, settings.WriteTimeout = opts.Patience, opts.Patience
	settings.ContextTimeoutEnabled = true
	settings.MaxRetries, settings.DialerRetries = -1, 1
	settings.MaintNotificationsConfig = &maintnotifications.Config{Mode: maintnotifications.ModeDisabled}
	l.client = redis.NewClient(settings)
	l.shared = redis_rate.NewLimiter(l.client)
	return l, nil
}

// ParseURL reads the URL of a Redis. Its error keeps the password to itself.
func ParseURL(address string) (*redis.Options, error) {
	settings, err := redis.ParseURL(address)
	var quoting *url.Error // of an address that cannot be read any part may be the password
	if errors.As(err, &quoting) {
		err = errors.New("it must look like redis://user:password@host:6379/0")
	}
	if err != nil {
		return nil, fmt.Errorf("read the address of redis: %w", err)
	}
	return settings, nil
}

// quiet ends go-redis's own logging, which is the same for all clients of a process and knows neither levels nor our format:
// what it would say at every try, the limiter says once.
var quiet = sync.OnceFunc(func() { redis.SetLogger(silence{}) })

type silence struct{}

// Printf drops the line.
func (silence) Printf(context.Context, string, ...any) {}

// Close ends the connections to Redis.
func (l *Limiter) Close() error {
	if l.client == nil {
		return nil
	}
	if err := l.client.Close(); err != nil {
		return fmt.Errorf("close redis: %w", err)
	}
	return nil
}

// Allow counts one request of key and decides on it. It never fails, and waits for Redis no longer than Options.Patience.
func (l *Limiter) Allow(ctx context.Context, key string) Decision {
	if l.shared == nil || !l.mayAsk(time.Now()) {
		return l.memory.allow(key, time.Now())
	}
	ask, cancel := context.WithTimeout(ctx, l.patience)
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
