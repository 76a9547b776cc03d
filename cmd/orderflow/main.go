// Command orderflow runs the order system and looks after it: every service, the schema, orders, consumer groups, dead
// letters and load, in one binary. `orderflow help` lists the commands.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(realMain())
}

func realMain() int {
	// The first signal asks everything to stop. Afterwards signals have their usual effect again, so that a second
	// Ctrl-C ends a command that does not.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop)
	return run(ctx, os.Args[1:], os.Stdout, os.Stderr)
}

// run executes one command line and returns the process's exit code.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	root := newRoot(stdout, stderr) //nolint:contextcheck // commands get ctx from ExecuteContext
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	code := exitCode(err, ctx.Err() != nil)
	if err != nil {
		printError(stderr, err)
	}
	return code
}
