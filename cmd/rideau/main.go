// Command rideau stands between a PostgreSQL primary and everything that needs
// its data. It takes its orders in the form NOUN VERB, each noun in a file of
// its own:
//
//	main.go ──▶ root.go ──▶ relay.go, run.go, wal.go, ...   what was asked
//	   │                          │
//	   │                          ▼
//	   │                      daemon.go                     wiring: features
//	   ▼                                                    know no other
//	report.go   what went wrong, in words, and the exit status
//
// The package holds flags, the configuration file, wiring and hints. It holds
// no decisions: anything that needs thought is in a package below, where it can
// be tested and imported alone.
//
// # Invariants
//
//   - Only main exits the process.
//   - What was asked for goes to standard output, all else to standard error.
//   - Exit status 0 is done, 1 failed, 2 a mistake in the command line or the
//     configuration. A verb that PostgreSQL runs for us (restore_command) has a
//     contract of its own and says so in its help.
//   - No password is ever printed: whatever is reported or logged goes through
//     [maskPasswords].
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := interruptible(context.Background())
	defer stop()
	os.Exit(execute(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// execute carries out one command line and returns the exit status.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	return report(stderr, cmd.CommandPath(), err)
}

// interruptible returns a context that the first SIGINT or SIGTERM cancels, to
// stop in order. The second ends the process at once, by the signal itself, so
// that whoever waits for us learns what it was.
func interruptible(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, stop := signal.NotifyContext(parent, os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop)
	return ctx, stop
}
