package email

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/failsafe-go/failsafe-go"
	"github.com/failsafe-go/failsafe-go/circuitbreaker"
	"github.com/failsafe-go/failsafe-go/retrypolicy"
	"github.com/wneessen/go-mail"
	"github.com/wneessen/go-mail/smtp"
	"golang.org/x/time/rate"
)

// fate is what a try to deliver ended in.
type fate string

const (
	accepted    fate = "accepted"    // the provider has it
	deferred    fate = "deferred"    // refused with a 4xx: another try may succeed
	refused     fate = "refused"     // refused with a 5xx
	unreachable fate = "unreachable" // it never left: the provider is away
	unknown     fate = "unknown"     // it left and was not answered for
)

// answer is the fate of a mail and the provider's reason. The provider's own words may hold addresses; they are not kept.
type answer struct {
	fate   fate
	during string // what the provider was asked
	code   int    // 0: it did not answer
	status string // enhanced status code (RFC 3463), if it gives them
}

func (a answer) String() string {
	if a.code == 0 {
		return a.during + ": no answer"
	}
	if a.status == "" {
		return fmt.Sprintf("%s: %d", a.during, a.code)
	}
	return fmt.Sprintf("%s: %d %s", a.during, a.code, a.status)
}

// access is how to reach a provider.
type access struct{ name, addr, username, password, lookupURL string }

// provider is a mail provider: its limits and what is known of its health.
type provider struct {
	access
	host    string
	port    int
	timeout time.Duration
	limit   *rate.Limiter
	breaker circuitbreaker.CircuitBreaker[any]
	probing atomic.Bool // a worker is finding out whether it works again
	dialing retrypolicy.RetryPolicy[*connection]
	http    *http.Client // for look-ups
}

func newProvider(a access, log *slog.Logger, perSecond float64, timeout, circuit time.Duration) (*provider, error) {
	host, portText, err := net.SplitHostPort(a.addr)
	if err != nil {
		return nil, fmt.Errorf("the mail provider's address %q is not host:port: %w", a.addr, err)
	}
	port, err := strconv.Atoi(portText)
	if err != nil {
		return nil, fmt.Errorf("the mail provider's address %q has no port number: %w", a.addr, err)
	}
	if a.lookupURL != "" {
		if _, err := lookupFor(a.lookupURL, "id"); err != nil {
			return nil, err
		}
	}
	p := &provider{
		access: a, host: host, port: port, timeout: timeout,
		limit: rate.NewLimiter(rate.Limit(perSecond), max(1, int(perSecond/10))),
		// Half of twenty tries: one bad mailbox does not close the way for everybody, a provider that refuses all does.
		breaker: circuitbreaker.NewBuilder[any]().
			WithFailureThresholdRatio(10, 20).
			WithSuccessThreshold(1).
			WithDelay(circuit).
			OnStateChanged(func(e circuitbreaker.StateChangedEvent) {
				log.Warn("mail provider's circuit changed", slog.String("provider", a.name),
					slog.String("from", e.OldState.String()), slog.String("to", e.NewState.String()))
			}).Build(),
		http: &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 2, IdleConnTimeout: 30 * time.Second}},
	}
	p.dialing = retrypolicy.NewBuilder[*connection]().
		WithMaxRetries(2).
		WithBackoff(50*time.Millisecond, time.Second).
		WithJitterFactor(0.25).
		AbortIf(func(*connection, error) bool { return !p.healthy() }). // another worker has found out already
		ReturnLastFailure().Build()
	return p, nil
}

// begin asks to give p a batch of emails, of at most the returned size; 0 is none. To a provider that did not work one
// worker gives one email, to see whether it does again, while the others use the fallback. end must be called after the
// batch.
func (p *provider) begin(batch int) (size int, end func()) {
	switch {
	case p.healthy():
		return batch, func() {}
	case p.breaker.IsOpen() && p.breaker.RemainingDelay() > 0, !p.probing.CompareAndSwap(false, true):
		return 0, func() {}
	}
	return 1, func() { p.probing.Store(false) }
}

// healthy reports whether the provider accepts mails in general.
func (p *provider) healthy() bool { return p.breaker.IsClosed() }

func (p *provider) close() { p.http.CloseIdleConnections() }

// deliver sends msg over the worker's connection to p, and over a new one if that turns out to be dead before the mail
// has left. hold is called when the mail is about to leave, and before anything that takes long. Its error is returned,
// nothing is sent, and it says nothing about p.
func (p *provider) deliver(ctx context.Context, conns connections, msg *mail.Msg, hold func() error) (answer, error) {
	a := answer{fate: unreachable, during: connecting}
	if p.breaker.IsOpen() {
		if p.breaker.RemainingDelay() > 0 {
			return a, nil
		}
		p.breaker.HalfOpen() // begin lets one worker probe; a permit could not be given back when hold fails
	}
	for range 2 {
		if err := hold(); err != nil {
			return answer{}, err
		}
		conn, reused := conns[p], true
		if conn == nil {
			var err error
			if conn, err = p.dial(ctx); err != nil {
				p.breaker.Open() // every other mail would find the same
				return a, nil    //nolint:nilerr // a provider that is away is an answer
			}
			conns[p], reused = conn, false
			if err = hold(); err != nil {
				return answer{}, err
			}
		}
		a = judge(msg, conn.client.SendWithSMTPClient(conn.smtp, msg))
		conn.used = time.Now()
		if a.code == 0 && a.fate != accepted || a.code == smtpUnavailable {
			conns.drop(p)
		}
		if a.fate != unreachable || !reused {
			break // but the provider may well have closed a connection that was idle
		}
	}
	if a.fate == accepted {
		p.breaker.RecordSuccess()
	} else {
		p.breaker.RecordFailure()
	}
	return a, nil
}

// connecting is what an answer is about when no mail was tried.
const connecting = "connect"

// smtpUnavailable is SMTP's "service not available, closing transmission channel" (RFC 5321, 4.2.3).
const smtpUnavailable = 421

// judge reads the fate of msg from the error of sending it. What counts is whether the final dot may have arrived.
func judge(msg *mail.Msg, err error) answer {
	if msg.IsDelivered() {
		return answer{fate: accepted} // an error can only be about what came after
	}
	var sent *mail.SendError
	if !errors.As(err, &sent) {
		return answer{fate: unknown, during: "send"}
	}
	a := answer{during: sent.Reason.String(), code: sent.ErrorCode(), status: sent.EnhancedStatusCode()}
	switch {
	case a.code == smtpUnavailable:
		a.fate = unreachable
	case a.code >= 500:
		a.fate = refused
	case a.code >= 400:
		a.fate = deferred
	case sent.Reason == mail.ErrSMTPDataClose || sent.Reason == mail.ErrAmbiguous:
		a.fate = unknown
	default:
		a.fate = unreachable // before the final dot: a mail without it is not accepted
	}
	return a
}

// connection is an SMTP connection that is kept for the next mail.
type connection struct {
	client *mail.Client
	smtp   *smtp.Client
	raw    net.Conn
	used   time.Time
}

// connections are one worker's, by provider.
type connections map[*provider]*connection

// idleTimeout is how long a connection is kept without a mail. Providers close theirs after a few minutes.
const idleTimeout = 30 * time.Second

// connect sees to it that there is a connection to p, and opens p's circuit when there can be none. One that worked is given
// more than one chance.
func (c connections) connect(ctx context.Context, p *provider) error {
	if c[p] != nil {
		return nil
	}
	dial := func() (*connection, error) { return p.dial(ctx) }
	var err error
	if p.healthy() {
		c[p], err = failsafe.With[*connection](p.dialing).WithContext(ctx).Get(dial)
	} else {
		c[p], err = dial()
	}
	if err != nil {
		delete(c, p)
		p.breaker.Open()
	}
	return err
}

func (p *provider) dial(ctx context.Context) (*connection, error) {
	c := &connection{used: time.Now()}
	opts := []mail.Option{
		mail.WithPort(p.port), mail.WithTimeout(p.timeout), mail.WithTLSPolicy(mail.TLSOpportunistic),
		mail.WithoutNoop(), // a dead connection shows at the next command as well
		mail.WithoutRset(), // nothing follows a mail but the next one
		mail.WithDialContextFunc(func(ctx context.Context, network, addr string) (net.Conn, error) {
			var err error
			c.raw, err = (&net.Dialer{Timeout: 3 * time.Second}).DialContext(ctx, network, addr)
			return c.raw, err
		}),
	}
	if p.username != "" {
		opts = append(opts, mail.WithTLSPolicy(mail.TLSMandatory), mail.WithSMTPAuth(mail.SMTPAuthAutoDiscover),
			mail.WithUsername(p.username), mail.WithPassword(p.password))
	}
	client, err := mail.NewClient(p.host, opts...)
	if err != nil {
		return nil, fmt.Errorf("set up the SMTP client: %w", err)
	}
	c.client = client
	if c.smtp, err = client.DialToSMTPClientWithContext(ctx); err != nil {
		c.cut() // the library leaves it open when the greeting goes wrong
		return nil, fmt.Errorf("connect to the mail provider: %w", err)
	}
	return c, nil
}

// drop forgets a connection in an unknown state. It is cut, not quit: QUIT would end a half-sent mail with its final dot.
func (c connections) drop(p *provider) {
	if conn := c[p]; conn != nil {
		conn.cut()
		delete(c, p)
	}
}

func (c *connection) cut() {
	if c.raw != nil {
		_ = c.raw.Close()
	}
}

func (c connections) closeIdle() {
	for p, conn := range c {
		if time.Since(conn.used) > idleTimeout {
			conn.quit()
			delete(c, p)
		}
	}
}

func (c connections) close() {
	for _, conn := range c {
		conn.quit()
	}
}

func (c *connection) quit() {
	_ = c.raw.SetDeadline(time.Now().Add(time.Second))
	_ = c.smtp.Quit() // manners; the connection is closed either way
	c.cut()
}
