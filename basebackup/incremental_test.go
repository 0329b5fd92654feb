package basebackup_test

import (
	"fmt"
	"path/filepath"
	"testing"

	"rideau/basebackup"
	"rideau/internal/pgtest"
)

// PostgreSQL's own incremental backups take ours for their base: the manifest
// says what they want to know, and the files are what it says.
func TestBaseOfIncremental(t *testing.T) {
	for _, major := range []int{17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major, Settings: map[string]string{"summarize_wal": "on"}})
			s.BenchInit(1)
			parent := pgtest.Dir(t)
			give(t, s, parent)
			base := filepath.Join(parent, "base")
			take(t, basebackup.Config{Conninfo: backupRole(s), Dir: base})
			give(t, s, base)
			if err := s.Bench("-c", "2", "-t", "100").Wait(); err != nil {
				t.Fatal(err)
			}
			next, whole := filepath.Join(parent, "next"), filepath.Join(parent, "whole")
			pgtest.Run(t, major, "pg_basebackup", "-d", s.Conninfo(""), "-D", next, "-c", "fast", "-i", filepath.Join(base, "backup_manifest"))
			pgtest.Run(t, major, "pg_combinebackup", base, next, "-o", whole)
			verified(t, s, whole)
			c := started(t, s, whole)
			balanced(t, c)
			if got, want := c.QueryValue("SELECT count(*) FROM pgbench_history"), "200"; got != want {
				t.Errorf("%s rows of history, want %s", got, want)
			}
		})
	}
}
