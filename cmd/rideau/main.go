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
	"sync"
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
//
// A shell starts what it runs in the background with SIGINT ignored. We heed it
// all the same, but cannot die of it then: the exit status says as much.
func interruptible(parent context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(parent)
	ignored := map[os.Signal]bool{os.Interrupt: signal.Ignored(os.Interrupt), syscall.SIGTERM: signal.Ignored(syscall.SIGTERM)}
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	stopped := make(chan struct{})
	go func() {
		select {
		case sig := <-signals:
			cancel(interruption{sig.(syscall.Signal)})
		case <-stopped:
			return
		}
		select {
		case sig := <-signals:
			if !ignored[sig] {
				signal.Reset(sig)
				syscall.Kill(os.Getpid(), sig.(syscall.Signal))
				select {} // it is on its way
			}
			os.Exit(128 + int(sig.(syscall.Signal)))
		case <-stopped:
		}
	}()
	return ctx, sync.OnceFunc(func() {
		signal.Stop(signals)
		close(stopped)
		cancel(nil)
	})
}

// interruption is the cause of a context that a signal has cancelled. To ask for
// the signal on another channel would be a race: the context may be first.
type interruption struct{ signal syscall.Signal }

func (i interruption) Error() string { return i.signal.String() }
