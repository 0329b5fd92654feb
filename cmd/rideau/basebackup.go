package main

import (
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rideau/basebackup"
	"rideau/basebackup/compress"
)

const basebackupHelp = `Usage: rideau basebackup CONNINFO DIR [options]

Makes DIR a copy of the data directory of the PostgreSQL server at CONNINFO,
a primary or a standby, over ordinary SQL connections. The role needs five
GRANTs and no other right: rideau doctor CONNINFO prints them.

The same command goes on with a backup that was interrupted, and refreshes
one that is there: only what changed travels, and what the server does not
have is removed. DIR cannot be started before it is whole, checked and on
disk. It holds all that the server does, the hashes of passwords too.

Options:
    -j, --jobs N         Copy over N connections. Default 4.
    --max-rate SIZE      Read at most so much a second (10MB). Default all.
                         WAL counts, but never for more than half of it.
    --checkpoint HOW     fast, or spread to spare the server. Default fast.
    --label TEXT         The label in backup_label.
    --wal HOW            sql: the WAL comes along, over SQL; none: an archive
                         has it. Default sql.
    --wal-from SOURCE    Take the WAL from the relay or server with this
                         connection string, or an archive's directory or URL.
    --compress NAME      What the server compresses with: auto (the best it
                         has, where that is faster), pgcrypto, function,
                         holes or none. Default none.
    --standby            Make DIR a standby of the server at CONNINFO, or
    --relay CONNINFO     of this relay or server instead,
    --slot NAME          with this slot there, which must exist.
    -T, --tablespace-mapping OLD=NEW
                         Put the tablespace at OLD into NEW; repeatable.
    --logs               Copy the server's log directory too.
    --progress HOW       auto, or none. Default auto: bars on a terminal.
    --json               Print the report as JSON.
    --log FORMAT         text or json, on standard error. Default text.
    --log-level LEVEL    debug, info, warn or error. Default warn.

Exit status: 0 if the backup is complete, 1 if not. Also 1 if it is complete
but pages of it are damaged on the server itself: these are listed.

Example:
    $ rideau basebackup 'host=db1 user=backup dbname=postgres' main
    $ pg_ctl -D main start
`

// basebackupFlags are the options as they were typed.
type basebackupFlags struct {
	jobs                       string
	maxRate, checkpoint, label string
	wal, walFrom, compress     string
	standby                    bool
	relay, slot                string
	tablespaces                []string
	logs, asJSON               bool
	progress                   string
	logFormat, logLevel        string
}

func newBasebackupCommand() *cobra.Command {
	var f basebackupFlags
	cmd := newCommand("basebackup CONNINFO DIR [options]", basebackupHelp, func(cmd *cobra.Command, args []string) error {
		err := arguments(cmd, args,
			[2]string{"CONNINFO", "connection string of the server to back up"},
			[2]string{"DIR", "directory for the backup"})
		if err != nil {
			return err
		}
		cfg, err := f.config(cmd, args[0], args[1])
		if err != nil {
			return err
		}
		return takeBackup(cmd, cfg, f)
	})
	flags := cmd.Flags()
	flags.StringVarP(&f.jobs, "jobs", "j", "4", "")
	flags.StringVar(&f.maxRate, "max-rate", "", "")
	flags.StringVar(&f.checkpoint, "checkpoint", "fast", "")
	flags.StringVar(&f.label, "label", "", "")
	flags.StringVar(&f.wal, "wal", "sql", "")
	flags.StringVar(&f.walFrom, "wal-from", "", "")
	flags.StringVar(&f.compress, "compress", "none", "")
	flags.BoolVar(&f.standby, "standby", false, "")
	flags.StringVar(&f.relay, "relay", "", "")
	flags.StringVar(&f.slot, "slot", "", "")
	flags.StringArrayVarP(&f.tablespaces, "tablespace-mapping", "T", nil, "")
	flags.BoolVar(&f.logs, "logs", false, "")
	flags.StringVar(&f.progress, "progress", "auto", "")
	flags.BoolVar(&f.asJSON, "json", false, "")
	flags.StringVar(&f.logFormat, "log", "text", "")
	flags.StringVar(&f.logLevel, "log-level", "warn", "")
	return cmd
}

// parseJobs reads how many are to work at a time.
func parseJobs(cmd *cobra.Command, text string) (int, error) {
	n, err := strconv.Atoi(text)
	if err != nil || n < 1 || n > 256 {
		return 0, usageErrorf(cmd, "invalid --jobs %q: want a number from 1 to 256", text)
	}
	return n, nil
}

// config reads the options. What is wrong with them is a mistake in the command.
func (f *basebackupFlags) config(cmd *cobra.Command, conninfo, dir string) (basebackup.Config, error) {
	cfg := basebackup.Config{
		Conninfo: conninfo, Dir: dir, Checkpoint: f.checkpoint, Label: f.label,
		WAL: f.wal, Compress: f.compress, Standby: f.standby, Relay: f.relay, Slot: f.slot, Logs: f.logs,
	}
	for _, choice := range []struct {
		option, value string
		words         []string
	}{
		{"checkpoint", f.checkpoint, []string{"fast", "spread"}},
		{"wal", f.wal, []string{"sql", "none"}},
		{"compress", f.compress, compress.Names},
		{"progress", f.progress, []string{"auto", "none"}},
		{"log", f.logFormat, []string{"text", "json"}},
		{"log-level", f.logLevel, []string{"debug", "info", "warn", "error"}},
	} {
		if last := len(choice.words) - 1; !slices.Contains(choice.words, choice.value) {
			return cfg, usageErrorf(cmd, "invalid --%s %q: want %s or %s", choice.option, choice.value,
				strings.Join(choice.words[:last], ", "), choice.words[last])
		}
	}
	given := cmd.Flags().Changed
	switch {
	case given("wal-from") && given("wal"):
		return cfg, usageErrorf(cmd, "--wal and --wal-from exclude each other")
	case given("wal-from") && f.walFrom == "":
		return cfg, usageErrorf(cmd, "--wal-from is empty")
	case !f.standby && (given("relay") || given("slot")):
		return cfg, usageErrorf(cmd, "--relay and --slot are for a standby: give --standby too")
	}
	if given("wal-from") {
		cfg.WAL = f.walFrom
	}
	var err error
	if cfg.Jobs, err = parseJobs(cmd, f.jobs); err != nil {
		return cfg, err
	}
	if cfg.MaxRate, err = parseRate(f.maxRate); err != nil {
		return cfg, usageErrorf(cmd, "invalid --max-rate: %w", err)
	}
	if cfg.Tablespaces, err = parseMappings(f.tablespaces); err != nil {
		return cfg, usageErrorf(cmd, "invalid --tablespace-mapping: %w", err)
	}
	return cfg, nil
}

// minRate is what pg_basebackup takes at least, too.
const minRate = 32 << 10

// parseRate reads a size, which is meant a second. "" is no bound.
func parseRate(text string) (int64, error) {
	if text == "" {
		return 0, nil
	}
	keep, err := parseKeep(text)
	switch {
	case err != nil || keep.Size == 0: // or it is an age
		return 0, fmt.Errorf("%q is not a size: want a number and kB, MB or GB, such as 10MB", text)
	case keep.Size < minRate:
		return 0, fmt.Errorf("%q is less than 32kB", text)
	}
	return keep.Size, nil
}

// parseMappings reads OLD=NEW as pg_basebackup does: a = that is part of a name
// is written \=.
func parseMappings(list []string) (map[string]string, error) {
	const masked = "\x00" // no path has it
	mappings := map[string]string{}
	for _, text := range list {
		old, local, ok := strings.Cut(strings.ReplaceAll(text, `\=`, masked), "=")
		ok = ok && !strings.Contains(local, "=")
		old, local = strings.ReplaceAll(old, masked, "="), strings.ReplaceAll(local, masked, "=")
		switch {
		case !ok || old == "" || local == "":
			return nil, fmt.Errorf("%q is not OLD=NEW", text)
		case !filepath.IsAbs(old):
			return nil, fmt.Errorf("%q is not an absolute path", old)
		case !filepath.IsAbs(local):
			return nil, fmt.Errorf("%q is not an absolute path", local)
		}
		old = filepath.Clean(old)
		if _, twice := mappings[old]; twice {
			return nil, fmt.Errorf("%q is mapped twice", old)
		}
		mappings[old] = filepath.Clean(local)
	}
	return mappings, nil
}

// takeBackup takes the backup, shows how it goes, and says what came of it.
func takeBackup(cmd *cobra.Command, cfg basebackup.Config, f basebackupFlags) error {
	show := newProgress(cmd.ErrOrStderr(), f.progress == "auto")
	log, err := newLog(show.writer(), f.logFormat, f.logLevel)
	if err != nil {
		show.stop()
		return usageErrorf(cmd, "%w", err)
	}
	cfg.Log, cfg.Progress = log, show.backup
	report, err := basebackup.Take(cmd.Context(), cfg)
	show.stop()
	if report != nil {
		if werr := printBackup(cmd.OutOrStdout(), report, cfg, f.asJSON); err == nil {
			err = werr
		}
		return err
	}
	if errors.As(err, new(*basebackup.ConfigError)) {
		return usageErrorf(cmd, "%w", err)
	}
	if err != nil && basebackup.Unfinished(cfg.Dir) {
		err = &unfinishedError{dir: cfg.Dir, err: err, stopped: cmd.Context().Err() != nil}
	}
	return err
}

// An unfinishedError says that a backup ended early, and that what was copied is
// kept.
type unfinishedError struct {
	dir     string
	err     error
	stopped bool // by who runs us
}

func (e *unfinishedError) Error() string {
	if e.stopped {
		return "interrupted"
	}
	return e.err.Error()
}

func (e *unfinishedError) Unwrap() error { return e.err }

func printBackup(w io.Writer, r *basebackup.Report, cfg basebackup.Config, asJSON bool) error {
	if asJSON {
		return writeJSON(w, r)
	}
	_, err := io.WriteString(w, describeBackup(r, cfg))
	return err
}

// describeBackup says what a backup came to, and what to do with it.
func describeBackup(r *basebackup.Report, cfg basebackup.Config) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s"+format+"\n", append([]any{label}, args...)...)
	}
	role := "primary"
	if r.Standby {
		role = "standby"
	}
	line("server", "%s, PostgreSQL %s, a %s", r.Server, r.Version, role)
	line("copied", "%s, %s, in %s: %s", count(uint64(r.Files), "file"), formatSize(r.Bytes), formatTime(r.Elapsed), formatRate(r.Bytes, r.Elapsed))
	line("received", "%s, %s written", formatSize(r.Received), formatSize(r.Written))
	how := r.Method
	if r.Reason != "" {
		how += ": " + r.Reason
	}
	line("method", "%s", how)
	if r.Compress != "" && r.Compress != "none" {
		line("compress", "%s, for %d%% of it", r.Compress, min(100, 100*r.Compressed/max(1, r.Bytes)))
	}
	if r.Removed > 0 {
		line("removed", "%s that the server does not have", count(uint64(r.Removed), "file"))
	}
	timeline := fmt.Sprintf("timeline %s", r.StopTLI)
	if r.StartTLI != r.StopTLI {
		timeline = fmt.Sprintf("timelines %s to %s", r.StartTLI, r.StopTLI)
	}
	line("wal", "%s to %s on %s%s", r.StartLSN, r.StopLSN, timeline, walOf(r, cfg))
	for _, w := range r.Warnings {
		line("warning", "%s", w)
	}
	for _, c := range r.Corrupt {
		line("corrupt", "%s block %d: %s", c.Path, c.Block, c.Detail)
	}
	if more := r.CorruptAll - len(r.Corrupt); more > 0 {
		line("corrupt", "and %s more", count(uint64(more), "page"))
	}
	b.WriteString(nextStep(r, cfg) + "\n")
	return b.String()
}

func walOf(r *basebackup.Report, cfg basebackup.Config) string {
	if cfg.WAL == "none" {
		return ", not in the backup"
	}
	return fmt.Sprintf(", %s", count(uint64(r.WALFiles), "segment"))
}

// nextStep is the last line: what it is, and the command that puts it to use.
func nextStep(r *basebackup.Report, cfg basebackup.Config) string {
	what := "Complete, and on disk."
	if r.CorruptAll > 0 {
		what = "Complete, with damaged pages."
	}
	start := fmt.Sprintf("pg_ctl -D %s start", shellQuote(r.Dir))
	switch {
	case cfg.WAL == "none":
		return fmt.Sprintf("%s Set restore_command in postgresql.auto.conf, make recovery.signal, then: %s", what, start)
	case cfg.Standby:
		return fmt.Sprintf("%s Start the standby with: %s", what, start)
	}
	return fmt.Sprintf("%s Start it with: %s", what, start)
}

// shellQuote quotes a word for a shell, if it needs that.
func shellQuote(word string) string {
	if word != "" && strings.Trim(word, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+:@%,") == "" {
		return word
	}
	return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
}

// formatSize prints a number of bytes with PostgreSQL's units, which go by 1024,
// and three digits.
func formatSize(n int64) string {
	size, unit := float64(n), 0
	for units := len(sizeNames) - 1; size >= 1000 && unit < units; unit++ {
		size /= 1024
	}
	switch {
	case unit == 0:
		return fmt.Sprintf("%d bytes", n)
	case size < 10:
		return fmt.Sprintf("%.2f %s", size, sizeNames[unit])
	case size < 100:
		return fmt.Sprintf("%.1f %s", size, sizeNames[unit])
	}
	return fmt.Sprintf("%.0f %s", size, sizeNames[unit])
}

var sizeNames = []string{"bytes", "kB", "MB", "GB", "TB", "PB"}

func formatRate(n int64, d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return formatSize(int64(float64(n)/d.Seconds())) + "/s"
}

// formatTime prints a duration without digits that nobody reads.
func formatTime(d time.Duration) string {
	switch {
	case d < time.Second:
		return d.Round(10 * time.Millisecond).String()
	case d < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}
