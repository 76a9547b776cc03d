package sandbox

import (
	"bufio"
	"bytes"
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
	"testing"
	"time"

	"go.uber.org/goleak"
)

// childDir names the data directory, and childHooks the webhook URL, when the test binary runs as the sandbox that a test
// kills.
const (
	childDir   = "SANDBOX_TEST_CHILD_DIR"
	childHooks = "SANDBOX_TEST_CHILD_HOOKS"
)

const hookSecret = "whsec_test"

func TestMain(m *testing.M) {
	if dir := os.Getenv(childDir); dir != "" {
		runChild(dir)
	}
	goleak.VerifyTestMain(m)
}

func runChild(dir string) {
	httpLn, err := net.Listen("tcp", "127.0.0.1:0")
	if err == nil {
		var smtpLn net.Listener
		if smtpLn, err = net.Listen("tcp", "127.0.0.1:0"); err == nil {
			fmt.Println(httpLn.Addr(), smtpLn.Addr())
			err = Run(context.Background(), slog.New(slog.DiscardHandler), Config{
				Listener: httpLn, SMTPListener: smtpLn, DataDir: dir, WebhookURL: os.Getenv(childHooks), WebhookSecret: hookSecret,
			})
		}
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// box is a sandbox under test.
type box struct {
	url, smtp string
	client    *http.Client
}

// start runs a sandbox in this process until the test ends, or until stop is called.
func start(t *testing.T, cfg Config) (b *box, stop func()) {
	t.Helper()
	cfg.Listener, cfg.SMTPListener = listenLocal(t), listenLocal(t)
	if cfg.DataDir == "" {
		cfg.DataDir = t.TempDir()
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, slog.New(slog.DiscardHandler), cfg) }()
	b = newBox(t, cfg.Listener.Addr().String(), cfg.SMTPListener.Addr().String())
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		b.client.CloseIdleConnections() // a connection that was never used holds the end of an HTTP server up
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: got %v, want nil after its context ended", err)
		}
	}
	t.Cleanup(stop)
	return b, stop
}

// spawn runs a sandbox in a process of its own; kill ends it as kill -9 does. hooks is where it sends webhooks, if anywhere.
func spawn(t *testing.T, dir, hooks string) (b *box, kill func()) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), childDir+"="+dir, childHooks+"="+hooks)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	kill = func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	t.Cleanup(kill)
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("the child said nothing: %v", err)
	}
	httpAddr, smtpAddr, _ := strings.Cut(strings.TrimSpace(line), " ")
	return newBox(t, httpAddr, smtpAddr), kill
}

func newBox(t *testing.T, httpAddr, smtpAddr string) *box {
	tr := &http.Transport{MaxIdleConnsPerHost: 64}
	t.Cleanup(tr.CloseIdleConnections)
	return &box{url: "http://" + httpAddr, smtp: smtpAddr, client: &http.Client{Transport: tr, Timeout: 20 * time.Second}}
}

func listenLocal(t *testing.T) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	return ln
}

// reply is an answer of the sandbox.
type reply struct {
	status   int
	replayed bool
	body     string
}

func (r reply) field(t *testing.T, name string) string {
	t.Helper()
	var fields map[string]any
	if err := json.Unmarshal([]byte(r.body), &fields); err != nil {
		t.Fatalf("answer is not a JSON object: %v\n%s", err, r.body)
	}
	s, _ := fields[name].(string)
	return s
}

// try sends a request and returns the error of a connection that was cut.
func (b *box) try(ctx context.Context, method, path, key, body string) (reply, error) {
	req, err := http.NewRequestWithContext(ctx, method, b.url+path, strings.NewReader(body))
	if err != nil {
		return reply{}, err
	}
	if key != "" {
		req.Header.Set("Idempotency-Key", key)
	}
	resp, err := b.client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(resp.Body)
	return reply{resp.StatusCode, resp.Header.Get("Idempotent-Replayed") == "true", string(raw)}, err
}

func (b *box) post(t *testing.T, path, key, body string) reply {
	t.Helper()
	r, err := b.try(t.Context(), http.MethodPost, path, key, body)
	if err != nil {
		t.Fatalf("POST %s: %v", path, err)
	}
	return r
}

func (b *box) get(t *testing.T, path string) reply {
	t.Helper()
	r, err := b.try(t.Context(), http.MethodGet, path, "", "")
	if err != nil {
		t.Fatalf("GET %s: %v", path, err)
	}
	return r
}

func createJSON(method, reference string) string {
	return fmt.Sprintf(`{"amount":1250,"currency":"EUR","payment_method":%q,"reference":%q}`, method, reference)
}

// create makes an intent and returns its id.
func (b *box) create(t *testing.T, key, method, reference string) string {
	t.Helper()
	r := b.post(t, "/v1/payment_intents", key, createJSON(method, reference))
	if r.status != http.StatusCreated {
		t.Fatalf("create intent: got %d %s, want 201", r.status, r.body)
	}
	return r.field(t, "id")
}

func (b *box) statusOf(t *testing.T, id string) string {
	t.Helper()
	return b.get(t, "/v1/payment_intents/"+id).field(t, "status")
}

// entries returns the public journal.
func (b *box) entries(t *testing.T) []entry {
	t.Helper()
	r := b.get(t, "/v1/journal")
	if r.status != http.StatusOK {
		t.Fatalf("journal: got %d, want 200", r.status)
	}
	var entries []entry
	lines := bufio.NewScanner(bytes.NewReader([]byte(r.body)))
	for lines.Scan() {
		var e entry
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			t.Fatalf("journal line %q: %v", lines.Text(), err)
		}
		entries = append(entries, e)
	}
	return entries
}

// kinds returns the kinds of the entries with the given reference, in order.
func (b *box) kinds(t *testing.T, reference string) string {
	t.Helper()
	var kinds []string
	for _, e := range b.entries(t) {
		if e.Reference == reference {
			kinds = append(kinds, e.Kind)
		}
	}
	return strings.Join(kinds, " ")
}
