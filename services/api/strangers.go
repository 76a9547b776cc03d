package api

import (
	"crypto/sha256"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

const (
	// failuresPerSecond and failuresAtOnce are how often one address may come with keys that turn out to be none.
	failuresPerSecond, failuresAtOnce = 10, 20
	// maxRefused and maxAddresses bound the memory that keys and addresses of strangers can take.
	maxRefused, maxAddresses = 10_000, 10_000
)

// strangers bounds what keys that this process has not seen yet may cost. Anybody can make them up, so their look-ups get a
// part of the slots only, and an address that came with too many wrong ones has to wait before the next is looked up. Keys
// that were good before are looked up past all this: a guesser behind the same proxy does not lock their users out.
type strangers struct {
	slots slots

	mu        sync.Mutex
	refused   map[[sha256.Size]byte]time.Time // keys that are none, and until when that is believed
	addresses map[netip.Prefix]*rate.Limiter
}

func newStrangers(all slots) *strangers {
	return &strangers{
		slots:   newSlots(max(1, cap(all)/4)),
		refused: map[[sha256.Size]byte]time.Time{}, addresses: map[netip.Prefix]*rate.Limiter{},
	}
}

// enter lets one key be looked up, or returns the problem to answer with.
func (s *strangers) enter(hash [sha256.Size]byte, from netip.Prefix, now time.Time) (leave func(), err error) {
	s.mu.Lock()
	until, known := s.refused[hash]
	tired := !known && s.failures(from, now).TokensAt(now) < 1
	s.mu.Unlock()
	switch {
	case known && now.Before(until):
		return nil, unauthorized()
	case tired:
		return nil, newProblem(http.StatusTooManyRequests, kindRateLimited, "Too many requests with unknown keys from this address.").
			retry(time.Second)
	}
	return s.slots.enter()
}

// refuse remembers that a key is none, and where it came from.
func (s *strangers) refuse(hash [sha256.Size]byte, from netip.Prefix, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.refused) >= maxRefused {
		clear(s.refused)
	}
	s.refused[hash] = now.Add(keyTTL)
	s.failures(from, now).AllowN(now, 1)
}

// failures returns the limiter of an address. The caller holds mu.
func (s *strangers) failures(from netip.Prefix, now time.Time) *rate.Limiter {
	limiter := s.addresses[from]
	if limiter != nil {
		return limiter
	}
	if len(s.addresses) >= maxAddresses {
		for other, of := range s.addresses {
			if of.TokensAt(now) >= failuresAtOnce {
				delete(s.addresses, other) // as good as never seen
			}
		}
		if len(s.addresses) >= maxAddresses {
			clear(s.addresses)
		}
	}
	limiter = rate.NewLimiter(failuresPerSecond, failuresAtOnce)
	s.addresses[from] = limiter
	return limiter
}

// source returns where a request comes from: an IPv4 address, or an IPv6 network of the size that one customer gets. What
// cannot be read counts as one place.
func source(r *http.Request) netip.Prefix {
	at, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Prefix{}
	}
	addr, bits := at.Addr().Unmap().WithZone(""), 32
	if addr.Is6() {
		bits = 64
	}
	network, err := addr.Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return network
}
