package api

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/url"
	"os"
	"path"
	"runtime/debug"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/orderflow-dev/orderflow/internal/postgres"
	"github.com/orderflow-dev/orderflow/internal/ratelimit"
	"github.com/orderflow-dev/orderflow/services/api/body"
)

const (
	// maxBody is the largest request body.
	maxBody = 64 << 10
	// bodyTimeout is how long a client may take to send it.
	bodyTimeout = 5 * time.Second
)

// access says who may call a route.
type access int

const (
	public     access = iota // anybody, without a key
	anyKey                   // the handler compares the order's user
	serviceKey               // user keys get a 403
	signed                   // a POST without a key, whose handler checks the signature over the body
)

// prepass looks at a request before its handler does: it finds the route, reads the body, identifies the caller and keeps
// to the rate limit. What it refuses has cost no database connection, except to look up a key that is not remembered. What
// it lets through may take its time, but not to be read: see statusWriter.
type prepass struct {
	mux         *http.ServeMux
	routes      map[string]route // by the mux's pattern
	keys        *keyring
	limits      *ratelimit.Limiter
	log         *slog.Logger
	metrics     *metrics
	bodyTimeout time.Duration
	// writeTimeout is how long a client may take to read writeChunk bytes.
	writeTimeout time.Duration
}

func (p *prepass) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	began := time.Now()
	recorded := &statusWriter{ResponseWriter: w, conn: http.NewResponseController(w), patience: p.writeTimeout}
	recorded.extend() // for "100 Continue"
	_, pattern := p.mux.Handler(r)
	defer p.end(r.Context(), recorded, pattern, began)
	recorded.Header().Set("X-Content-Type-Options", "nosniff")
	ready, err := p.admit(recorded, r, pattern)
	if err != nil {
		p.problem(r.Context(), pattern, err).write(recorded)
		return
	}
	p.mux.ServeHTTP(recorded, ready)
}

// end is deferred: it answers for a handler that panicked, and counts the request. net/http would recover too, but cut the
// connection, and a client could not tell a bug from a crash. An answer that has begun is cut: its rest is not to come, and
// ended in good order it would look complete.
func (p *prepass) end(ctx context.Context, w *statusWriter, pattern string, began time.Time) {
	v := recover()
	abort := v == any(http.ErrAbortHandler)
	if v != nil && !abort {
		p.log.ErrorContext(ctx, "handler panicked",
			slog.String("route", pattern), slog.Any("error", v), slog.String("stack", string(debug.Stack())))
		if abort = w.status != 0; !abort {
			internalError().write(w)
		}
	}
	w.extend() // for what net/http still holds back
	p.metrics.request(ctx, pattern, w.status, time.Since(began))
	if abort {
		panic(http.ErrAbortHandler)
	}
}

// admit returns the request as its handler wants it, or why it is refused.
func (p *prepass) admit(w http.ResponseWriter, r *http.Request, pattern string) (*http.Request, error) {
	// The mux would redirect such a path in HTML.
	if clean := path.Clean("/" + r.URL.Path); clean != r.URL.Path {
		return nil, notFound()
	}
	if pattern == "" {
		return nil, p.noRoute(r)
	}
	need := p.routes[pattern]
	if need.access == public {
		return r, nil
	}
	if need.access == signed {
		return p.admitSigned(w, r)
	}
	key, ok := bearer(r)
	if !ok {
		return nil, unauthorized()
	}
	if _, err := url.ParseQuery(r.URL.RawQuery); err != nil {
		return nil, newProblem(http.StatusBadRequest, "", "The query string is malformed.")
	}
	var raw []byte
	if r.Method == http.MethodPost {
		var err error
		if raw, err = p.readBody(w, r); err != nil {
			return nil, err
		}
	}
	caller, err := p.keys.identify(r.Context(), key, source(r))
	if err != nil {
		return nil, err
	}
	if need.access == serviceKey && caller.role != RoleService {
		return nil, forbidden("This route needs a service key.")
	}
	// A service speaks for all its users at once; what bounds it are the slots.
	if caller.role == RoleUser {
		d := p.limits.Allow(r.Context(), "user:"+caller.userID)
		if d.Local {
			p.metrics.local.Add(r.Context(), 1)
		}
		if !d.Allowed {
			return nil, newProblem(http.StatusTooManyRequests, kindRateLimited, "Too many requests by this user.").
				retry(max(d.RetryAfter, time.Second))
		}
	}
	if need.needKey {
		if err := checkKey(r.Header["Idempotency-Key"]); err != nil {
			return nil, err
		}
	}
	if need.needBody && len(raw) == 0 {
		return nil, malformed(body.ErrEmpty)
	}
	return r.WithContext(context.WithValue(r.Context(), callKey{}, call{caller: caller, body: raw})), nil
}

// admitSigned reads the body of a request that needs no key.
func (p *prepass) admitSigned(w http.ResponseWriter, r *http.Request) (*http.Request, error) {
	raw, err := p.readBody(w, r)
	if err != nil {
		return nil, err
	}
	if len(raw) == 0 {
		return nil, malformed(body.ErrEmpty)
	}
	return r.WithContext(context.WithValue(r.Context(), callKey{}, call{body: raw})), nil
}

// checkKey checks the Idempotency-Key headers of a request.
func checkKey(values []string) error {
	const location = "header.Idempotency-Key"
	switch {
	case len(values) == 0:
		return newProblem(http.StatusBadRequest, "", "Send a header such as Idempotency-Key: 0199b3f2-5c1e-7d4a-9a50-6c1f1f2e8b11, new for every new order and the same when you repeat a request.").
			at(location, "is required")
	case len(values) > 1:
		return newProblem(http.StatusBadRequest, "", "Send one Idempotency-Key.").at(location, "is there more than once")
	case !keyPattern.MatchString(values[0]):
		return newProblem(http.StatusBadRequest, "", "The Idempotency-Key is malformed.").
			at(location, "must be 1 to 255 visible ASCII characters")
	}
	return nil
}

// noRoute answers 404, or 405 when the path exists for another method; the mux knows which, but says it in plain text.
func (p *prepass) noRoute(r *http.Request) *problem {
	said := &overheard{header: http.Header{}}
	p.mux.ServeHTTP(said, r)
	if said.status != http.StatusMethodNotAllowed {
		return notFound()
	}
	return newProblem(http.StatusMethodNotAllowed, "", "This path does not have that method; the header Allow lists those it has.").
		with("Allow", said.header.Get("Allow"))
}

// overheard takes an answer that is not sent.
type overheard struct {
	header http.Header
	status int
}

func (o *overheard) Header() http.Header         { return o.header }
func (o *overheard) Write(b []byte) (int, error) { return len(b), nil }
func (o *overheard) WriteHeader(status int)      { o.status = status }

// readBody reads the whole body before anything else is done for the request, so that a slow client holds nothing but its
// own connection.
func (p *prepass) readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	tooLarge := newProblem(http.StatusRequestEntityTooLarge, "", "The body is larger than 64 KiB.")
	if r.ContentLength > maxBody {
		return nil, tooLarge
	}
	if r.ContentLength != 0 {
		if mediaType, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || mediaType != "application/json" ||
			r.Header.Get("Content-Encoding") != "" {
			return nil, newProblem(http.StatusUnsupportedMediaType, "", "Send the body as JSON, uncompressed, with the header: Content-Type: application/json")
		}
	}
	conn := http.NewResponseController(w)
	if err := conn.SetReadDeadline(time.Now().Add(p.bodyTimeout)); err != nil {
		return nil, err
	}
	raw, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	var over *http.MaxBytesError
	switch {
	case errors.As(err, &over):
		return nil, tooLarge
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, newProblem(http.StatusRequestTimeout, "", "The body did not arrive in time.").with("Connection", "close")
	case err != nil:
		return nil, newProblem(http.StatusBadRequest, "", "The body ended early.").with("Connection", "close")
	}
	// A deadline that passed while the handler works would cancel it.
	return raw, conn.SetReadDeadline(time.Time{})
}

// problem turns any error into the answer to give, and logs what someone must look at.
func (p *prepass) problem(ctx context.Context, route string, err error) *problem {
	var known *problem
	if errors.As(err, &known) {
		return known
	}
	switch {
	case errors.Is(err, context.Canceled):
		return unavailable() // nobody reads it
	case errors.Is(err, context.DeadlineExceeded), postgres.Outage(err), postgres.Retryable(err), timedOut(err):
		p.log.WarnContext(ctx, "database is not able to work", slog.String("route", route), slog.Any("error", err))
		return unavailable()
	default:
		p.log.ErrorContext(ctx, "request failed", slog.String("route", route), slog.Any("error", err))
		return internalError()
	}
}

// timedOut reports whether Postgres ended a statement for its time.
func timedOut(err error) bool {
	var refused *pgconn.PgError
	return errors.As(err, &refused) && refused.Code == "57014"
}

// call is what the prepass found out about a request, for its handler.
type call struct {
	caller principal
	body   []byte // of a POST
}

type callKey struct{}

func callOf(ctx context.Context) call {
	c, _ := ctx.Value(callKey{}).(call)
	return c
}

// writeChunk is the most that is written in one go. The smaller it is, the sooner a client that does not read is found out.
const writeChunk = 16 << 10

// statusWriter remembers the status for the metrics, and whether anything was answered yet. It gives the client some time for
// each piece of the answer: one that does not read is cut off, while a long poll or a stream may be silent as long as it
// likes. Without this a connection whose client is mute would be kept for ever.
type statusWriter struct {
	http.ResponseWriter
	conn     *http.ResponseController
	patience time.Duration
	status   int
}

func (w *statusWriter) WriteHeader(status int) {
	if w.status == 0 {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Write(b []byte) (written int, err error) {
	if w.status == 0 {
		w.status = http.StatusOK
	}
	for {
		w.extend()
		n, err := w.ResponseWriter.Write(b[:min(len(b), writeChunk)])
		written += n
		if b = b[n:]; err != nil || len(b) == 0 {
			return written, err
		}
	}
}

// extend gives the client its time anew. A connection that takes no deadline is closed already: the next write says so.
func (w *statusWriter) extend() { _ = w.conn.SetWriteDeadline(time.Now().Add(w.patience)) }

// Unwrap lets http.ResponseController reach the connection.
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }
