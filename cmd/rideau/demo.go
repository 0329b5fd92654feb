package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"rideau/demo"
	"rideau/internal/pgserver"
)

const demoHelp = `Usage: rideau demo [options]

Shows, in some fifteen seconds and on this machine alone, that a failover
through a relay loses nothing. It starts a PostgreSQL primary with fsync on, a
relay ("rideau relay", its command line is shown) as the only synchronous
member, and two standbys that know only the relay. While clients write, the
primary is killed with SIGKILL. A standby is drained to the last byte that the
relay acknowledged and promoted; the relay and the clients find it by
themselves; the other standby follows through the relay, untouched.

In the end each commit that was acknowledged to a client is looked for on the
new primary, on the other standby, and in the WAL that the relay holds. If one
is missing anywhere, the exit status is 1 and the files are kept.

PostgreSQL must be installed (13 to 18); nothing of yours is touched. Servers
listen on free ports of 127.0.0.1 and trust who comes from there. If you are
root, they run as nobody.

Options:
    --keep         Leave all of it running after the report, say how to reach
                   it, and remove it when interrupted.
    --json         Print the report as JSON, and progress on standard error.
    --major N      The version of PostgreSQL. Default 15 if it is installed,
                   else the newest that is.
    --dir DIR      Put files in DIR, which is made if needed and must be empty.
                   Default: a new one in the temporary folder. What was put
                   there is removed either way.

An interrupt (SIGINT, SIGTERM) ends and removes everything, at any time.

Example:
    $ rideau demo --keep
`

func newDemoCommand() *cobra.Command {
	var flags struct {
		keep, json bool
		major      int
		dir        string
	}
	cmd := newCommand("demo [options]", demoHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args); err != nil {
			return err
		}
		if cmd.Flags().Changed("major") && !slices.Contains(pgserver.Majors, flags.major) {
			err := usageErrorf(cmd, "PostgreSQL %d is not supported", flags.major)
			err.hint = fmt.Sprintf("Supported are %d to %d.", pgserver.Majors[0], pgserver.Majors[len(pgserver.Majors)-1])
			return err
		}
		if cmd.Flags().Changed("dir") && flags.dir == "" {
			return usageErrorf(cmd, "--dir needs the name of a directory")
		}
		program, err := os.Executable()
		if err != nil {
			return fmt.Errorf("could not find this program to run the relay with: %w", err)
		}
		// The servers are the demo's own; what the environment says of others
		// (PGHOST, PGSSLMODE, PGSERVICE) is not meant for them.
		for _, kv := range os.Environ() {
			if name, _, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "PG") {
				os.Unsetenv(name)
			}
		}
		// A terminal that is closed, a pager that is left: not before all that
		// was started is gone. SIGPIPE alone says nothing, for it comes of a
		// primary that dies as well; caught, it makes a write to the pager fail.
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGHUP)
		defer stop()
		caught := make(chan os.Signal, 1)
		signal.Notify(caught, syscall.SIGPIPE)
		defer signal.Stop(caught)
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()

		stdout := &hangUp{w: cmd.OutOrStdout(), cancel: cancel}
		stderr := &hangUp{w: cmd.ErrOrStderr(), cancel: cancel}
		show := newDemoShow(stdout)
		if flags.json {
			show = newDemoShow(stderr)
		}
		_, err = demo.Run(ctx, demo.Config{
			Program: program,
			Major:   flags.major,
			Dir:     flags.dir,
			Step:    show.step,
			Doing:   show.doing,
			Show: func(ctx context.Context, r *demo.Report) error {
				show.clear()
				if err := printDemo(stdout, show, r, flags.json); err != nil {
					return err
				}
				if flags.keep {
					show.waysIn(r)
					<-ctx.Done()
				}
				return nil
			},
		})
		show.clear()
		return err
	})
	cmd.Flags().BoolVar(&flags.keep, "keep", false, "")
	cmd.Flags().BoolVar(&flags.json, "json", false, "")
	cmd.Flags().IntVar(&flags.major, "major", 0, "")
	cmd.Flags().StringVar(&flags.dir, "dir", "", "")
	return cmd
}

// A hangUp is an output; when nobody reads it any more, it ends the demo.
type hangUp struct {
	w      io.Writer
	cancel func()
}

func (h *hangUp) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	if err != nil {
		h.cancel()
	}
	return n, err
}

func printDemo(stdout io.Writer, show *demoShow, r *demo.Report, asJSON bool) error {
	if !asJSON {
		return show.report(r)
	}
	return writeJSON(stdout, r)
}
