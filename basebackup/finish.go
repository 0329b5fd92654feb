package basebackup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"rideau/basebackup/control"
	"rideau/internal/durable"
)

// ownFiles are those in DIR that the server's listing does not have, and that
// are not to be removed: ours, and what the copy gets apart.
var ownFiles = map[string]bool{
	stateDir: true, "pg_wal": true, "lost+found": true, "backup_manifest": true,
}

// extra lists what is in DIR and should not be: files that the server no longer
// has. keep are directories that were not listed, and whose content here is
// nobody's business. Deepest come first.
func extra(dir string, l *listing, versionDir string, keep []string) (paths []string, err error) {
	known := make(map[string]struct{}, len(l.files)+len(l.dirs))
	for _, f := range l.files {
		known[f.path] = struct{}{}
	}
	for _, d := range l.dirs {
		known[d] = struct{}{}
	}
	known["global/pg_control"] = struct{}{}
	for _, d := range keep {
		known[d] = struct{}{}
	}
	var walk func(at string) error
	walk = func(at string) error {
		entries, err := os.ReadDir(filepath.Join(dir, filepath.FromSlash(at)))
		if err != nil {
			return err
		}
		for _, e := range entries {
			p := e.Name()
			if at != "" {
				p = at + "/" + p
			} else if ownFiles[p] {
				continue
			}
			if path.Dir(at) == "pg_tblspc" && e.Name() != versionDir {
				continue // another cluster's, who shares the location
			}
			_, ok := known[p]
			isDir := e.IsDir()
			if e.Type()&fs.ModeSymlink != 0 && at == "pg_tblspc" && ok {
				isDir = true
			}
			switch {
			case slices.Contains(keep, p):
			case isDir:
				if err := walk(p); err != nil {
					return err
				}
				if !ok {
					paths = append(paths, p)
				}
			case !ok:
				paths = append(paths, p)
			}
		}
		return nil
	}
	err = walk("")
	return paths, err
}

// remove removes files and empty directories of DIR. What is in pg_wal is
// walsave's.
func remove(dir string, paths []string) error {
	for _, p := range paths {
		if err := os.Remove(filepath.Join(dir, filepath.FromSlash(p))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}

// readControl reads the server's control file. It is written in place, so that
// a read may catch half of it; such a one is read again.
func readControl(ctx context.Context, read func(context.Context) ([]byte, error)) ([]byte, *control.Control, error) {
	const tries = 50
	for i := 0; ; i++ {
		b, err := read(ctx)
		if err != nil {
			return nil, nil, err
		}
		parsed, err := control.Parse(b)
		if err == nil {
			return b, parsed, nil
		}
		var torn *control.CRCError
		if !errors.As(err, &torn) || i == tries {
			return nil, nil, err
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return nil, nil, err
		}
	}
}

// notCopied are settings that say where this server's files are, or that would
// harm a copy beside it.
var notCopied = []string{"config_file", "data_directory", "hba_file", "ident_file", "external_pid_file",
	"archive_command", "archive_library", "archive_cleanup_command", "recovery_end_command", "restore_command",
	"primary_conninfo", "primary_slot_name", "promote_trigger_file", "recovery_target", "recovery_target_action",
	"recovery_target_inclusive", "recovery_target_lsn", "recovery_target_name", "recovery_target_time",
	"recovery_target_timeline", "recovery_target_xid", "include", "include_dir", "include_if_exists"}

// outsideConfig makes a postgresql.conf of the settings that the server has from
// files which are not in its data directory, as Debian's are not.
func outsideConfig(ctx context.Context, s *session) (string, error) {
	rows, err := s.rows(ctx, `SELECT name, current_setting(name) FROM pg_settings
WHERE source = 'configuration file' OR name IN ('max_connections', 'max_worker_processes', 'max_wal_senders', 'max_prepared_transactions', 'max_locks_per_transaction')
ORDER BY name`)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString("# The server's configuration files are not in its data directory, and were not\n" +
		"# copied. These are the settings it had, as far as the role of the backup sees them.\n")
	for _, r := range rows {
		if slices.Contains(notCopied, r[0]) {
			continue
		}
		fmt.Fprintf(&b, "%s = %s\n", r[0], quoteSetting(r[1]))
	}
	return b.String(), nil
}

// outsideHBA lets the owner of the directory in, and nobody else.
const outsideHBA = `# The server's pg_hba.conf is not in its data directory, and was not copied.
# Only the operating system's user of the same name gets in:
local all all peer
`

// quoteSetting quotes a value for postgresql.conf.
func quoteSetting(s string) string {
	return "'" + strings.NewReplacer("'", "''", `\`, `\\`).Replace(s) + "'"
}

// standbySettings are appended to postgresql.auto.conf.
func standbySettings(conninfo, slot string) string {
	text := "primary_conninfo = " + quoteSetting(conninfo) + "\n"
	if slot != "" {
		text += "primary_slot_name = " + quoteSetting(slot) + "\n"
	}
	return text
}

// appendSettings adds lines to DIR's postgresql.auto.conf, in place of those of
// the same settings.
func appendSettings(dir, text string) error {
	name := filepath.Join(dir, "postgresql.auto.conf")
	old, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var b strings.Builder
	for line := range strings.Lines(string(old)) {
		setting, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch strings.TrimSpace(setting) {
		case "primary_conninfo", "primary_slot_name":
			continue
		}
		b.WriteString(line)
	}
	if b.Len() > 0 && !strings.HasSuffix(b.String(), "\n") {
		b.WriteByte('\n')
	}
	b.WriteString(text)
	// It may hold a password.
	return durable.WriteFile(name, []byte(b.String()), 0o600)
}
