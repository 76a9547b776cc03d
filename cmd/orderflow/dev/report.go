package dev

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/term"
)

// report writes the lines for the user. Parts start side by side, so it is safe for concurrent use.
type report struct {
	mu     sync.Mutex
	out    io.Writer
	colour bool
	began  time.Time
}

func newReport(out io.Writer) *report {
	if out == nil {
		out = io.Discard
	}
	f, ok := out.(*os.File)
	colour := ok && term.IsTerminal(int(f.Fd())) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	return &report{out: out, colour: colour, began: time.Now()}
}

// part says that a part is up, how long it took, and what is unusual about it.
func (r *report) part(name, detail, note string, took time.Duration) {
	if note != "" {
		detail += " (" + note + ")"
	}
	r.line("  %s  %-10s %-58s %6.2f s", r.paint("32", "✓"), name, detail, took.Seconds())
}

// progress says what a part does that can take a while.
func (r *report) progress(name, what string) {
	r.line("  %s  %-10s %s …", r.paint("2", "·"), name, what)
}

func (r *report) line(format string, args ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fmt.Fprintf(r.out, format+"\n", args...)
}

func (r *report) paint(code, text string) string {
	if !r.colour {
		return text
	}
	return "\x1b[" + code + "m" + text + "\x1b[0m"
}
