package localkafka

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// script writes a shell script that stands for java or mvn.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "program")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

const java17 = `echo 'openjdk version "17.0.15" 2025-04-15' >&2`

func TestStartSaysWhatIsMissingAndHowToGetIt(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name       string
		java, mvn  string
		cluster    string // cluster.json of an earlier start
		brokers    int
		is         error
		says, next string
	}{
		{name: "no Java", java: "/nowhere/java", is: ErrNoJava, says: "needs Java 17", next: "apt install openjdk-17-jre-headless"},
		{name: "an old Java", java: script(t, `echo 'java version "1.8.0_392"' >&2`), is: ErrNoJava, says: "is version 8", next: "JAVA_HOME"},
		{name: "not Java", java: script(t, "exit 3"), is: ErrNoJava, says: "exit status 3", next: "JAVA_HOME"},
		{name: "no Maven", java: script(t, java17), mvn: "/nowhere/mvn", is: ErrNoMaven, says: "fetch Kafka " + Version(), next: "apt install maven"},
		{name: "no repository", java: script(t, java17), mvn: script(t, "echo Could not transfer artifact; exit 1"), says: "Could not transfer artifact", next: "try again"},
		{name: "a Maven that fetches nothing", java: script(t, java17), mvn: script(t, "true"), says: "left no Kafka", next: ""},
		{name: "data of another version", java: script(t, java17), cluster: `{"kafka_version": "4.0.0", "brokers": 1, "cluster_id": "x"}`,
			says: "made by Kafka 4.0.0, this is " + Version(), next: "remove it to start empty"},
		{name: "data of another cluster", java: script(t, java17), cluster: `{"kafka_version": "` + Version() + `", "brokers": 3, "cluster_id": "x"}`,
			says: "belongs to 3 brokers, not 1", next: "choose another folder"},
		{name: "data that cannot be read", java: script(t, java17), cluster: `{`, says: "cluster.json", next: "to start empty"},
		{name: "too many brokers", brokers: 9, says: "9 brokers, want 1 to 5", next: "3 for a cluster"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			opts := Options{DataDir: t.TempDir(), Brokers: tt.brokers, java: tt.java, maven: tt.mvn, cache: filepath.Join(t.TempDir(), "cache")}
			if tt.cluster != "" {
				if err := os.WriteFile(madeFile(opts.DataDir), []byte(tt.cluster), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			_, err := Start(t.Context(), opts)
			if err == nil || !strings.Contains(err.Error(), tt.says) || !strings.Contains(err.Error(), tt.next) {
				t.Errorf("Start = %v, want %q and %q in it", err, tt.says, tt.next)
			}
			if tt.is != nil && !errors.Is(err, tt.is) {
				t.Errorf("Start = %v, want %v", err, tt.is)
			}
			if left, _ := os.ReadDir(opts.cache); len(left) > 0 {
				t.Errorf("the cache holds %v after a failed download, want nothing", left)
			}
		})
	}
}

func TestTheVersionOfJavaIsRead(t *testing.T) {
	t.Parallel()
	for out, want := range map[string]int{
		"openjdk version \"17.0.15\" 2025-04-15\nOpenJDK Runtime": 17,
		`openjdk version "21" 2023-09-19`:                         21,
		`java version "1.8.0_392"`:                                8,
		`openjdk version "25-ea" 2025-09-16`:                      25,
		"something else":                                          0,
	} {
		if got, err := parseJava(out); got != want || (err != nil) != (want == 0) {
			t.Errorf("parseJava(%q) = %d, %v; want %d", out, got, err, want)
		}
	}
}

// What is in the pom is what runs: the version in messages and in the data directory comes from there.
func TestVersionIsThePoms(t *testing.T) {
	t.Parallel()
	if v := Version(); !strings.HasPrefix(v, "4.") {
		t.Errorf("Version() = %q, want a Kafka 4", v)
	}
}
