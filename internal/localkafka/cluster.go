package localkafka

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/internal/filelock"
)

// Cluster is a running cluster. Its owner calls [Cluster.Stop].
type Cluster struct {
	addrs  []string
	id     string
	nodes  []*node
	lock   *os.File
	ended  sync.Once
	exited chan struct{} // closed when a node has ended
}

// Start starts a cluster and returns when it serves. ctx bounds the start only; the cluster runs until [Cluster.Stop] or the
// end of this process.
func Start(ctx context.Context, opts Options) (*Cluster, error) {
	opts, err := opts.withDefaults()
	if err != nil {
		return nil, err
	}
	java, err := opts.findJava(ctx)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(opts.DataDir)
	if err != nil {
		return nil, err
	}
	c, err := startLocked(ctx, opts, java)
	if err != nil {
		_ = filelock.Close(lock)
		return nil, err
	}
	c.lock = lock
	return c, nil
}

func startLocked(ctx context.Context, opts Options, java string) (*Cluster, error) {
	data, err := readMade(opts.DataDir)
	if err != nil {
		return nil, err
	}
	if data != nil {
		if err := data.fits(opts); err != nil {
			return nil, err
		}
		opts.ClusterID = data.ClusterID
	}
	// Before the download: who chose a taken port need not wait for that.
	clients, controllers, err := choosePorts(ctx, opts.Port, opts.Brokers)
	if err != nil {
		return nil, err
	}
	jars, err := opts.jars(ctx)
	if err != nil {
		return nil, err
	}
	p := program{java: java, jars: jars, optimize: opts.Optimize}
	// A port that was free a moment ago may be taken by now. The controllers' are always ours to choose.
	for try := 1; ; try++ {
		c := newCluster(opts, clients)
		err := c.start(ctx, opts, p, data == nil, clients, controllers)
		if err == nil {
			return c, nil
		}
		c.kill()
		if try == 3 || !errors.Is(err, errPortTaken) {
			return nil, err
		}
		if clients, controllers, err = choosePorts(ctx, opts.Port, opts.Brokers); err != nil {
			return nil, err
		}
	}
}

func newCluster(opts Options, ports []int) *Cluster {
	c := &Cluster{id: opts.ClusterID, exited: make(chan struct{})}
	for i, port := range ports {
		c.addrs = append(c.addrs, addr(port))
		c.nodes = append(c.nodes, &node{id: i + 1, dir: filepath.Join(opts.DataDir, strconv.Itoa(i+1)), heapMB: opts.HeapMB})
	}
	return c
}

func addr(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

func (c *Cluster) start(ctx context.Context, opts Options, p program, format bool, clients, controllers []int) error {
	var voters []string
	for i, port := range controllers {
		voters = append(voters, fmt.Sprintf("%d@%s", i+1, addr(port)))
	}
	var formats errgroup.Group
	for i, n := range c.nodes {
		if err := n.configure(settings(opts, n, clients[i], controllers[i], strings.Join(voters, ","))); err != nil {
			return err
		}
		if format {
			formats.Go(func() error { return n.format(ctx, p, opts.ClusterID) })
		}
	}
	if err := formats.Wait(); err != nil {
		return err
	}
	if format {
		if err := (&made{Version(), opts.Brokers, opts.ClusterID}).write(opts.DataDir); err != nil {
			return err
		}
	}
	for _, n := range c.nodes {
		if err := n.start(ctx, p, "kafka.Kafka"); err != nil {
			return err
		}
	}
	return c.waitReady(ctx, opts.StartTimeout)
}

// settings returns a node's settings. Limits are small where Kafka's default is for a machine of its own.
func settings(opts Options, n *node, client, controller int, voters string) map[string]string {
	copies := strconv.Itoa(min(3, opts.Brokers))
	insync := strconv.Itoa(min(2, opts.Brokers))
	s := map[string]string{
		"process.roles":                  "broker,controller",
		"node.id":                        strconv.Itoa(n.id),
		"controller.quorum.voters":       voters,
		"listeners":                      "PLAINTEXT://" + addr(client) + ",CONTROLLER://" + addr(controller),
		"listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"controller.listener.names":      "CONTROLLER",
		"log.dirs":                       n.dataDir(),

		// A topic that nobody has created is a mistake to be told of.
		"auto.create.topics.enable": "false",

		"default.replication.factor":                       copies,
		"min.insync.replicas":                              insync,
		"offsets.topic.replication.factor":                 copies,
		"offsets.topic.num.partitions":                     "4",
		"transaction.state.log.replication.factor":         copies,
		"transaction.state.log.min.isr":                    insync,
		"transaction.state.log.num.partitions":             "4",
		"share.coordinator.state.topic.replication.factor": copies,
		"share.coordinator.state.topic.min.isr":            insync,
		"share.coordinator.state.topic.num.partitions":     "4",

		// With a handful of consumers there is nobody to wait for.
		"group.initial.rebalance.delay.ms": "0",

		"num.network.threads":            "2",
		"num.io.threads":                 "4",
		"background.threads":             "2",
		"log.cleaner.dedupe.buffer.size": "8388608",
		"log.cleaner.io.buffer.size":     "262144",

		// All nodes stop at once. The last brokers would wait, for minutes, for a controller to move their leaders elsewhere.
		"controlled.shutdown.enable": "false",
	}
	maps.Copy(s, opts.Config)
	return s
}

// waitReady waits until every broker knows every broker, and for a group coordinator: Kafka makes the topic of the groups at
// the first question for one.
func (c *Cluster) waitReady(ctx context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for _, n := range c.nodes {
		go func() {
			select {
			case <-n.exited:
				cancel()
			case <-ctx.Done():
			}
		}()
	}
	client, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.MetadataMinAge(20*time.Millisecond), kgo.DialTimeout(time.Second))
	if err != nil {
		return fmt.Errorf("set up the Kafka client: %w", err)
	}
	defer client.Close()
	for {
		err := probe(ctx, client, c.addrs)
		if err == nil {
			break
		}
		select {
		case <-ctx.Done():
			return c.explain(limit, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
	for _, n := range c.nodes {
		go c.watch(n)
	}
	return nil
}

// explain says why the cluster does not serve.
func (c *Cluster) explain(limit time.Duration, last error) error {
	for _, n := range c.nodes {
		select {
		case <-n.exited:
			if said := n.said(); strings.Contains(said, "Address already in use") || strings.Contains(said, "BindException") {
				return fmt.Errorf("start Kafka: node %d: %w", n.id, errPortTaken)
			}
			return fmt.Errorf("start Kafka: node %d ended: %w\n%s\nAll it said is in %s", n.id, n.exitErr, complaint(n.said()), n.logFile())
		default:
		}
	}
	return fmt.Errorf("start Kafka: it does not serve after %v: %w; what it does is in %s", limit, last, c.nodes[0].logFile())
}

// watch notes the end of the first node that ends.
func (c *Cluster) watch(n *node) {
	<-n.exited
	c.ended.Do(func() { close(c.exited) })
}

// Addrs returns the brokers' addresses, host:port.
func (c *Cluster) Addrs() []string { return c.addrs }

// ID returns the cluster's id.
func (c *Cluster) ID() string { return c.id }

// Exited is closed when a node has ended, by [Cluster.Stop] or by itself.
func (c *Cluster) Exited() <-chan struct{} { return c.exited }

// Stop shuts the nodes down cleanly. Those that have not ended when ctx does are killed, which costs the next start a
// recovery and loses nothing. The second Stop does nothing.
func (c *Cluster) Stop(ctx context.Context) error {
	defer func() { _ = filelock.Close(c.lock) }()
	var mu sync.Mutex
	var killed []string
	var all sync.WaitGroup
	for _, n := range c.nodes {
		all.Go(func() {
			if n.stop(ctx) {
				mu.Lock()
				defer mu.Unlock()
				killed = append(killed, strconv.Itoa(n.id))
			}
		})
	}
	all.Wait()
	if len(killed) > 0 {
		return fmt.Errorf("stop Kafka: node %s did not end in time and was killed; the next start recovers", strings.Join(killed, ", "))
	}
	return nil
}

// kill ends what a failed start has left.
func (c *Cluster) kill() {
	for _, n := range c.nodes {
		n.kill()
	}
}
