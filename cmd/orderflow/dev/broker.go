package dev

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
)

// clusterID is what the embedded broker calls itself.
const clusterID = "kfake-orderflow-dev"

// topicConfigs bound what the embedded broker keeps, because a restart reads all of it: 32 MiB per partition, in segments
// small enough that old ones go away.
func topicConfigs() map[string]string {
	return map[string]string{"retention.bytes": "33554432", "segment.bytes": "8388608"}
}

// broker is the Kafka broker inside this process.
type broker struct {
	cluster *kfake.Cluster
	addr    string
	note    string // what the user should know
}

// startBroker starts the broker on what is in dir. A log that cannot be read, or not to its end, is moved aside.
//
// The file marker says that the log lacks records of earlier runs. It is there before a new log is begun, so a crash never
// leaves a log that looks complete and is empty. The caller removes it once the outboxes have been told to publish again.
func startBroker(ctx context.Context, dir, marker string, ln net.Listener, log *slog.Logger) (*broker, error) {
	b := &broker{addr: ln.Addr().String()}
	said := &complaints{log: log}
	_, err := os.Stat(filepath.Join(dir, "meta.json"))
	begins := errors.Is(err, fs.ErrNotExist)
	if begins {
		if err := mark(marker); err != nil {
			return nil, err
		}
	}
	b.cluster, err = newCluster(dir, ln, said)
	if begins && err != nil {
		return nil, fmt.Errorf("start the embedded broker: %w", err) // nothing was there to be torn
	}
	if torn := said.torn(); err != nil || torn != "" {
		log.WarnContext(ctx, "the broker's log is torn", "dir", dir, "broker", torn, "error", err)
		return b, b.beginAnew(ctx, dir, marker, portOf(ln), said)
	}
	return b, nil
}

// beginAnew moves the torn log aside and starts the broker on an empty one.
func (b *broker) beginAnew(ctx context.Context, dir, marker string, port int, said *complaints) error {
	if b.cluster != nil {
		b.cluster.Close()
	}
	if err := mark(marker); err != nil {
		return err
	}
	aside := dir + time.Now().UTC().Format(".torn-20060102T150405.000")
	if err := os.Rename(dir, aside); err != nil {
		return fmt.Errorf("move the broker's torn log aside: %w", err)
	}
	b.note = "its log was torn: moved to " + filepath.Base(aside)
	ln, note, err := listen(ctx, port, false) // the cluster that failed has closed the first one
	if err != nil {
		return fmt.Errorf("start the embedded broker: %w", err)
	}
	b.addr, b.note = ln.Addr().String(), join(b.note, note)
	if b.cluster, err = newCluster(dir, ln, said); err != nil {
		return fmt.Errorf("start the embedded broker: %w", err)
	}
	return nil
}

func newCluster(dir string, ln net.Listener, log kfake.Logger) (*kfake.Cluster, error) {
	return kfake.NewCluster(
		kfake.NumBrokers(1),
		kfake.ClusterID(clusterID),
		kfake.DataDir(dir),
		kfake.SyncWrites(),
		kfake.WithLogger(log),
		kfake.ListenFn(func(string, string) (net.Listener, error) { return ln, nil }),
	)
}

// mark makes an empty file that survives a crash.
func mark(path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("note that the broker's log begins: %w", err)
	}
	file, err := os.Create(path)
	if err != nil {
		return fmt.Errorf("note that the broker's log begins: %w", err)
	}
	return errors.Join(file.Sync(), file.Close())
}

// run applies the topics' retention now and then; kfake by itself does so only in the run that made the topics.
func (b *broker) run(ctx context.Context) {
	ticker := time.NewTicker(time.Minute)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
			b.cluster.ApplyRetention()
		}
	}
}

// complaints passes the broker's warnings on to the log and remembers those about lost records: kfake cuts a damaged
// segment off and starts without its end, which is an answer to a write that no relay would ever learn of.
type complaints struct {
	log *slog.Logger

	mu   sync.Mutex
	lost string
}

// Logf implements [kfake.Logger].
func (c *complaints) Logf(level kfake.LogLevel, format string, args ...any) {
	if level > kfake.LogLevelWarn {
		return
	}
	line := fmt.Sprintf(format, args...)
	if strings.HasPrefix(line, "partition ") && strings.Contains(line, " segment ") {
		c.mu.Lock()
		if c.lost == "" {
			c.lost = line
		}
		c.mu.Unlock()
	}
	c.log.Warn("broker", "says", line)
}

func (c *complaints) torn() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lost
}
