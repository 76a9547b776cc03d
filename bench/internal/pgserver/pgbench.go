package pgserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"time"
)

var tps = regexp.MustCompile(`tps = ([0-9.]+)`)

// Pgbench runs the transaction in a script against the database of url for d, which is in whole seconds, and returns how many
// of them were committed in a second.
func (s *Server) Pgbench(ctx context.Context, url, script string, clients int, d time.Duration) (float64, error) {
	pgbench := filepath.Join(s.BinDir, "pgbench")
	if _, err := os.Stat(pgbench); err != nil {
		if pgbench, err = exec.LookPath("pgbench"); err != nil {
			return 0, fmt.Errorf("pgbench is not in %s nor on the PATH: install Postgres with it (Debian: apt-get install postgresql)", s.BinDir)
		}
	}
	// As many threads as what is compared has to share with Postgres would be unfair to pgbench on a small machine: one does.
	out, err := exec.CommandContext(ctx, pgbench, "-n", "-M", "prepared", "-f", script,
		"-c", strconv.Itoa(clients), "-j", "1", "-T", strconv.Itoa(int(d.Seconds())), url).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("pgbench: %w\n%s", err, out)
	}
	match := tps.FindSubmatch(out)
	if match == nil {
		return 0, fmt.Errorf("pgbench printed no tps:\n%s", out)
	}
	return strconv.ParseFloat(string(match[1]), 64)
}
