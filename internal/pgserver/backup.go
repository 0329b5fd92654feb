package pgserver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// notInherited are settings of a server that its standbys do not start with:
// what they are for would be wrong, or surprising, in a test.
var notInherited = []string{
	"archive_mode", "archive_command", "archive_library", "restore_command",
	"primary_conninfo", "primary_slot_name", "synchronous_standby_names",
}

func inherited(setting string) bool {
	return !slices.Contains(notInherited, setting) && !strings.HasPrefix(setting, "recovery_")
}

// Standby makes a standby of s, which must be running and may be a standby
// itself: a base backup in a data directory of its own, with standby.signal and
// primary_conninfo, not started. It has the settings given to s (except what
// would be wrong for it, see notInherited) and those of o, which win.
//
// The backup holds no WAL: the standby begins to stream at the backup's start,
// which is after any WAL that existed when Standby was called. Whoever is at
// primaryConninfo must have WAL from there on.
func (s *Server) Standby(ctx context.Context, o Options, primaryConninfo string) (*Server, error) {
	if o.Major != 0 && o.Major != s.Major {
		return nil, fmt.Errorf("cannot make a standby of version %d from %s", o.Major, s)
	}
	o.Major = s.Major
	s.mu.Lock()
	settings := maps.Clone(s.settings)
	s.mu.Unlock()
	maps.DeleteFunc(settings, func(k, _ string) bool { return !inherited(k) })
	if settings == nil {
		settings = map[string]string{}
	}
	settings["primary_conninfo"] = primaryConninfo
	maps.Copy(settings, o.Settings)
	o.Settings = settings

	standby, err := prepare(o)
	if err != nil {
		return nil, err
	}
	if entries, err := os.ReadDir(standby.Dir); err == nil && len(entries) > 0 {
		return nil, errors.Join(fmt.Errorf("directory %q is not empty", standby.Dir), standby.Remove())
	}
	standby.ownDir = true
	err = s.backup(ctx, standby)
	if err == nil {
		err = standby.account.writeFile(filepath.Join(standby.Dir, "standby.signal"), "")
	}
	if err == nil {
		err = standby.configure(o)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("could not make a standby of %s: %w", s, err), standby.Remove())
	}
	return standby, nil
}

// backup copies the running server's files to the standby, by the low-level
// backup API: no client program is needed, so it works for every version.
func (s *Server) backup(ctx context.Context, to *Server) error {
	conn, err := s.Connect(ctx)
	if err != nil {
		return err
	}
	// The backup ends with its session, however we leave.
	defer conn.Close(context.WithoutCancel(ctx))

	start := "SELECT pg_backup_start('pgserver', true)"
	stop := "SELECT labelfile FROM pg_backup_stop(false)"
	if s.Major < 15 { // renamed in 15, where the exclusive mode went away
		start = "SELECT pg_start_backup('pgserver', true, false)"
		stop = "SELECT labelfile FROM pg_stop_backup(false, false)"
	}
	if _, err := conn.Exec(ctx, start); err != nil {
		return err
	}
	control := filepath.Join("global", "pg_control")
	err = copyTree(s.Dir, to.Dir, to.account, func(rel string) bool {
		return rel == control || notBackedUp(rel)
	})
	if err != nil {
		return err
	}
	// Last: on a standby its minimum recovery point must cover all that we have
	// copied.
	if err := copyFile(filepath.Join(s.Dir, control), filepath.Join(to.Dir, control), nil); err != nil {
		return err
	}
	if err := to.account.own(filepath.Join(to.Dir, control)); err != nil {
		return err
	}
	var label string
	if err := conn.QueryRow(ctx, stop).Scan(&label); err != nil {
		return err
	}
	if err := to.account.writeFile(filepath.Join(to.Dir, "backup_label"), label); err != nil {
		return err
	}

	return to.account.editAutoConf(to.Dir, inherited)
}

// notBackedUp says what a base backup leaves out, as pg_basebackup does
// (excludeDirContents and excludeFiles in backend/backup/basebackup.c), and all
// WAL. The folders themselves are kept.
func notBackedUp(rel string) bool {
	dir, name := filepath.Split(rel)
	switch filepath.Clean(dir) {
	case "pg_wal":
		return name != "archive_status" && name != "summaries"
	case "pg_wal/archive_status", "pg_wal/summaries",
		"pg_dynshmem", "pg_notify", "pg_replslot", "pg_serial", "pg_snapshots", "pg_stat_tmp", "pg_subtrans":
		return true
	case ".":
		switch name {
		case "postmaster.pid", "postmaster.opts", "postgresql.auto.conf.tmp", "current_logfiles",
			"backup_label", "backup_label.old", "tablespace_map", "tablespace_map.old", "backup_manifest",
			"standby.signal", "recovery.signal", "promote":
			return true
		}
	}
	return strings.HasPrefix(name, "pgsql_tmp") || strings.HasPrefix(name, "pg_internal.init")
}
