//go:build compose

package compose

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/orderflow-dev/orderflow/test/system"
)

// What stands in the way of a start is named, with what to do next, and nothing half started is left behind.
func TestAStartThatCannotSucceedSaysWhy(t *testing.T) {
	p := newProject(t)
	t.Run("no Docker engine", func(t *testing.T) {
		p.refuses(t, []string{"DOCKER_HOST=unix:///nowhere/docker.sock"}, "no Docker engine answers", "dockerd", "make dev")
	})
	t.Run("a port that is taken", func(t *testing.T) {
		l, err := net.Listen("tcp", p.address("REDIS_PORT"))
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		p.refuses(t, nil, "another program has port "+strings.TrimPrefix(p.address("REDIS_PORT"), "127.0.0.1:"), ".env")
	})
	p.compose(t, "run", "--rm", "--no-TTY", "migrate") // Postgres and Kafka stay up
	t.Run("a compose file of another release", func(t *testing.T) {
		other := filepath.Join(t.TempDir(), "other.yml")
		if err := os.WriteFile(other, []byte("services: {migrate: {environment: {ORDERFLOW_COMPOSE_FORMAT: -1}}}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		p.refuses(t, []string{"COMPOSE_FILE=docker-compose.yml:" + other}, "of an older release than the image", "take docker-compose.yml from")
	})
	t.Run("data of a newer version", func(t *testing.T) {
		db := p.db(t)
		defer db.Close()
		if _, err := db.Exec(t.Context(), `INSERT INTO email.inbox_migrations (version_id, is_applied) VALUES (999, true)`); err != nil {
			t.Fatal(err)
		}
		p.refuses(t, nil, "the database is of a newer version", "make down ARGS=-v")
		if _, err := db.Exec(t.Context(), `DELETE FROM email.inbox_migrations WHERE version_id = 999`); err != nil {
			t.Fatal(err)
		}
	})
	t.Run("a topic with another partition count", func(t *testing.T) {
		admin := kadm.NewClient(system.Kafka(t, p.address("KAFKA_PORT")))
		if _, err := admin.CreatePartitions(t.Context(), 1, "orders"); err != nil {
			t.Fatal(err)
		}
		p.refuses(t, nil, "topic orders has 13 partitions, want 12")
	})
}

// refuses runs what `make up` runs and expects it to fail with these words, and the containers to be as they were before.
func (p *project) refuses(t *testing.T, env []string, words ...string) {
	t.Helper()
	before := p.running(t)
	cmd := exec.CommandContext(t.Context(), root+"/deploy/compose/up", program()...)
	cmd.Env = append(append(p.env, "COMPOSE_PROJECT_NAME="+p.name), env...)
	out, err := cmd.CombinedOutput()
	if err == nil {
		t.Fatalf("up succeeded:\n%s", out)
	}
	for _, word := range words {
		if !strings.Contains(string(out), word) {
			t.Errorf("up does not say %q:\n%s", word, out)
		}
	}
	if after := p.running(t); before == "" && after != "" {
		t.Errorf("containers run after a refused start: %s", after)
	}
}

func (p *project) running(t *testing.T) string {
	t.Helper()
	return p.docker(t, "ps", "--format", "{{.Names}}", "--filter", "label=com.docker.compose.project="+p.name)
}
