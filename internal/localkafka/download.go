package localkafka

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed" // pom.xml
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrNoMaven is returned when Kafka has to be fetched and there is no Maven to do it.
var ErrNoMaven = errors.New("no Maven found")

//go:embed pom.xml
var pom []byte

// Version returns the version of Kafka that this package runs.
func Version() string {
	_, rest, _ := bytes.Cut(pom, []byte("<kafka.version>"))
	version, _, _ := bytes.Cut(rest, []byte("</kafka.version>"))
	return string(version)
}

// jars returns the folder with Kafka's class path, fetching it when the cache lacks it.
func (o Options) jars(ctx context.Context) (string, error) {
	cache := o.cache
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache folder for Kafka: %w; set XDG_CACHE_HOME or HOME", err)
		}
		cache = filepath.Join(dir, "orderflow", "kafka")
	}
	// The sum of the pom tells one set of libraries from another around the same Kafka.
	sum := sha256.Sum256(pom)
	final := filepath.Join(cache, Version()+"-"+hex.EncodeToString(sum[:4]))
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := os.MkdirAll(cache, 0o750); err != nil {
		return "", fmt.Errorf("make the cache folder for Kafka: %w", err)
	}
	// Filled beside its final place and renamed: a download that was cut off leaves nothing that looks complete.
	tmp, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return "", fmt.Errorf("make a folder for the download: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := o.fetch(ctx, tmp, final); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(tmp, "jars"), final); err != nil {
		// Another process was faster; its copy is as good.
		if _, statErr := os.Stat(final); statErr != nil {
			return "", fmt.Errorf("keep the downloaded Kafka: %w", err)
		}
	}
	return final, nil
}

// fetch has Maven copy Kafka's class path to tmp/jars.
func (o Options) fetch(ctx context.Context, tmp, final string) error {
	program := o.maven
	if program == "" {
		program = "mvn"
	}
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("fetch Kafka %s: %w: %w; install Maven (Debian, Ubuntu: apt install maven; macOS: brew install maven), or copy %s from a machine that has it",
			Version(), ErrNoMaven, err, final)
	}
	file := filepath.Join(tmp, "pom.xml")
	if err := os.WriteFile(file, pom, 0o600); err != nil {
		return fmt.Errorf("fetch Kafka %s: %w", Version(), err)
	}
	o.Log.InfoContext(ctx, "downloading kafka with maven, once", "version", Version(), "to", final)
	cmd := exec.CommandContext(ctx, path, "--quiet", "--batch-mode", "--file", file, "dependency:copy-dependencies",
		"-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(tmp, "jars"))
	cmd.Dir = tmp
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("download Kafka %s: %s: %w\n%s\nCheck that this machine reaches Maven's repository (a mirror belongs into ~/.m2/settings.xml) and try again",
			Version(), path, err, lastLines(string(out), 12))
	}
	if found, err := filepath.Glob(filepath.Join(tmp, "jars", "kafka_2.13-"+Version()+".jar")); err != nil || len(found) != 1 {
		return fmt.Errorf("download Kafka %s: Maven ended well and left no Kafka\n%s", Version(), lastLines(string(out), 12))
	}
	return nil
}

func lastLines(s string, n int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// Fetch has Kafka in the user's cache, so that [Start] need not download it. log may be nil.
func Fetch(ctx context.Context, log *slog.Logger) error {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	_, err := Options{Log: log}.jars(ctx)
	return err
}
