package localkafka

import (
	"bytes"
	"context"
	_ "embed" // connect.pom.xml
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/orderflow-dev/orderflow/internal/filelock"
)

//go:embed connect.pom.xml
var connectPom []byte

var connectArtifacts = artifacts{name: "Kafka Connect", folder: "connect", pom: connectPom, proof: "connect-runtime"}

// ConnectOptions say which worker to start.
type ConnectOptions struct {
	// DataDir is the folder for offsets, log and lock. Created when missing.
	DataDir string
	// Brokers are the addresses of the cluster to work on. Required.
	Brokers []string
	// Config are worker settings. They win over this package's.
	Config map[string]string
	// HeapMB bounds the heap. Default 1024.
	HeapMB int
}

// Connect is a running worker of Kafka Connect, standalone, that has Debezium's connector for Postgres. Its owner calls
// [Connect.Stop].
type Connect struct {
	url    string
	worker *node
	lock   *os.File
}

// StartConnect starts a worker and returns when it answers, with no connector. It needs what [Start] needs, and fetches some
// 40 MB when the user's cache lacks them. ctx bounds the start only.
func StartConnect(ctx context.Context, opts ConnectOptions) (*Connect, error) {
	o, err := Options{DataDir: opts.DataDir, Optimize: true}.withDefaults()
	if err != nil {
		return nil, err
	}
	java, err := o.findJava(ctx)
	if err != nil {
		return nil, err
	}
	jars, err := o.have(ctx, connectArtifacts)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(o.DataDir)
	if err != nil {
		return nil, err
	}
	c := &Connect{lock: lock, worker: &node{id: 1, dir: filepath.Join(o.DataDir, "worker"), heapMB: max(opts.HeapMB, 1024)}}
	if err := c.start(ctx, opts, program{java: java, jars: jars, optimize: true}); err != nil {
		c.worker.kill()
		_ = filelock.Close(lock)
		return nil, err
	}
	return c, nil
}

func (c *Connect) start(ctx context.Context, opts ConnectOptions, p program) error {
	ports, _, err := choosePorts(ctx, 0, 1)
	if err != nil {
		return err
	}
	c.url = "http://" + addr(ports[0])
	settings := map[string]string{
		"bootstrap.servers":            strings.Join(opts.Brokers, ","),
		"listeners":                    c.url,
		"offset.storage.file.filename": filepath.Join(c.worker.dir, "offsets"),
		"key.converter":                "org.apache.kafka.connect.storage.StringConverter",
		"value.converter":              "org.apache.kafka.connect.json.JsonConverter",
	}
	maps.Copy(settings, opts.Config)
	if err := c.worker.configure(settings); err != nil {
		return err
	}
	if err := c.worker.start(ctx, p, "org.apache.kafka.connect.cli.ConnectStandalone"); err != nil {
		return err
	}
	return c.await(ctx, "Kafka Connect to answer", func() error { return c.call(ctx, http.MethodGet, "/", nil, nil) })
}

// Create starts a connector and returns when its tasks run.
func (c *Connect) Create(ctx context.Context, name string, config map[string]string) error {
	request := map[string]any{"name": name, "config": config}
	if err := c.call(ctx, http.MethodPost, "/connectors", request, nil); err != nil {
		return err
	}
	return c.await(ctx, "connector "+name+" to run", func() error { return c.running(ctx, name) })
}

func (c *Connect) running(ctx context.Context, name string) error {
	var status struct {
		Tasks []struct{ State, Trace string }
	}
	if err := c.call(ctx, http.MethodGet, "/connectors/"+name+"/status", nil, &status); err != nil {
		return err
	}
	if len(status.Tasks) == 0 {
		return errors.New("it has no tasks yet")
	}
	for _, task := range status.Tasks {
		if task.State != "RUNNING" {
			return fmt.Errorf("a task is %s: %s", task.State, task.Trace)
		}
	}
	return nil
}

// Delete stops a connector and forgets it, but not what it left in Postgres.
func (c *Connect) Delete(ctx context.Context, name string) error {
	return c.call(ctx, http.MethodDelete, "/connectors/"+name, nil, nil)
}

// Stop ends the worker, killing it when ctx ends first.
func (c *Connect) Stop(ctx context.Context) {
	c.worker.stop(ctx)
	_ = filelock.Close(c.lock)
}

func (c *Connect) await(ctx context.Context, what string, try func() error) error {
	const limit = 2 * time.Minute
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		err := try()
		if err == nil {
			return nil
		}
		select {
		case <-c.worker.exited:
			return fmt.Errorf("wait for %s: it ended: %w\n%s", what, c.worker.exitErr, complaint(c.worker.said()))
		case <-ctx.Done():
			return fmt.Errorf("wait for %s: %w; its log is %s", what, err, c.worker.logFile())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// call asks the worker's REST interface.
func (c *Connect) call(ctx context.Context, method, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return fmt.Errorf("ask Kafka Connect: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("ask Kafka Connect: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("ask Kafka Connect: %w", err)
	}
	defer resp.Body.Close()
	said, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("ask Kafka Connect: %s %s: %w", method, path, err)
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return fmt.Errorf("ask Kafka Connect: %s %s: %s: %s", method, path, resp.Status, said)
	}
	if answer == nil {
		return nil
	}
	return json.Unmarshal(said, answer)
}
