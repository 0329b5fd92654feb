package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"rideau/basebackup"
)

const backupHelp = `Usage: rideau backup VERB [options] [arguments]

    verify       prove a backup, without a server

Backups are taken with rideau basebackup.

"rideau backup VERB --help" explains one.
`

func newBackupCommand() *cobra.Command {
	return newGroup("backup", backupHelp, newBackupVerifyCommand())
}

const backupVerifyHelp = `Usage: rideau backup verify DIR [options]

Proves all that can be proven of the base backup in DIR without a server: no
file is missing, added or changed since (backup_manifest); every page is sound;
pg_control is whole and of the same system; backup_label is there; and every
WAL record from the backup's start to its stop is in pg_wal. The backup may be
one of rideau basebackup or of pg_basebackup. Nothing is changed.

If a server was started in DIR since, the manifest no longer applies; then
pg_control and the pages are checked. A server that runs must be stopped.

Options:
    --wal none       The WAL was left out on purpose, and is in an archive.
    --quick          Look at names and sizes only, but for pg_control, the
                     label and the WAL.
    -j, --jobs N     Read N files at a time. Default one a processor.
    --progress HOW   auto, or none. Default auto: a bar on a terminal.
    --json           Print the report as JSON.

Exit status: 0 if nothing is wrong, 1 if something is.

Example:
    $ rideau backup verify main
`

func newBackupVerifyCommand() *cobra.Command {
	var cfg basebackup.VerifyConfig
	var asJSON bool
	var how, wal, jobs string
	cmd := newCommand("verify DIR [options]", backupVerifyHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"DIR", "directory of a backup"}); err != nil {
			return err
		}
		switch {
		case how != "auto" && how != "none":
			return usageErrorf(cmd, "invalid --progress %q: want auto or none", how)
		case wal != "" && wal != "none":
			return usageErrorf(cmd, "invalid --wal %q: want none, or leave it out", wal)
		}
		if jobs != "" {
			var err error
			if cfg.Jobs, err = parseJobs(cmd, jobs); err != nil {
				return err
			}
		}
		cfg.NoWAL = wal == "none"
		show := newProgress(cmd.ErrOrStderr(), how == "auto")
		cfg.Dir, cfg.Progress = args[0], show.verify
		v, err := basebackup.Verify(cmd.Context(), cfg)
		show.stop()
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if asJSON {
			err = writeJSON(out, v)
		} else {
			_, err = io.WriteString(out, describeVerification(v))
		}
		if err == nil && !v.Sound() {
			err = withStatus(statusFailed, nil) // the report has said it
		}
		return err
	})
	cmd.Flags().BoolVar(&cfg.Quick, "quick", false, "")
	cmd.Flags().StringVar(&wal, "wal", "", "")
	cmd.Flags().StringVarP(&jobs, "jobs", "j", "", "")
	cmd.Flags().StringVar(&how, "progress", "auto", "")
	cmd.Flags().BoolVar(&asJSON, "json", false, "")
	return cmd
}

// describeVerification says what was proven and what is wrong, the verdict last.
func describeVerification(v *basebackup.Verification) string {
	var b strings.Builder
	line := func(label, format string, args ...any) {
		fmt.Fprintf(&b, "%-10s"+format+"\n", append([]any{label}, args...)...)
	}
	if v.SystemID != 0 {
		line("system", "%d", v.SystemID)
	}
	if v.Started {
		line("note", "A server was started here since the backup was made, or it has no manifest:")
		line("", "only pg_control and the pages can be checked.")
	}
	switch {
	case v.Quick && !v.Started:
		line("files", "%d, by name and size", v.Files)
	case v.Files > 0:
		line("files", "%d, %s", v.Files, formatSize(v.Bytes))
	}
	if v.Pages > 0 {
		how := "with checksums"
		if !v.Checksums {
			how = "their headers: the server has no checksums"
		}
		line("pages", "%d, %s", v.Pages, how)
	}
	if v.Torn > 0 {
		line("", "%d of them changed while they were copied; recovery brings them anew", v.Torn)
	}
	for _, r := range v.WAL {
		line("wal", "%s to %s on timeline %s", r.From, r.To, r.TLI)
	}
	if v.WALAbsent {
		line("note", "None of this WAL is in pg_wal: an archive must have it (rideau wal check).")
	}
	for _, p := range v.Problems {
		if p.Block != nil {
			line("damaged", "%s block %d: %s", p.Path, *p.Block, p.Detail)
			continue
		}
		line(problemLabel(p.Kind), "%s %s", p.Path, p.Detail)
	}
	if v.More > 0 {
		line("damaged", "and %s more", count(uint64(v.More), "page"))
	}
	b.WriteString(verificationVerdict(v) + "\n")
	return b.String()
}

func problemLabel(kind string) string {
	if kind == "missing" || kind == "extra" {
		return kind
	}
	return "wrong"
}

func verificationVerdict(v *basebackup.Verification) string {
	switch n := uint64(len(v.Problems)) + uint64(v.More); {
	case n > 0:
		return fmt.Sprintf("Not sound: %s.", count(n, "problem"))
	case v.Started && v.Quick:
		return "pg_control is sound. Nothing else was looked at."
	case v.Started:
		return "Sound: pg_control and all pages."
	case v.Quick:
		return "Nothing is missing. Without --quick the content is verified too."
	case v.WALAbsent:
		return "Sound, but for the WAL, which is elsewhere."
	}
	return "Sound: every file, every page, every WAL record from start to stop."
}
