package email

import (
	"errors"
	"testing"
	"time"

	"github.com/wneessen/go-mail"
)

func TestALostLeaseSaysNothingAboutTheProvider(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name    string
		prepare func(*provider)
		want    func(*provider) bool
	}{
		{"that works", func(*provider) {}, (*provider).healthy},
		{"that may work again", func(p *provider) { p.breaker.Open() }, func(p *provider) bool { return p.breaker.IsHalfOpen() }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			post := startPost(t)
			p, err := newProvider(access{name: "primary", addr: post.smtp}, discard(), 100, 10*time.Second, time.Nanosecond)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(p.close)
			conns := connections{}
			t.Cleanup(conns.close)
			msg := mail.NewMsg()
			if err := errors.Join(msg.From("shop@example.com"), msg.To("anna@example.com")); err != nil {
				t.Fatal(err)
			}
			msg.SetBodyString(mail.TypeTextPlain, "thank you")
			tt.prepare(p)
			for i := range 30 {
				holds := 0
				_, err := p.deliver(t.Context(), conns, msg, func() error {
					if holds++; holds > i%2 { // before the dial, and after it
						return errLeaseLost
					}
					return nil
				})
				if !errors.Is(err, errLeaseLost) || !tt.want(p) {
					t.Fatalf("deliver without a lease = %v and the circuit is %v, want %v and it as it was", err, p.breaker.State(), errLeaseLost)
				}
				conns.drop(p)
			}
			a, err := p.deliver(t.Context(), conns, msg, func() error { return nil })
			if err != nil || a.fate != accepted || !p.healthy() {
				t.Errorf("deliver = %v, %v, circuit %v, want it accepted and the circuit closed", a, err, p.breaker.State())
			}
		})
	}
}
