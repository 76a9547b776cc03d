package await_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/orderflow-dev/orderflow/internal/await"
)

var (
	errAway  = errors.New("not there, start it")
	errWrong = errors.New("wrong password")
)

func mayCome(err error) bool { return errors.Is(err, errAway) }

func TestForWaitsAndSaysSoAtOnceAndEveryTenSeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		p := await.New(slog.New(slog.NewTextHandler(&log, nil)), 0)
		began, tries := time.Now(), 0
		err := p.For(t.Context(), "kafka", func(context.Context) error {
			if tries++; time.Since(began) < 35*time.Second {
				return errAway
			}
			return nil
		}, mayCome)
		if err != nil {
			t.Fatalf("For = %v, want nil", err)
		}
		if got := strings.Count(log.String(), "level=WARN"); got != 4 { // at 0, 10, 20 and 30 s
			t.Errorf("warnings in 35 s = %d, want 4:\n%s", got, log.String())
		}
		if !strings.Contains(log.String(), "not there, start it") || !strings.Contains(log.String(), "for=kafka") {
			t.Errorf("log lacks what is waited for and what to do:\n%s", log.String())
		}
		if tries > 60 {
			t.Errorf("tries in 35 s = %d, want at most one a second but for the first", tries)
		}
	})
}

func TestForEndsWhenWaitingDoesNotHelp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for _, tc := range []struct {
			name  string
			lives time.Duration // the context
			limit time.Duration
			fails error
			want  error
			after time.Duration // at most
		}{
			{"a mistake is not waited for", time.Hour, 0, errWrong, errWrong, 0},
			{"the end of ctx is", 5 * time.Second, 0, errAway, context.DeadlineExceeded, 5 * time.Second},
			{"the patience is over", time.Hour, 3 * time.Second, errAway, errAway, 3 * time.Second},
			{"one try", time.Hour, -1, errAway, errAway, 0},
		} {
			ctx, cancel := context.WithTimeout(t.Context(), tc.lives)
			began := time.Now()
			err := await.New(nil, tc.limit).For(ctx, "kafka", func(context.Context) error { return tc.fails }, mayCome)
			cancel()
			if took := time.Since(began); !errors.Is(err, tc.want) || took > tc.after {
				t.Errorf("%s: For = %v after %v; want %v within %v", tc.name, err, took, tc.want, tc.after)
			}
		}
	})
}

func TestOneTimeServesAllThatAStartNeeds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := await.New(nil, 10*time.Second)
		began := time.Now()
		first := p.For(t.Context(), "postgres", func(context.Context) error {
			if time.Since(began) < 8*time.Second {
				return errAway
			}
			return nil
		}, mayCome)
		second := p.For(t.Context(), "kafka", func(context.Context) error { return errAway }, mayCome)
		if took := time.Since(began); first != nil || !errors.Is(second, errAway) || took > 10*time.Second {
			t.Errorf("For twice = %v, %v after %v; want the second one's error within 10 s", first, second, took)
		}
	})
}
