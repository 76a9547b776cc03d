package localkafka

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// MinJava is the oldest major version of Java that Kafka's brokers run on.
const MinJava = 17

// ErrNoJava is returned when no suitable Java is installed.
var ErrNoJava = errors.New("no suitable Java found")

const installJava = "install one (Debian, Ubuntu: apt install openjdk-17-jre-headless; macOS: brew install openjdk@17) or point JAVA_HOME at it"

// findJava returns a java program of a version that will do.
func (o Options) findJava(ctx context.Context) (string, error) {
	program := o.java
	if home := os.Getenv("JAVA_HOME"); program == "" && home != "" {
		program = filepath.Join(home, "bin", "java")
	}
	if program == "" {
		program = "java"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return "", fmt.Errorf("start Kafka: %w: it needs Java %d or newer, and %w; %s", ErrNoJava, MinJava, err, installJava)
	}
	out, err := exec.CommandContext(ctx, path, "-version").CombinedOutput() //nolint:gosec // JAVA_HOME is the caller's own to set
	if err != nil {
		return "", fmt.Errorf("start Kafka: %w: run %s -version: %w: %s; %s", ErrNoJava, path, err, strings.TrimSpace(string(out)), installJava)
	}
	major, err := parseJava(string(out))
	if err != nil {
		return "", fmt.Errorf("start Kafka: %w: %w; %s", ErrNoJava, err, installJava)
	}
	if major < MinJava {
		return "", fmt.Errorf("start Kafka: %w: %s is version %d, Kafka needs %d or newer; %s", ErrNoJava, path, major, MinJava, installJava)
	}
	return path, nil
}

// parseJava reads the major version of `openjdk version "17.0.15" 2025-04-15`, "21" or "1.8.0_392".
func parseJava(out string) (int, error) {
	_, rest, _ := strings.Cut(out, `version "`)
	version, _, ok := strings.Cut(rest, `"`)
	version = strings.TrimPrefix(version, "1.")
	digits := version[:len(version)-len(strings.TrimLeft(version, "0123456789"))]
	major, err := strconv.Atoi(digits)
	if !ok || err != nil {
		return 0, fmt.Errorf("read the version of Java from %q", strings.TrimSpace(out))
	}
	return major, nil
}
