package outbox_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/orderflow-dev/orderflow/internal/kafkatest"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/outbox"
)

// processVariable makes the test binary a relay, with the settings that it holds.
const processVariable = "ORDERFLOW_OUTBOX_TEST_RELAY"

type processSettings struct {
	URL     string
	Brokers []string
	Lease   time.Duration
}

// relayProcess is all that a process needs to be a relay.
func relayProcess(settings string) error {
	var s processSettings
	if err := json.Unmarshal([]byte(settings), &s); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	pool, err := pgxpool.New(ctx, s.URL)
	if err != nil {
		return err
	}
	defer pool.Close()
	client, err := kgo.NewClient(append(outbox.KafkaOptions(), kgo.SeedBrokers(s.Brokers...))...)
	if err != nil {
		return err
	}
	defer client.Close()
	relay, err := outbox.NewRelay(pool, outbox.NewKafkaPublisher(client), outbox.RelayOptions{
		Schema: schema, Lease: s.Lease, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	return relay.Run(ctx)
}

// process is a relay in a process of its own.
type process struct {
	*exec.Cmd
	log  logged
	name string
}

// startProcess starts a relay and waits until it has connected.
func startProcess(t testing.TB, db *pgtest.DB, brokers []string, name string, lease time.Duration) *process {
	t.Helper()
	settings, err := json.Marshal(processSettings{URL: db.URL + "&application_name=" + name, Brokers: brokers, Lease: lease})
	if err != nil {
		t.Fatal(err)
	}
	p := &process{Cmd: exec.Command(os.Args[0]), name: name}
	p.Env = append(os.Environ(), processVariable+"="+string(settings))
	p.Stderr = &p.log
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if p.ProcessState == nil {
			_ = p.Process.Kill() // it may have ended
			_ = p.Wait()         // it was killed
		}
		t.Logf("relay %s said:\n%s", name, p.log.since(0))
	})
	eventually(t, func() error {
		var there bool
		err := db.Pool.QueryRow(t.Context(), `
			SELECT EXISTS (SELECT FROM pg_stat_activity WHERE application_name = $1 AND datname = current_database())`,
			name).Scan(&there)
		if err == nil && !there {
			err = fmt.Errorf("relay %s has not connected", name)
		}
		return err
	})
	return p
}

func (p *process) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	if err := p.Process.Signal(sig); err != nil {
		t.Fatal(err)
	}
}

// leaseIs is what is in the lease's row, by Postgres' clock, which is the one that decides.
type leaseIs struct {
	Epoch   int64
	Expires time.Time
	Left    float64 // seconds
}

func readLease(t testing.TB, db *pgtest.DB) (l leaseIs) {
	t.Helper()
	err := db.Pool.QueryRow(t.Context(), `
		SELECT epoch, CASE WHEN isfinite(expires_at) THEN expires_at ELSE to_timestamp(0) END,
			CASE WHEN isfinite(expires_at) THEN extract(epoch FROM expires_at - clock_timestamp())::float8 ELSE 0 END
		FROM orders.outbox_lease WHERE relay = 'relay'`).Scan(&l.Epoch, &l.Expires, &l.Left)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// defaultLease and an attempt each 150 ms make fail-over take less than five seconds.
const defaultLease = 4 * time.Second

func TestStandbyTakesOverFromAProcessThatWasKilledWhenItsLeaseIsOver(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), kafkatest.New(t, "orders")
	leader := startProcess(t, db, broker.Addrs, "leader", 0)
	write(t, db.Pool, message("orders", "a", 0))
	broker.Read(t, 1, "orders")
	startProcess(t, db, broker.Addrs, "standby", 0)
	last := readLease(t, db)
	leader.signal(t, syscall.SIGKILL)
	_ = leader.Wait() // it was killed
	if last.Left > defaultLease.Seconds() {
		t.Errorf("when the leader was killed %.1f s of its lease were left, want at most %v", last.Left, defaultLease)
	}
	write(t, db.Pool, message("orders", "a", 1))
	var next leaseIs
	eventually(t, func() error {
		if next = readLease(t, db); next.Epoch <= last.Epoch {
			return fmt.Errorf("epoch is %d still, want the standby to lead", next.Epoch)
		}
		return nil
	})
	if acquired := next.Expires.Add(-defaultLease); acquired.Before(last.Expires) {
		t.Errorf("the standby leads since %v, before the lease of the killed one was over at %v", acquired, last.Expires)
	}
	recordsAre(t, published(t, db, broker, "orders"), "0", "1")
}

// recordsAre compares first appearances.
func recordsAre(t *testing.T, records []*kgo.Record, want ...string) {
	t.Helper()
	var got []string
	for _, r := range firsts(records) {
		got = append(got, strings.Trim(string(r.Value), `{"n:}`))
	}
	if strings.Join(got, " ") != strings.Join(want, " ") {
		t.Errorf("published %v, want %v", got, want)
	}
}

func TestStandbyTakesOverAtOnceFromAProcessThatIsTerminated(t *testing.T) {
	t.Parallel()
	db, broker := newOutbox(t), kafkatest.New(t, "orders")
	leader := startProcess(t, db, broker.Addrs, "leader", time.Hour) // nobody would wait for its end
	write(t, db.Pool, message("orders", "a", 0))
	broker.Read(t, 1, "orders")
	startProcess(t, db, broker.Addrs, "standby", time.Hour)
	leader.signal(t, syscall.SIGTERM)
	if err := leader.Wait(); err != nil {
		t.Errorf("a relay that is terminated ends with %v, want exit code 0", err)
	}
	write(t, db.Pool, message("orders", "a", 1))
	records := broker.Read(t, 2, "orders")
	recordsAre(t, records, "0", "1")
	if l := readLease(t, db); l.Epoch != 2 {
		t.Errorf("epoch is %d, want 2", l.Epoch)
	}
}

// A process that is stopped with a page in flight gets the broker's answer when its lease is long over.
func TestProcessThatWasPausedPastItsLeaseCannotCheckpoint(t *testing.T) {
	t.Parallel()
	db, fake := newOutbox(t), kafkatest.NewFake(t, kfake.SeedTopics(1, "orders"))
	var leader atomic.Pointer[process]
	paused := make(chan error, 1)
	fake.Cluster.ControlKey(int16(kmsg.Produce), func(kmsg.Request) (kmsg.Response, error, bool) {
		if p := leader.Swap(nil); p != nil {
			paused <- p.Process.Signal(syscall.SIGSTOP)
		} else {
			fake.Cluster.KeepControl()
		}
		return nil, nil, false // the broker takes the page, and its answer finds nobody
	})
	first := startProcess(t, db, fake.Addrs, "leader", time.Second)
	eventually(t, func() error {
		if l := readLease(t, db); l.Epoch == 0 {
			return errors.New("nobody leads")
		}
		return nil
	})
	leader.Store(first)
	write(t, db.Pool, message("orders", "a", 0))
	if err := <-paused; err != nil {
		t.Fatal(err)
	}
	startProcess(t, db, fake.Addrs, "standby", 0)
	write(t, db.Pool, message("orders", "a", 1))
	eventually(t, func() error { return backlogIs(t, db.Pool, 0) })
	successor := readLease(t, db)
	saved := func() (n int64) {
		if err := db.Pool.QueryRow(t.Context(), `
			SELECT coalesce(max(n), 0) FROM orders.outbox_cursor WHERE epoch < $1`, successor.Epoch).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	before := saved()
	first.signal(t, syscall.SIGCONT)
	eventually(t, func() error {
		if !strings.Contains(first.log.since(0), "relay starts again from its cursor") {
			return errors.New("the paused leader has not noticed")
		}
		return nil
	})
	if after := saved(); after > before {
		t.Errorf("a leader that was paused past its lease has saved its cursor: row %d after %d", after, before)
	}
	if now := readLease(t, db); now.Epoch != successor.Epoch {
		t.Errorf("epoch is %d, want the successor's %d still", now.Epoch, successor.Epoch)
	}
	recordsAre(t, published(t, db, fake.Broker, "orders"), "0", "1")
}

// A page that is still in flight when the lease is over may overtake the next leader.
func TestPageMustBeAckedBeforeTheLeaseIsOver(t *testing.T) {
	t.Parallel()
	db := newOutbox(t)
	const tries = 3
	seen := make(chan error, tries)
	late := func(ctx context.Context) error {
		deadline, limited := ctx.Deadline()
		asked := time.Now()
		left := time.Duration(readLease(t, db).Left * float64(time.Second))
		if over := asked.Add(left); !limited || !deadline.Before(over) {
			return fmt.Errorf("the page may take until %v, the lease is over at %v", deadline, over)
		}
		return nil
	}
	write(t, db.Pool, message("orders", "a", 0))
	start(t, db.Pool, publisherFunc(func(ctx context.Context, page []outbox.Record) []error {
		select {
		case seen <- late(ctx):
		default:
		}
		return []error{errors.New("not yet")}
	}), outbox.RelayOptions{})
	for range tries {
		if err := <-seen; err != nil {
			t.Error(err)
		}
	}
}
