package localkafka

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"
)

// ScratchID is the cluster id of clusters whose topics and groups anybody may delete at any time, as tests do. Tests refuse
// to touch any other cluster.
const ScratchID = "orderflowTestsMayWipeQ"

// Options says which cluster to start.
type Options struct {
	// DataDir is the folder that the cluster keeps its data, logs and lock in. Created when missing. It belongs to the
	// version of Kafka and to the number of brokers that made it.
	DataDir string
	// Brokers is the number of nodes, 1 to 5; of three, one may fail. Default 1.
	Brokers int
	// Port is the TCP port of the first broker on 127.0.0.1; the others have the next ones. 0 chooses free ones.
	Port int
	// ClusterID is the id of a new cluster, 22 characters of base64url. Default: a random one.
	ClusterID string
	// Config are broker settings, as in server.properties. They win over this package's.
	Config map[string]string
	// HeapMB bounds each node's heap. Default 512.
	HeapMB int
	// Optimize has the JVM compile all it can, as in production. It pays after some minutes, and for measurements.
	Optimize bool
	// StartTimeout bounds the wait for the brokers, recovery included. Default 2 min.
	StartTimeout time.Duration
	// Log receives what is worth knowing. Default: nothing. Each node's own log is <DataDir>/<node>/kafka.log.
	Log *slog.Logger

	cache string // where Kafka is kept; "": the user's cache
	maven string // the program; "": mvn
	java  string // the program; "": that of JAVA_HOME, else java
}

func (o Options) withDefaults() (Options, error) {
	if o.DataDir == "" {
		return o, errors.New("start Kafka: Options.DataDir is empty")
	}
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return o, fmt.Errorf("start Kafka in %s: %w", o.DataDir, err)
	}
	o.DataDir = dir
	if o.Brokers == 0 {
		o.Brokers = 1
	}
	if o.Brokers < 1 || o.Brokers > 5 {
		return o, fmt.Errorf("start Kafka: %d brokers, want 1 to 5: 1 for work on one machine, 3 for a cluster that outlives one of them", o.Brokers)
	}
	if o.Port < 0 || o.Port+o.Brokers-1 > 65535 {
		return o, fmt.Errorf("start Kafka: port %d, want 1 to %d, or 0 for free ones", o.Port, 65535-o.Brokers+1)
	}
	if o.ClusterID == "" {
		if o.ClusterID, err = randomID(); err != nil {
			return o, err
		}
	}
	if o.HeapMB == 0 {
		o.HeapMB = 512
	}
	if o.StartTimeout == 0 {
		o.StartTimeout = 2 * time.Minute
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return o, nil
}
