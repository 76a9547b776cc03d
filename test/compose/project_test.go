//go:build compose

package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/orderflow-dev/orderflow/test/system"
	"github.com/orderflow-dev/orderflow/test/verify"
)

// binary is the program under test, used from outside of the containers to place orders.
var binary *system.Binary

func TestMain(m *testing.M) { system.Main(m, &binary) }

// root is where docker-compose.yml is.
const root = "../.."

// project is the system in containers. Tests have one after the other: two would not fit a small machine.
type project struct {
	name   string
	env    []string
	ports  map[string]int // by the variable that sets it
	client *system.Client
	apiURL string
}

// up starts the project and waits until it is healthy.
func up(t *testing.T, args ...string) *project {
	t.Helper()
	p := newProject(t, args...)
	p.compose(t, append(args, "up", "--detach", "--wait", "--wait-timeout", "240")...)
	p.client = system.NewClient(p.apiURL, devKey, "http://"+p.address("SANDBOX_PORT"))
	p.client.MailsAt("http://" + p.address("MAIL_PORT"))
	t.Cleanup(p.client.Close)
	return p
}

// newProject chooses a name and ports. The test's end takes down what was started with them, with its data.
func newProject(t *testing.T, args ...string) *project {
	t.Helper()
	p := &project{name: fmt.Sprintf("orderflow-test-%d", os.Getpid()), env: os.Environ(), ports: map[string]int{}}
	for _, variable := range []string{
		"API_PORT", "POSTGRES_PORT", "KAFKA_PORT", "KAFKA_2_PORT", "KAFKA_3_PORT", "REDIS_PORT", "MAIL_PORT", "SANDBOX_PORT",
	} {
		p.ports[variable] = system.FreePort(t)
		p.env = append(p.env, fmt.Sprintf("%s=%d", variable, p.ports[variable]))
	}
	p.apiURL = "http://" + p.address("API_PORT")
	t.Cleanup(func() {
		if t.Failed() {
			p.keepLogs(t)
		}
		p.compose(t, append(args, "down", "--volumes", "--remove-orphans", "--timeout", "5")...)
		if left := p.docker(t, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+p.name); left != "" {
			t.Errorf("containers are left behind: %s", left)
		}
	})
	return p
}

// address returns where a port of the project is published.
func (p *project) address(variable string) string {
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(p.ports[variable]))
}

const (
	clusterEnv = root + "/.env.cluster"
	devKey     = "orderflow-dev-service-key" // of deploy/compose/dev-only
)

// compose runs docker compose on the project.
func (p *project) compose(t testing.TB, args ...string) string {
	t.Helper()
	program := program()
	args = append([]string{"--project-name", p.name, "--project-directory", root, "--file", root + "/docker-compose.yml"}, args...)
	return p.run(t, program[0], append(program[1:], args...)...)
}

// program is the command that is Compose.
func program() []string {
	if path := os.Getenv("COMPOSE"); path != "" {
		return strings.Fields(path)
	}
	return []string{"docker", "compose"}
}

func (p *project) docker(t testing.TB, args ...string) string {
	t.Helper()
	return p.run(t, "docker", args...)
}

func (p *project) run(t testing.TB, program string, args ...string) string {
	t.Helper()
	// The test's end must still be able to clean up.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), 6*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = p.env
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		t.Fatalf("%s %s: %v\n%s%s", program, strings.Join(args, " "), err, stdout.String(), stderr.String())
	}
	return strings.TrimSpace(stdout.String())
}

// containers returns the ids of a service's containers.
func (p *project) containers(t testing.TB, service string) []string {
	t.Helper()
	return strings.Fields(p.docker(t, "ps", "--all", "--quiet", "--filter", "label=com.docker.compose.project="+p.name,
		"--filter", "label=com.docker.compose.service="+service))
}

// kill ends all containers of a service as a crash does, and starts them again.
func (p *project) kill(t testing.TB, service string) {
	t.Helper()
	ids := p.containers(t, service)
	if len(ids) == 0 {
		t.Fatalf("service %s has no container", service)
	}
	p.docker(t, append([]string{"kill"}, ids...)...)
	p.docker(t, append([]string{"start"}, ids...)...)
}

// keepLogs writes what all containers said to a file that outlives the test, and the end of it to the test's own log.
func (p *project) keepLogs(t testing.TB) {
	t.Helper()
	dir := filepath.Join(root, ".cache", "compose-logs")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Log(err)
		return
	}
	path := filepath.Join(dir, strings.ReplaceAll(t.Name(), "/", "-")+".log")
	if err := os.WriteFile(path, []byte(p.compose(t, "logs", "--no-color", "--timestamps")), 0o600); err != nil {
		t.Log(err)
		return
	}
	t.Logf("the containers' logs are in %s; they end so:\n%s\n%s", path,
		p.compose(t, "ps", "--all"), p.compose(t, "logs", "--no-color", "--tail", "4"))
}

// db connects as the owner of the database.
func (p *project) db(t *testing.T) *pgxpool.Pool {
	t.Helper()
	return system.OpenDB(t, "postgres://orderflow:orderflow-dev-only@"+p.address("POSTGRES_PORT")+"/orderflow?sslmode=disable")
}

// load is an orderflow load that is under way.
type load struct {
	journal string
	done    chan system.Output
}

// place begins to place orders and returns once the first are accepted.
func (p *project) place(t *testing.T, orders, rate, users int) *load {
	t.Helper()
	l := &load{journal: filepath.Join(t.TempDir(), "load.jsonl"), done: make(chan system.Output, 1)}
	go func() {
		l.done <- binary.Run(t, "load", "--api", p.apiURL, "--api-key", devKey, "--orders", fmt.Sprint(orders),
			"--rate", fmt.Sprint(rate), "--users", fmt.Sprint(users), "--declines", "0.05", "--lost-answers", "0.02",
			"--retry-for", "4m", "--journal", l.journal)
	}()
	db := p.db(t)
	defer db.Close() // Postgres may be killed next
	system.Eventually(t, patience, "orders are accepted", func() error {
		var n int
		if err := db.QueryRow(t.Context(), `SELECT count(*) FROM orders.orders`).Scan(&n); err != nil {
			return err
		}
		if n == 0 {
			return errors.New("none is")
		}
		return nil
	})
	return l
}

// holds waits for the load's end and verifies what came of it.
func (p *project) holds(t *testing.T, l *load) {
	t.Helper()
	if out := <-l.done; out.Code != 0 {
		t.Fatalf("orderflow load: exit code %d\n%s%s", out.Code, out.Stdout, out.Stderr)
	}
	requests, err := verify.ReadJournal(l.journal)
	if err != nil {
		t.Fatal(err)
	}
	p.verify(t, requests)
}

// verify waits until the system is at rest, and fails the test for everything that was lost, done twice or out of order.
func (p *project) verify(t *testing.T, requests []verify.Request) {
	t.Helper()
	target := verify.Target{DB: p.db(t), Kafka: system.Kafka(t, p.address("KAFKA_PORT")), Outside: p.client, Clients: requests}
	if err := verify.AtRest(t.Context(), target, 4*time.Minute); err != nil {
		t.Fatalf("not at rest: %v", err)
	}
	violations, err := verify.Check(t.Context(), target)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range violations {
		t.Error(v)
	}
	var parked int
	if err := target.DB.QueryRow(t.Context(), `
		SELECT (SELECT count(*) FROM orders.parked_messages) + (SELECT count(*) FROM email.parked_messages)
			+ (SELECT count(*) FROM warehouse.parked_messages)`).Scan(&parked); err != nil || parked != 0 {
		t.Errorf("%d messages are parked, %v; want none", parked, err)
	}
}
