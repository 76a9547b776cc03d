package email

import (
	"io"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }

// door is a TCP proxy that can be shut, and that can cut what goes through it.
type door struct {
	addr     string
	accepted atomic.Int32

	mu    sync.Mutex
	isOff bool
	conns map[net.Conn]bool
}

// newDoor returns an open door to addr. It ends with the test.
func newDoor(t *testing.T, addr string) *door {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &door{addr: ln.Addr().String(), conns: map[net.Conn]bool{}}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { d.pass(in, addr) })
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		d.shut()
		wg.Wait()
	})
	return d
}

func (d *door) pass(in net.Conn, addr string) {
	defer in.Close()
	out, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer out.Close()
	d.mu.Lock()
	if d.isOff {
		d.mu.Unlock()
		return
	}
	d.conns[in] = true
	d.mu.Unlock()
	d.accepted.Add(1)
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			_, _ = in.Close(), out.Close() // either end closes both
			done <- struct{}{}
		}()
	}
	<-done
	<-done
	d.mu.Lock()
	delete(d.conns, in)
	d.mu.Unlock()
}

func (d *door) open() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.isOff = false
}

func (d *door) shut() {
	d.mu.Lock()
	d.isOff = true
	d.mu.Unlock()
	d.cut()
}

// cut ends what goes through now.
func (d *door) cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for conn := range d.conns {
		_ = conn.Close()
	}
}

// mute is a server that accepts connections and says nothing.
type mute struct {
	addr string
	now  atomic.Int32
	most atomic.Int32 // at once
}

func newMute(t *testing.T) *mute {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	m := &mute{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept()
			if err != nil {
				return
			}
			now := m.now.Add(1)
			for most := m.most.Load(); now > most && !m.most.CompareAndSwap(most, now); most = m.most.Load() {
			}
			wg.Go(func() {
				_, _ = io.Copy(io.Discard, conn) // until the client gives up
				m.now.Add(-1)
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return m
}
