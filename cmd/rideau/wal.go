package main

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"rideau/archive"
)

const walHelp = `Usage: rideau wal VERB [options] [arguments]

    fetch        restore_command: bring a segment from a relay or a directory
    check        from where to where an archive is whole, and what is missing
    dump         look inside: records as a person wants to read them

An archive is the directory of a relay, or any directory with WAL segments
under PostgreSQL's names: pg_receivewal's, that of an archive_command.

"rideau wal VERB --help" explains one.
`

func newWalCommand() *cobra.Command {
	return newGroup("wal", walHelp, newWalFetchCommand(), newWalCheckCommand(), newWalDumpCommand())
}

const walFetchHelp = `Usage: rideau wal fetch SOURCE NAME PATH [options]

Writes the segment or history file NAME to PATH. It is meant for PostgreSQL:

    restore_command = 'rideau wal fetch http://relay1:5480 %f "%p"'

SOURCE is the HTTP address of a relay or the directory of an archive. PATH is
whole, checked and on disk when the exit status is 0, and else untouched.

Options:
    --timeout TIME   For how long to try a relay that does not answer, such as
                     30s or 5min. Default 1min.
    --partial        Take the partial segment where there is no whole one, with
                     zeros at its end: the last WAL of a lost server. Only from
                     a directory, and not for standbys.

Exit status:
    0                done
    1                SOURCE does not have the file. Recovery takes this for the
                     end of WAL, and the server then opens for writing.
    255              anything else: SOURCE not reached, empty or broken, a file
                     that is not what its name says, a mistake in the command.
                     Recovery stops, so that it does not end too early.
    143, 130         interrupted by SIGTERM, SIGINT

On a standby (where standby.signal is in the current directory) what would be
255 but for a mistake in the command is 1, and a relay is asked only once: a
standby that gets no file goes on streaming, where recovery that stops would
shut it down, and it asks again later.
`

// statusNotWAL is beyond what PostgreSQL takes for "there is no such file",
// 1 to 125 (RestoreArchivedFile in xlogarchive.c).
const statusNotWAL = 255

func newWalFetchCommand() *cobra.Command {
	var timeout string
	var partial bool
	cmd := newCommand("fetch SOURCE NAME PATH [options]", walFetchHelp, func(cmd *cobra.Command, args []string) error {
		f, err := newWalFetch(cmd, args, timeout, partial)
		if err != nil {
			return withStatus(statusNotWAL, err)
		}
		_, statErr := os.Stat("standby.signal")
		return f.run(cmd.Context(), statErr == nil)
	})
	cmd.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return withStatus(statusNotWAL, usageErrorf(cmd, "%w", err))
	})
	cmd.Flags().StringVar(&timeout, "timeout", "1min", "")
	cmd.Flags().BoolVar(&partial, "partial", false, "")
	return cmd
}

// A walFetch is a call of "rideau wal fetch".
type walFetch struct {
	source     archive.Source
	name, path string
	partial    bool
	patience   time.Duration
}

func newWalFetch(cmd *cobra.Command, args []string, timeout string, partial bool) (*walFetch, error) {
	err := arguments(cmd, args,
		[2]string{"SOURCE", "relay or directory to fetch from"},
		[2]string{"NAME", "name of the file to fetch (%f)"},
		[2]string{"PATH", "path to write it to (%p)"})
	if err != nil {
		return nil, err
	}
	f := &walFetch{name: args[1], path: args[2], partial: partial}
	if f.patience, err = parseTimeout(timeout); err != nil {
		return nil, usageErrorf(cmd, "invalid --timeout: %w", err)
	}
	if !strings.Contains(args[0], "://") {
		f.source = archive.New(archive.Dir(args[0]))
		return f, nil
	}
	if partial {
		return nil, usageErrorf(cmd, "--partial needs a directory, not the address of a relay")
	}
	if f.source, err = archive.NewRemote(args[0]); err != nil {
		return nil, usageErrorf(cmd, "%w", err)
	}
	return f, nil
}

// parseTimeout reads a duration in the spelling of PostgreSQL's settings, where
// minutes are min, or in Go's.
func parseTimeout(text string) (time.Duration, error) {
	if number, ok := strings.CutSuffix(text, "min"); ok {
		text = strings.TrimSpace(number) + "m"
	}
	d, err := time.ParseDuration(strings.ReplaceAll(text, " ", ""))
	if err != nil || d < 0 {
		return 0, errors.New("want a time such as 30s or 5min")
	}
	return d, nil
}

// run fetches. Its error is nil or has an exit status.
func (f *walFetch) run(ctx context.Context, standby bool) error {
	var name *archive.NameError
	switch err := f.try(ctx, standby); {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		// As a shell says it of a program that a signal ended: of SIGTERM
		// PostgreSQL then makes nothing, it was itself that sent it.
		status := 128 + int(syscall.SIGTERM)
		var by interruption
		if errors.As(context.Cause(ctx), &by) {
			status = 128 + int(by.signal)
		}
		return withStatus(status, nil)
	case errors.Is(err, fs.ErrNotExist):
		return withStatus(1, nil) // and no word: it is asked for what may be, all the time
	case standby && !errors.As(err, &name):
		return withStatus(1, err)
	default:
		return withStatus(statusNotWAL, err)
	}
}

func (f *walFetch) try(ctx context.Context, standby bool) error {
	patience := f.patience
	if standby {
		patience = 0
	}
	err := archive.Patiently(ctx, patience, func() error {
		return archive.Fetch(ctx, f.source, f.name, f.path)
	})
	if f.partial && errors.Is(err, fs.ErrNotExist) && !strings.HasSuffix(f.name, ".history") {
		err = archive.FetchPartial(ctx, f.source, f.name, f.path)
	}
	return err
}
