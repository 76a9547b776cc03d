package dev

import (
	"io"
	"os"
	"path/filepath"
)

// Options says what to run. The zero value runs everything in the default folder and on the default ports.
type Options struct {
	// DataDir keeps the data between runs. Default [DefaultDataDir].
	DataDir string
	// Ephemeral uses a new temporary folder instead and removes it at the end.
	Ephemeral bool
	// PostgresURL names a running Postgres to use instead of a private one. It is an owner's: it must be allowed to make
	// schemas and roles. In a database that is not migrated yet the services' roles, which belong to the whole server, get
	// the public development password; in a migrated one they must have it.
	PostgresURL string
	// Kafka names running brokers, host:port, to use instead of the embedded one.
	Kafka []string
	// Redis is the URL of a running Redis to use instead of one in this process.
	Redis string
	// Ports to listen on. A default one that is taken is replaced by a free one; one that was set is insisted on.
	Ports Ports
	// ReadyFile is written as ready.json is, in addition to it. Optional.
	ReadyFile string
	// Seed is the number of orders that a first start places. Default 25; negative: none.
	Seed int
	// Command is how the user calls this program, for the hints at the end. Default "orderflow".
	Command string
	// Out receives the lines for the user, Err the errors that the services log. Default: nothing.
	Out, Err io.Writer
	// Verbose sends all that the services log to Err. It is in dev.log in any case.
	Verbose bool
	// LogLevel is debug, info, warn or error. Default info.
	LogLevel string
}

// Ports of the parts, on the loopback interface. Zero: the default.
type Ports struct {
	API, Postgres, Kafka, Redis, SMTP, Sandbox int
}

var defaultPorts = Ports{API: 8080, Postgres: 54320, Kafka: 9092, Redis: 63790, SMTP: 1025, Sandbox: 8090}

// DefaultDataDir returns /var/lib/orderflow/dev for root and a folder below the user's home for anyone else.
func DefaultDataDir() string {
	if os.Geteuid() == 0 {
		return "/var/lib/orderflow/dev"
	}
	base := os.Getenv("XDG_DATA_HOME")
	if base == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			home = "."
		}
		base = filepath.Join(home, ".local", "share")
	}
	return filepath.Join(base, "orderflow", "dev")
}
