package email

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/inbox"
	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/pgtest"
	"github.com/orderflow-dev/orderflow/internal/pgtest/migrated"
	"github.com/orderflow-dev/orderflow/services/sandbox"
)

// childConfig holds the sender's configuration when the test binary runs as the sender that a test kills.
const childConfig = "EMAIL_TEST_CHILD_CONFIG"

func TestMain(m *testing.M) {
	if cfg := os.Getenv(childConfig); cfg != "" {
		runChild(cfg)
	}
	pgtest.Main(m)
}

// impatient is a timing for tests: what takes seconds in production takes tens of milliseconds.
func impatient() timing {
	return timing{
		retryMin: 20 * time.Millisecond, retryMax: 200 * time.Millisecond, grace: 50 * time.Millisecond,
		circuit: 30 * time.Millisecond, poll: 10 * time.Millisecond,
	}
}

// childTiming leaves the provider time to make up its mind about what a killed sender left on the wire, on a busy machine
// too: that is the one thing the promise needs of it.
func childTiming() timing {
	t := impatient()
	t.grace = time.Second
	return t
}

// child is what of a [Config] goes into a child's environment.
type child struct {
	DatabaseURL, SMTPAddr, LookupURL *string
	SendTimeout                      *time.Duration
}

func runChild(config string) {
	var cfg Config
	c := child{&cfg.DatabaseURL, &cfg.SMTPAddr, &cfg.LookupURL, &cfg.SendTimeout}
	err := json.Unmarshal([]byte(config), &c)
	if cfg = cfg.withDefaults(); err == nil {
		var pool *pgxpool.Pool
		if pool, err = pgxpool.New(context.Background(), cfg.DatabaseURL); err == nil {
			var s *sender
			if s, err = newSender(pool, discard(), nil, cfg, childTiming()); err == nil {
				err = s.Run(context.Background())
			}
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// post is a mail provider: a sandbox whose mails a test can count.
type post struct {
	url, smtp string
	dir       string
	stop      func()
}

// startPost runs a provider until the test ends, or until its stop is called.
func startPost(t *testing.T) *post {
	t.Helper()
	return startPostAt(t, &post{url: "http://127.0.0.1:0", smtp: "127.0.0.1:0", dir: t.TempDir()})
}

// startPostAt runs the provider p again, at the addresses and with the journal it had.
func startPostAt(t *testing.T, p *post) *post {
	t.Helper()
	listen := func(addr string) net.Listener {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		return ln
	}
	web, smtp := listen(strings.TrimPrefix(p.url, "http://")), listen(p.smtp)
	p = &post{url: "http://" + web.Addr().String(), smtp: smtp.Addr().String(), dir: p.dir}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() {
		done <- sandbox.Run(ctx, discard(), sandbox.Config{
			Listener: web, SMTPListener: smtp, DataDir: p.dir, Slow: 30 * time.Millisecond,
		})
	}()
	p.stop = sync.OnceFunc(func() {
		http.DefaultClient.CloseIdleConnections()
		cancel()
		if err := <-done; err != nil {
			t.Errorf("sandbox: %v", err)
		}
	})
	t.Cleanup(p.stop)
	return p
}

func (p *post) fault(t *testing.T, body string) {
	t.Helper()
	resp, err := http.Post(p.url+"/v1/faults", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("fault %s: got %d", body, resp.StatusCode)
	}
}

// acceptedMail is a mail that the provider has.
type acceptedMail struct {
	Seq       int64    `json:"seq"`
	To        []string `json:"to"`
	Subject   string   `json:"subject"`
	OrderID   string   `json:"order_id"`
	EmailKind string   `json:"email_kind"`
	MessageID string   `json:"message_id"`
	Text      string   `json:"text"`
	HTML      string   `json:"html"`
}

func (p *post) read(t *testing.T, path string, into any) {
	t.Helper()
	resp, err := http.Get(p.url + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(body, into)
	}
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
}

func (p *post) mails(t *testing.T) []acceptedMail {
	t.Helper()
	var mails []acceptedMail
	p.read(t, "/v1/mail", &mails)
	return mails
}

// counts returns how often each (order, kind) was accepted.
func (p *post) counts(t *testing.T) map[string]int {
	t.Helper()
	counts := map[string]int{}
	for _, m := range p.mails(t) {
		counts[m.OrderID+" "+m.EmailKind]++
	}
	return counts
}

// office is a database with emails to send, and a provider.
type office struct {
	*pgtest.DB
	pool *pgxpool.Pool // as the service's role
	post *post
	cfg  Config
	log  *slog.Logger
	said *transcript
}

// transcript is what was logged.
type transcript struct {
	mu   sync.Mutex
	text strings.Builder
}

func (tr *transcript) Write(p []byte) (int, error) {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.text.Write(p)
}

func (tr *transcript) String() string {
	tr.mu.Lock()
	defer tr.mu.Unlock()
	return tr.text.String()
}

func newOffice(t *testing.T) *office {
	t.Helper()
	o := &office{DB: migrated.New(t), post: startPost(t), said: &transcript{}}
	o.log = slog.New(slog.NewTextHandler(o.said, nil))
	o.pool = o.RolePool("email")
	o.cfg = Config{
		DatabaseURL: o.RoleURL("email"), SMTPAddr: o.post.smtp, LookupURL: o.post.url + "/v1/mail",
		SendTimeout: 5 * time.Second, RatePerSecond: 1e6,
	}.withDefaults()
	return o
}

// start runs a sender until the test ends, or until stop is called.
func (o *office) start(t *testing.T) (stop func()) {
	t.Helper()
	s, err := newSender(o.pool, o.log, nil, o.cfg, impatient())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("sender: %v", err)
		}
	})
	t.Cleanup(stop)
	return stop
}

// spawn runs a sender in a process of its own; kill ends it as kill -9 does.
func (o *office) spawn(t *testing.T) (kill func()) {
	t.Helper()
	cfg, err := json.Marshal(child{&o.cfg.DatabaseURL, &o.cfg.SMTPAddr, &o.cfg.LookupURL, &o.cfg.SendTimeout})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childConfig+"="+string(cfg))
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	t.Cleanup(kill)
	return kill
}

// queue inserts n confirmations and returns the orders they are about.
func (o *office) queue(t *testing.T, n int) []uuid.UUID {
	t.Helper()
	var orders []uuid.UUID
	var msgs []inbox.Message
	for range n {
		e := completed("ann")
		orders, msgs = append(orders, e.OrderID), append(msgs, messageOf(t, e))
	}
	o.tx(t, func(tx pgx.Tx) error { return routeOf(t, event.OrderCompletedV1).HandleBatch(t.Context(), tx, msgs) })
	return orders
}

func (o *office) tx(t *testing.T, do func(pgx.Tx) error) {
	t.Helper()
	if err := pgx.BeginFunc(t.Context(), o.pool, do); err != nil {
		t.Fatal(err)
	}
}

// row is what the table knows of an email.
type row struct {
	State, Provider, Error string
	Attempts               int
}

func (o *office) row(t *testing.T, order uuid.UUID) row {
	t.Helper()
	rows, _ := o.pool.Query(t.Context(), `
		SELECT state, coalesce(provider, '') AS provider, coalesce(error, '') AS error, attempts
		FROM emails
		WHERE order_id = $1`, order)
	r, err := pgx.CollectExactlyOneRow(rows, pgx.RowToStructByName[row])
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (o *office) count(t *testing.T, where string) int {
	t.Helper()
	var n int
	if err := o.pool.QueryRow(t.Context(), `SELECT count(*) FROM emails WHERE `+where).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// await waits until n emails are in the state.
func (o *office) await(t *testing.T, n int, state string) {
	t.Helper()
	waitFor(t, fmt.Sprintf("%d emails %s", n, state), func() bool { return o.count(t, `state = '`+state+`'`) == n })
}

// wantOnce fails the test unless the provider accepted exactly one mail about each order.
func (o *office) wantOnce(t *testing.T, orders []uuid.UUID) {
	t.Helper()
	counts := o.post.counts(t)
	for _, order := range orders {
		if n := counts[order.String()+" confirmation"]; n != 1 {
			t.Errorf("mails about order %s: got %d, want 1 (row %+v)", order, n, o.row(t, order))
		}
	}
	if len(counts) != len(orders) {
		t.Errorf("orders with mail: got %d, want %d", len(counts), len(orders))
	}
}

func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.After(3 * time.Minute)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		select {
		case <-deadline:
			t.Fatalf("%s: not within three minutes", what)
		case <-tick.C:
		}
	}
}

func completed(user string) event.OrderCompleted {
	return event.OrderCompleted{
		OrderID: uuid.Must(uuid.NewV7()), UserID: user, UserSeq: 1, Currency: "EUR", Total: 2550, Email: user + "@example.com",
		Items: []event.Item{{SKU: "MUG", Name: "A mug", Quantity: 2, UnitPrice: 1275}}, CompletedAt: time.Now().UTC(),
	}
}

func routeOf(t *testing.T, eventType string) inbox.Route {
	t.Helper()
	for _, r := range routes(queue{"orderflow.example", stateQueued}) {
		if r.Type == eventType {
			return r
		}
	}
	t.Fatalf("no route for %s", eventType)
	return inbox.Route{}
}

// eventOf is what every event type offers.
type eventOf interface {
	Topic() string
	Key() string
	Type() string
	Subject() string
}

// messageOf returns e as a consumer hands it over.
func messageOf(t *testing.T, e eventOf) inbox.Message {
	t.Helper()
	payload, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	return inbox.Message{
		ID: uuid.Must(uuid.NewV7()), Topic: e.Topic(), Key: e.Key(), Type: e.Type(), Subject: e.Subject(), Payload: payload, Attempt: 1,
	}
}
