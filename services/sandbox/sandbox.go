package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"time"

	"github.com/emersion/go-smtp"
	"golang.org/x/sync/errgroup"

	"github.com/orderflow-dev/orderflow/internal/httpserver"
	"github.com/orderflow-dev/orderflow/internal/telemetry"
)

// Config is what the sandbox needs to run.
type Config struct {
	// Addr is where payments, mail and journal are served over HTTP. Default 127.0.0.1:8090.
	Addr string
	// SMTPAddr is where mail is taken. Default 127.0.0.1:1025.
	SMTPAddr string
	// Listener and SMTPListener are used in place of the addresses when they are set; the sandbox closes them.
	Listener, SMTPListener net.Listener
	// DataDir holds the journal. It is created if it is missing, and belongs to one sandbox at a time.
	DataDir string
	// Slow is how late pm_slow and slow faults are answered. Default 1 s.
	Slow time.Duration
	// Late is when pm_late charges: longer than any caller should wait. Default 15 s.
	Late time.Duration
	// Hang is how long pm_timeout says nothing. Default 30 s.
	Hang time.Duration
	// WebhookURL is told what becomes of payments, as the package documentation says. Empty: nobody is.
	WebhookURL string
	// WebhookSecret signs what the URL is told. It is needed with a WebhookURL.
	WebhookSecret string
	// WebhookRetry is the pause before an event that was not taken is delivered again. It doubles each time, up to a minute.
	// Default 500 ms.
	WebhookRetry time.Duration
}

func (c Config) withDefaults() Config {
	if c.Addr == "" {
		c.Addr = "127.0.0.1:8090"
	}
	if c.SMTPAddr == "" {
		c.SMTPAddr = "127.0.0.1:1025"
	}
	if c.Slow == 0 {
		c.Slow = time.Second
	}
	if c.Late == 0 {
		c.Late = 15 * time.Second
	}
	if c.Hang == 0 {
		c.Hang = 30 * time.Second
	}
	if c.WebhookRetry == 0 {
		c.WebhookRetry = 500 * time.Millisecond
	}
	return c
}

// server is a running sandbox.
type server struct {
	cfg      Config
	log      *slog.Logger
	journal  *journal
	payments *payments
	hooks    *webhooks
	mail     *mailbox
	faults   faultBox
	ops      *httpserver.Ops
	stop     <-chan struct{} // closed when the sandbox stops, so that nothing lingers
}

// Run serves the sandbox until ctx ends. It returns an error if it cannot listen, or if the journal cannot be read or
// written: a provider that cannot remember must not answer.
func Run(ctx context.Context, log *slog.Logger, cfg Config) (err error) {
	cfg = cfg.withDefaults()
	if cfg.DataDir == "" {
		return errors.New("the sandbox needs a data directory")
	}
	group, ctx := errgroup.WithContext(ctx)
	httpLn, err := listen(ctx, cfg.Listener, cfg.Addr)
	if err != nil {
		return err
	}
	defer httpLn.Close()
	smtpLn, err := listen(ctx, cfg.SMTPListener, cfg.SMTPAddr)
	if err != nil {
		return err
	}
	defer smtpLn.Close()
	hooks, err := newWebhooks(cfg, log)
	if err != nil {
		return err
	}
	s := &server{cfg: cfg, log: log, payments: newPayments(hooks), hooks: hooks, mail: &mailbox{}, stop: ctx.Done()}
	if err := s.open(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.journal.close()) }()
	tel, err := telemetry.New("sandbox")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, tel.Close(context.WithoutCancel(ctx))) }()
	// What cannot remember must not be asked to pay.
	s.ops = httpserver.NewOps(tel.Metrics, httpserver.Check{Name: "journal", Ready: func(context.Context) error { return s.journal.commit() }})

	log.InfoContext(ctx, "sandbox serves", slog.String("http", httpLn.Addr().String()), slog.String("smtp", smtpLn.Addr().String()),
		slog.Int64("entries", s.journal.seq))
	group.Go(func() error { return httpserver.Run(ctx, log, httpLn, s.routes(), httpserver.Options{Ops: s.ops}) })
	group.Go(func() error { return serveSMTP(ctx, smtpLn, s.smtpServer()) })
	group.Go(func() error { return hooks.run(ctx) })
	group.Go(func() error {
		select {
		case <-ctx.Done():
			return nil
		case <-s.journal.failed:
			return errJournalBroken
		}
	})
	return group.Wait()
}

// open rebuilds the state from the journal.
func (s *server) open() error {
	j, err := openJournal(s.cfg.DataDir, s.log, func(e entry, at span) error {
		if e.Kind == kindMail {
			s.mail.apply(e, at)
			return nil
		}
		return s.payments.apply(e)
	})
	if err != nil {
		return err
	}
	s.journal, s.payments.journal, s.hooks.journal, s.mail.journal = j, j, j, j
	return nil
}

func (s *server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/payment_intents", s.faulty(s.createIntent))
	mux.HandleFunc("POST /v1/payment_intents/{id}/confirm", s.faulty(s.confirmIntent))
	mux.HandleFunc("POST /v1/payment_intents/{id}/cancel", s.faulty(s.cancelIntent))
	mux.HandleFunc("GET /v1/payment_intents/{id}", s.showIntent)
	mux.HandleFunc("GET /v1/payment_intents", s.findIntent)
	mux.HandleFunc("POST /v1/refunds", s.faulty(s.createRefund))
	mux.HandleFunc("GET /v1/mail", s.listMail)
	mux.HandleFunc("GET /v1/mail/{seq}", s.showMail)
	mux.HandleFunc("GET /v1/journal", s.showJournal)
	mux.HandleFunc("GET /v1/faults", func(w http.ResponseWriter, _ *http.Request) {
		s.write(w, answerWith(http.StatusOK, s.faults.current()))
	})
	mux.HandleFunc("POST /v1/faults", s.setFaults)
	for _, path := range []string{"/healthz", "/readyz", "/metrics"} {
		mux.Handle("GET "+path, s.ops)
	}
	return mux
}

func (s *server) listMail(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	mails, err := s.mail.list(mailFilter{
		to: q.Get("to"), messageID: bareMessageID(q.Get("message_id")), orderID: q.Get("order_id"),
	})
	s.finish(w, outcome{answer: answerWith(http.StatusOK, mails)}, err)
}

func (s *server) showMail(w http.ResponseWriter, r *http.Request) {
	seq, err := strconv.ParseInt(r.PathValue("seq"), 10, 64)
	if err != nil {
		s.write(w, refuse(http.StatusNotFound, "not_found", "There is no such mail."))
		return
	}
	mail, ok, err := s.mail.open(seq)
	if err == nil && !ok {
		s.write(w, refuse(http.StatusNotFound, "not_found", "There is no such mail."))
		return
	}
	s.finish(w, outcome{answer: answerWith(http.StatusOK, mail)}, err)
}

func (s *server) showJournal(w http.ResponseWriter, r *http.Request) {
	after := int64(0)
	if q := r.URL.Query().Get("after"); q != "" {
		var err error
		if after, err = strconv.ParseInt(q, 10, 64); err != nil {
			s.write(w, refuse(http.StatusBadRequest, "invalid_request", "after is a seq"))
			return
		}
	}
	w.Header().Set("Content-Type", "application/jsonl")
	if err := s.journal.stream(w, after); err != nil {
		// The status line may be out already; only a cut connection tells the reader that lines are missing.
		s.log.WarnContext(r.Context(), "journal not streamed", slog.Any("error", err))
		panic(http.ErrAbortHandler)
	}
}

func (s *server) setFaults(w http.ResponseWriter, r *http.Request) {
	var f Faults
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxBody))
	dec.DisallowUnknownFields() // a misspelled fault would be no fault, and its demo a lie
	err := dec.Decode(&f)
	if err == nil {
		err = f.check()
	}
	if err != nil {
		s.write(w, refuse(http.StatusBadRequest, "invalid_request", err.Error()))
		return
	}
	s.faults.replace(f)
	s.hooks.hold(f.Webhooks == faultHold)
	s.log.InfoContext(r.Context(), "faults set", slog.String("smtp", f.SMTP), slog.String("payments", f.Payments),
		slog.String("lookups", f.Lookups), slog.String("webhooks", f.Webhooks))
	s.write(w, answerWith(http.StatusOK, f))
}

func listen(ctx context.Context, ln net.Listener, addr string) (net.Listener, error) {
	if ln != nil {
		return ln, nil
	}
	return httpserver.Listen(ctx, addr)
}

func serveSMTP(ctx context.Context, ln net.Listener, srv *smtp.Server) error {
	failed := make(chan error, 1)
	go func() { failed <- srv.Serve(ln) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve the sandbox's SMTP: %w", err)
	case <-ctx.Done():
	}
	// Closed, not drained: an SMTP client keeps its idle connection for as long as it likes.
	_ = srv.Close()
	_ = ln.Close()  // Close knows the listener only once Serve has come so far
	return <-failed // nil after a Close
}
