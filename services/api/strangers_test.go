package api

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/http"
	"net/netip"
	"testing"
	"time"
)

func hashOf(n int) (h [sha256.Size]byte) {
	binary.BigEndian.PutUint64(h[:], uint64(n))
	return h
}

// tryKey looks a key up that is none, and returns what the request is answered.
func tryKey(t *testing.T, s *strangers, n int, from netip.Prefix, at time.Time) int {
	t.Helper()
	leave, err := s.enter(hashOf(n), from, at)
	if err == nil {
		s.refuse(hashOf(n), from, at)
		leave()
		return http.StatusUnauthorized
	}
	var p *problem
	if !errors.As(err, &p) {
		t.Fatal(err)
	}
	return p.Status
}

func TestAnAddressWithTooManyWrongKeysHasToWait(t *testing.T) {
	t.Parallel()
	s := newStrangers(newSlots(256))
	here, there := netip.MustParsePrefix("192.0.2.1/32"), netip.MustParsePrefix("192.0.2.2/32")
	now := time.Now()
	for n := range failuresAtOnce {
		if got := tryKey(t, s, n, here, now); got != 401 {
			t.Fatalf("wrong key number %d = %d, want 401", n+1, got)
		}
	}
	if got := tryKey(t, s, 1000, here, now); got != 429 {
		t.Errorf("one more = %d, want 429", got)
	}
	if got := tryKey(t, s, 1, here, now); got != 401 {
		t.Errorf("a wrong key again = %d, want the 401 that is remembered", got)
	}
	if got := tryKey(t, s, 1000, there, now); got != 401 {
		t.Errorf("the same from elsewhere = %d, want 401", got)
	}
	later := now.Add(time.Second)
	for n := range failuresPerSecond {
		if got := tryKey(t, s, 2000+n, here, later); got != 401 {
			t.Errorf("wrong key number %d a second later = %d, want 401", n+1, got)
		}
	}
	if got := tryKey(t, s, 3000, here, later); got != 429 {
		t.Errorf("one more = %d, want 429", got)
	}
}

func TestARefusedKeyIsLookedUpAgainAfterATime(t *testing.T) {
	t.Parallel()
	s := newStrangers(newSlots(256))
	from, now := netip.MustParsePrefix("192.0.2.1/32"), time.Now()
	tryKey(t, s, 1, from, now)
	if _, err := s.enter(hashOf(1), from, now.Add(keyTTL-1)); err == nil {
		t.Error("the key is looked up again at once")
	}
	leave, err := s.enter(hashOf(1), from, now.Add(keyTTL))
	if err != nil {
		t.Fatalf("enter after %v = %v, want a look-up", keyTTL, err)
	}
	leave()
}

func TestStrangersGetAQuarterOfTheSlots(t *testing.T) {
	t.Parallel()
	s := newStrangers(newSlots(8))
	from, now := netip.MustParsePrefix("192.0.2.1/32"), time.Now()
	for n := range 2 {
		if _, err := s.enter(hashOf(n), from, now); err != nil {
			t.Fatalf("look-up %d of 2 at once = %v", n+1, err)
		}
	}
	if got := tryKey(t, s, 3, from, now); got != 503 {
		t.Errorf("a third = %d, want 503", got)
	}
}

func TestStrangersTakeBoundedMemory(t *testing.T) {
	t.Parallel()
	s, now := newStrangers(newSlots(8)), time.Now()
	for n := range maxAddresses + 10 {
		from := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 16), byte(n >> 8), byte(n)}), 32)
		tryKey(t, s, n, from, now)
	}
	if len(s.addresses) > maxAddresses || len(s.refused) > maxRefused {
		t.Errorf("%d addresses and %d keys are remembered, want at most %d and %d", len(s.addresses), len(s.refused), maxAddresses, maxRefused)
	}
}

func TestSourceIsWhatOneCustomerGets(t *testing.T) {
	t.Parallel()
	for remote, want := range map[string]string{
		"192.0.2.7:1234": "192.0.2.7/32", "[::ffff:192.0.2.7]:1234": "192.0.2.7/32",
		"[2001:db8:1:2:3:4:5:6]:1": "2001:db8:1:2::/64", "[fe80::1%eth0]:1": "fe80::/64",
		"": "invalid Prefix", "@": "invalid Prefix",
	} {
		if got := source(&http.Request{RemoteAddr: remote}).String(); got != want {
			t.Errorf("source(%q) = %s, want %s", remote, got, want)
		}
	}
}
