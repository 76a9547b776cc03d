//go:build kafka

package localkafka

import (
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/orderflow-dev/orderflow/internal/event"
	"github.com/orderflow-dev/orderflow/internal/kafka"
	"github.com/orderflow-dev/orderflow/internal/localpg"
)

// child is set in the process that TestNodesDieWithTheirOwner starts, to the folder it runs a cluster in.
const child = "ORDERFLOW_LOCALKAFKA_CHILD"

func TestMain(m *testing.M) {
	if dir := os.Getenv(child); dir != "" {
		os.Exit(own(dir))
	}
	goleak.VerifyTestMain(m)
}

// own runs a cluster until it is killed.
func own(dir string) int {
	c, err := Start(context.Background(), Options{DataDir: dir})
	if err != nil {
		_, _ = os.Stderr.WriteString(err.Error())
		return 1
	}
	_, _ = os.Stdout.WriteString(c.Addrs()[0])
	<-c.Exited()
	return 1
}

func scratch(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(localpg.Scratch(), "orderflow-localkafka-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func start(t *testing.T, opts Options) *Cluster {
	t.Helper()
	c, err := Start(t.Context(), opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stop(t, c) })
	return c
}

func stop(t *testing.T, c *Cluster) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), time.Minute)
	defer cancel()
	if err := c.Stop(ctx); err != nil {
		t.Error(err)
	}
}

func newClient(t *testing.T, c *Cluster, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	client, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(c.Addrs()...)}, opts...)...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(client.Close)
	return client
}

// The topics of the order system, as `orderflow migrate` makes them, are to Kafka's liking; and what a cluster of three
// acknowledged is there after a stop.
func TestThreeBrokersKeepWhatTheyAcknowledged(t *testing.T) {
	opts := Options{DataDir: scratch(t), Brokers: 3}
	c := start(t, opts)
	if err := kafka.EnsureTopics(t.Context(), c.Addrs(), kafka.TopicOptions{}); err != nil {
		t.Fatal(err)
	}
	for _, addr := range c.Addrs() {
		knowsTopics(t, addr)
	}
	client := newClient(t, c)
	admin := kadm.NewClient(client)
	details, err := admin.ListTopics(t.Context(), event.Orders)
	if err != nil {
		t.Fatal(err)
	}
	if got := details[event.Orders]; len(got.Partitions) != event.Partitions || len(got.Partitions[0].Replicas) != 3 {
		t.Errorf("topic %s = %+v, want %d partitions of 3 copies", event.Orders, got, event.Partitions)
	}
	configs, err := admin.DescribeTopicConfigs(t.Context(), event.Orders)
	if err != nil {
		t.Fatal(err)
	}
	for _, config := range configs[0].Configs {
		if config.Key == "min.insync.replicas" && config.MaybeValue() != "2" {
			t.Errorf("min.insync.replicas = %s, want 2", config.MaybeValue())
		}
	}
	record := &kgo.Record{Topic: event.Orders, Key: []byte("ada"), Value: []byte("kept")}
	if err := client.ProduceSync(t.Context(), record).FirstErr(); err != nil {
		t.Fatal(err)
	}
	stop(t, c)
	<-c.Exited()

	again := start(t, opts)
	if again.ID() != c.ID() {
		t.Errorf("cluster id after a restart = %s, want %s", again.ID(), c.ID())
	}
	reader := newClient(t, again, kgo.ConsumeTopics(event.Orders), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var read []*kgo.Record
	for len(read) == 0 && ctx.Err() == nil {
		read = reader.PollFetches(ctx).Records()
	}
	if len(read) != 1 || string(read[0].Value) != "kept" {
		t.Errorf("records after a restart = %v, want the one that was acknowledged", read)
	}
}

// knowsTopics checks that the broker at addr, asked itself, knows the topics of the order system.
func knowsTopics(t *testing.T, addr string) {
	t.Helper()
	client, err := kgo.NewClient(kgo.SeedBrokers(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	request := kmsg.NewPtrMetadataRequest() // for all topics
	answer, err := client.SeedBrokers()[0].Request(t.Context(), request)
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, topic := range answer.(*kmsg.MetadataResponse).Topics {
		known[*topic.Topic] = topic.ErrorCode == 0
	}
	for _, topic := range event.Topics() {
		if !known[topic] {
			t.Errorf("broker %s does not know topic %s right after EnsureTopics", addr, topic)
		}
	}
}

func TestADirectoryHasOneOwner(t *testing.T) {
	opts := Options{DataDir: scratch(t)}
	c := start(t, opts)
	if _, err := Start(t.Context(), opts); !errors.Is(err, ErrInUse) {
		t.Errorf("a second Start = %v, want ErrInUse", err)
	}
	stop(t, c)
	stop(t, c) // the second does nothing
	if _, err := Start(t.Context(), Options{DataDir: opts.DataDir, Brokers: 3}); err == nil || !strings.Contains(err.Error(), "belongs to 1 brokers") {
		t.Errorf("Start of three brokers on the data of one = %v, want it refused", err)
	}
}

func TestKafkaThatDoesNotStartSaysWhy(t *testing.T) {
	_, err := Start(t.Context(), Options{DataDir: scratch(t), Config: map[string]string{"num.io.threads": "none"}})
	if err == nil || !strings.Contains(err.Error(), "num.io.threads") {
		t.Errorf("Start with a wrong setting = %v, want Kafka's reason", err)
	}
}

func TestNodesDieWithTheirOwner(t *testing.T) {
	owner := exec.Command(os.Args[0], "-test.run=^$")
	owner.Env = append(os.Environ(), child+"="+scratch(t))
	owner.Stderr = os.Stderr
	out, err := owner.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := owner.Start(); err != nil {
		t.Fatal(err)
	}
	var line [64]byte
	n, err := out.Read(line[:])
	_ = owner.Process.Kill()
	_ = owner.Wait() // it was killed
	if err != nil {
		t.Fatalf("the owner ended before its cluster was up: %v", err)
	}
	broker := string(line[:n])
	deadline := time.After(20 * time.Second)
	for {
		conn, err := net.Dial("tcp", broker)
		if err != nil {
			return
		}
		_ = conn.Close()
		select {
		case <-deadline:
			t.Fatalf("the broker on %s serves 20 s after its owner was killed", broker)
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func TestATakenPortIsNamed(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	port := ln.Addr().(*net.TCPAddr).Port
	_, err = Start(t.Context(), Options{DataDir: scratch(t), Port: port})
	if err == nil || !strings.Contains(err.Error(), strconv.Itoa(port)) || !strings.Contains(err.Error(), "ss -ltnp") {
		t.Errorf("Start on a taken port = %v, want the port and how to see who has it", err)
	}
}
