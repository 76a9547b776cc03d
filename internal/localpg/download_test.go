package localpg

import (
	"archive/zip"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// repository serves testdata/server.txz, whose programs are shell scripts, the way the real one serves Postgres.
type repository struct {
	*httptest.Server
	fetched  atomic.Int32
	checksum string // "": the right one
	hang     chan struct{}
}

func newRepository(t *testing.T) *repository {
	t.Helper()
	archive, err := os.ReadFile("testdata/server.txz")
	if err != nil {
		t.Fatal(err)
	}
	var jar bytes.Buffer
	writer := zip.NewWriter(&jar)
	file, err := writer.Create("postgres-any.txz")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := file.Write(archive); err != nil {
		t.Fatal(err)
	}
	if err := writer.Close(); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(jar.Bytes())
	r := &repository{}
	r.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, request *http.Request) {
		if r.hang != nil {
			<-r.hang
		}
		if strings.HasSuffix(request.URL.Path, ".sha256") {
			want := hex.EncodeToString(sum[:])
			if r.checksum != "" {
				want = r.checksum
			}
			_, _ = w.Write([]byte(want))
			return
		}
		r.fetched.Add(1)
		_, _ = w.Write(jar.Bytes())
	}))
	t.Cleanup(func() {
		r.Close()
		http.DefaultClient.CloseIdleConnections() // embedded-postgres uses that one
	})
	return r
}

func TestDownloadFetchesOnce(t *testing.T) {
	t.Parallel()
	from := newRepository(t)
	var said []string
	d := downloader{cache: filepath.Join(t.TempDir(), "cache"), repository: from.URL, progress: func(what string) { said = append(said, what) }}
	for range 2 {
		b, err := d.download(t.Context())
		if err != nil || b.Major != downloadMajor {
			t.Fatalf("download = %+v, %v; want binaries of version %d", b, err, downloadMajor)
		}
	}
	if got := from.fetched.Load(); got != 1 {
		t.Errorf("archives fetched for two downloads = %d, want 1", got)
	}
	if len(said) != 1 || !strings.Contains(said[0], "downloading") {
		t.Errorf("two downloads said %q, want one note that something is downloaded", said)
	}
	left, err := os.ReadDir(d.cache)
	if err != nil || len(left) != 1 {
		t.Errorf("cache holds %v, %v; want the binaries only", left, err)
	}
}

func TestDownloadRefusesAnArchiveWithAnotherChecksum(t *testing.T) {
	t.Parallel()
	from := newRepository(t)
	from.checksum = strings.Repeat("0", 64)
	d := downloader{cache: filepath.Join(t.TempDir(), "cache"), repository: from.URL, progress: func(string) {}}
	if _, err := d.download(t.Context()); err == nil || !strings.Contains(err.Error(), "checksum") {
		t.Errorf("download with a wrong checksum = %v, want it refused", err)
	}
	if left, err := os.ReadDir(d.cache); err != nil || len(left) != 0 {
		t.Errorf("cache after a refused download holds %v, %v; want nothing", left, err)
	}
}

func TestDownloadEndsWithItsContext(t *testing.T) {
	t.Parallel()
	from := newRepository(t)
	from.hang = make(chan struct{})
	d := downloader{cache: filepath.Join(t.TempDir(), "cache"), repository: from.URL, progress: func(string) {}}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := d.download(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("download that hangs = %v, want the context's end", err)
	}
	close(from.hang)
	waitUntil(t, "the remains are removed", func() bool {
		left, err := os.ReadDir(d.cache)
		return err == nil && len(left) == 0
	})
}

func waitUntil(t *testing.T, what string, done func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !done() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 20 s until %s", what)
		}
		<-tick.C
	}
}
