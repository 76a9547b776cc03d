// Mailpit stands in for the mail catcher of that name where its image cannot be had: the same ports, and as much of its
// JSON as Orderflow and its tests ask for.
package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/emersion/go-smtp"
)

const (
	smtpAddr = ":1025"
	httpAddr = ":8025"
	maxMail  = 1 << 20 // bytes
)

func main() {
	if len(os.Args) == 2 && os.Args[1] == "readyz" {
		os.Exit(readyz())
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx); err != nil {
		slog.Error("mailpit ends", "error", err)
		stop()
		os.Exit(1)
	}
}

// readyz is the health check: the image has no other program.
func readyz() int {
	client := http.Client{Timeout: 3 * time.Second}
	resp, err := client.Get("http://127.0.0.1" + httpAddr + "/readyz")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return 1
	}
	return 0
}

func run(ctx context.Context) error {
	box, err := openMailbox(os.Getenv("MP_DATABASE"))
	if err != nil {
		return err
	}
	defer box.close()
	var config net.ListenConfig
	smtpListener, err := config.Listen(ctx, "tcp", smtpAddr)
	if err != nil {
		return fmt.Errorf("listen for mail: %w", err)
	}
	httpListener, err := config.Listen(ctx, "tcp", httpAddr)
	if err != nil {
		return fmt.Errorf("listen for requests: %w", err)
	}
	mails := smtp.NewServer(smtp.BackendFunc(func(*smtp.Conn) (smtp.Session, error) { return &session{box: box}, nil }))
	mails.Domain = "mailpit"
	mails.MaxMessageBytes = maxMail
	mails.ReadTimeout, mails.WriteTimeout = time.Minute, time.Minute
	web := &http.Server{Handler: routes(box), ReadHeaderTimeout: 5 * time.Second}

	failed := make(chan error, 2)
	go func() { failed <- mails.Serve(smtpListener) }()
	go func() { failed <- web.Serve(httpListener) }()
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	return errors.Join(err, mails.Shutdown(closing), web.Shutdown(closing))
}
