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
func Version() string { return kafkaArtifacts.version() }

// artifacts is a set of jars that Maven fetches.
type artifacts struct {
	name   string // as people call it
	folder string // in the cache
	pom    []byte
	proof  string // a jar that must be among them, without its version
}

var kafkaArtifacts = artifacts{name: "Kafka", folder: "kafka", pom: pom, proof: "kafka_2.13"}

// version returns the version of what the artifacts are about: the first property of the pom that ends in .version.
func (a artifacts) version() string {
	_, rest, _ := bytes.Cut(a.pom, []byte(".version>"))
	version, _, _ := bytes.Cut(rest, []byte("</"))
	return string(version)
}

// jars returns the folder with Kafka's class path, fetching it when the cache lacks it.
func (o Options) jars(ctx context.Context) (string, error) { return o.have(ctx, kafkaArtifacts) }

// have returns the folder with a, fetching it when the cache lacks it.
func (o Options) have(ctx context.Context, a artifacts) (string, error) {
	cache := o.cache
	if cache == "" {
		dir, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache folder for %s: %w; set XDG_CACHE_HOME or HOME", a.name, err)
		}
		cache = filepath.Join(dir, "orderflow", a.folder)
	}
	// The sum of the pom tells one set of libraries from another around the same version.
	sum := sha256.Sum256(a.pom)
	final := filepath.Join(cache, a.version()+"-"+hex.EncodeToString(sum[:4]))
	if _, err := os.Stat(final); err == nil {
		return final, nil
	}
	if err := os.MkdirAll(cache, 0o750); err != nil {
		return "", fmt.Errorf("make the cache folder for %s: %w", a.name, err)
	}
	// Filled beside its final place and renamed: a download that was cut off leaves nothing that looks complete.
	tmp, err := os.MkdirTemp(cache, "download-")
	if err != nil {
		return "", fmt.Errorf("make a folder for the download: %w", err)
	}
	defer func() { _ = os.RemoveAll(tmp) }()
	if err := o.fetch(ctx, a, tmp, final); err != nil {
		return "", err
	}
	if err := os.Rename(filepath.Join(tmp, "jars"), final); err != nil {
		// Another process was faster; its copy is as good.
		if _, statErr := os.Stat(final); statErr != nil {
			return "", fmt.Errorf("keep the downloaded %s: %w", a.name, err)
		}
	}
	return final, nil
}

// fetch has Maven copy a to tmp/jars.
func (o Options) fetch(ctx context.Context, a artifacts, tmp, final string) error {
	program := o.maven
	if program == "" {
		program = "mvn"
	}
	what := a.name + " " + a.version()
	path, err := exec.LookPath(program)
	if err != nil {
		return fmt.Errorf("fetch %s: %w: %w; install Maven (Debian, Ubuntu: apt install maven; macOS: brew install maven), or copy %s from a machine that has it",
			what, ErrNoMaven, err, final)
	}
	file := filepath.Join(tmp, "pom.xml")
	if err := os.WriteFile(file, a.pom, 0o600); err != nil {
		return fmt.Errorf("fetch %s: %w", what, err)
	}
	o.Log.InfoContext(ctx, "downloading with maven, once", "what", a.name, "version", a.version(), "to", final)
	cmd := exec.CommandContext(ctx, path, "--quiet", "--batch-mode", "--file", file, "dependency:copy-dependencies",
		"-DincludeScope=runtime", "-DoutputDirectory="+filepath.Join(tmp, "jars"))
	cmd.Dir = tmp
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("download %s: %s: %w\n%s\nCheck that this machine reaches Maven's repository (a mirror belongs into ~/.m2/settings.xml) and try again",
			what, path, err, lastLines(string(out), 12))
	}
	if found, err := filepath.Glob(filepath.Join(tmp, "jars", a.proof+"-*.jar")); err != nil || len(found) != 1 {
		return fmt.Errorf("download %s: Maven ended well and left no %s\n%s", what, a.name, lastLines(string(out), 12))
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
