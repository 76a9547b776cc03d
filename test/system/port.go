package system

import (
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"testing"
)

// ports are those that FreePort has returned. A package variable, because the tests of a process share the machine's ports.
var ports sync.Map

// FreePort returns a port of the loopback interface that nothing listens on and that it has not returned before, for a server
// that must be found at the same port again after it was killed.
//
// It lies below the ports that the kernel gives to connections. One of those could be taken while nobody listens: by any
// connection of any process, even by a client that calls the dead server and is given the server's port as its own, for TCP
// connects to itself.
func FreePort(t testing.TB) int {
	t.Helper()
	const lowest = 10_000
	for range 100 {
		port := lowest + rand.IntN(ephemeral()-lowest)
		ln, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err != nil {
			continue
		}
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
		if _, given := ports.LoadOrStore(port, true); given {
			continue
		}
		return port
	}
	t.Fatal("none of 100 ports is free")
	return 0
}

// ephemeral is the lowest port that the kernel gives to connections.
func ephemeral() int {
	const usual = 32_768
	raw, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual // not Linux: higher there
	}
	low := usual
	if _, err := fmt.Sscan(string(raw), &low); err != nil || low < 11_000 {
		return usual // hardly any port is safe here
	}
	return low
}
