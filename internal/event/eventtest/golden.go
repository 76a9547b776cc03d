// Package eventtest has the golden payloads of package event for the tests of those who read them.
package eventtest

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Goldens returns the golden payload of every type. It finds them from tests of packages that lie two folders below the
// module's root, as package event and the services do.
func Goldens(t testing.TB) map[string][]byte {
	t.Helper()
	files, err := filepath.Glob("../../internal/event/testdata/*.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("Glob(testdata) = %v, %v, want golden files", files, err)
	}
	found := make(map[string][]byte)
	for _, file := range files {
		if found[strings.TrimSuffix(filepath.Base(file), ".json")], err = os.ReadFile(file); err != nil {
			t.Fatal(err)
		}
	}
	return found
}

// Versions returns the golden payloads of every major version of a type: all that a reader of it may meet in its topic.
func Versions(t testing.TB, eventType string) map[string][]byte {
	t.Helper()
	found := make(map[string][]byte)
	for golden, payload := range Goldens(t) {
		if name(golden) == name(eventType) {
			found[golden] = payload
		}
	}
	if len(found) == 0 {
		t.Fatalf("there is no golden payload of %s", eventType)
	}
	return found
}

// name is a type without its version.
func name(eventType string) string { return eventType[:strings.LastIndex(eventType, ".")] }
