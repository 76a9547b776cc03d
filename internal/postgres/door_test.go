package postgres_test

import (
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/jackc/pgx/v5"
)

// door stands before a server: closed it cuts every connection, as a server that is still starting does.
type door struct {
	addr    string
	knocked chan struct{} // closed at the first connection that was cut
	opened  atomic.Bool
}

func newDoor(t *testing.T, upstream string) *door {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{addr: ln.Addr().String(), knocked: make(chan struct{})}
	var serving sync.WaitGroup
	serving.Go(func() {
		var once sync.Once
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			if !d.opened.Load() {
				_ = conn.Close()
				once.Do(func() { close(d.knocked) })
				continue
			}
			serving.Go(func() { relay(conn, upstream) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		serving.Wait()
	})
	return d
}

func (d *door) open() { d.opened.Store(true) }

func relay(conn net.Conn, upstream string) {
	server, err := net.Dial("tcp", upstream)
	if err != nil {
		_ = conn.Close()
		return
	}
	var both sync.WaitGroup
	for _, pair := range [][2]net.Conn{{conn, server}, {server, conn}} {
		both.Go(func() {
			_, _ = io.Copy(pair[0], pair[1])
			_ = pair[0].Close()
		})
	}
	both.Wait()
}

func portOf(config *pgx.ConnConfig) string { return strconv.Itoa(int(config.Port)) }
