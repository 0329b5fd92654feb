package basebackup_test

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"rideau/basebackup"
	"rideau/internal/pgtest"
)

// grants are what a role of backups needs, and nothing else.
func grants(major int, role string) string {
	start, stop := "pg_backup_start(text,boolean)", "pg_backup_stop(boolean)"
	if major < 15 {
		start, stop = "pg_start_backup(text,boolean,boolean)", "pg_stop_backup(boolean,boolean)"
	}
	return fmt.Sprintf(`GRANT EXECUTE ON FUNCTION pg_ls_dir(text,boolean,boolean), pg_stat_file(text,boolean),
pg_read_binary_file(text,bigint,bigint,boolean), %s, %s TO %s`, start, stop, role)
}

// backupRole makes the role, and answers a connection string for it.
func backupRole(s *pgtest.Server) string {
	s.Exec("CREATE ROLE bk LOGIN")
	s.Exec(grants(s.Major, "bk"))
	return asRole(s)
}

func asRole(s *pgtest.Server) string {
	return fmt.Sprintf("host=127.0.0.1 port=%d user=bk dbname=postgres", s.Port)
}

// take makes a backup or fails the test.
func take(t *testing.T, cfg basebackup.Config) *basebackup.Report {
	t.Helper()
	report, err := basebackup.Take(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// verified lets pg_verifybackup judge the backup.
func verified(t *testing.T, s *pgtest.Server, dir string) {
	t.Helper()
	give(t, s, dir)
	args := []string{dir}
	if s.Major == 14 || s.Major == 16 {
		args = append(args, "-n") // pg_waldump of another version does not read this one's WAL
	}
	if out := pgtest.Run(t, s.Major, "pg_verifybackup", args...); !strings.Contains(out, "backup successfully verified") {
		t.Fatalf("pg_verifybackup: %s", out)
	}
}

// give makes dir the server's account's, which the tools run as if we are root.
func give(t *testing.T, s *pgtest.Server, dir string) {
	t.Helper()
	info, err := os.Stat(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	owner := info.Sys().(*syscall.Stat_t)
	err = filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, int(owner.Uid), int(owner.Gid))
	})
	if err != nil {
		t.Fatal(err)
	}
}

// started starts a copy of the backup, so that the backup itself stays one that
// nobody has started.
func started(t *testing.T, s *pgtest.Server, dir string) *pgtest.Server {
	t.Helper()
	own := filepath.Join(pgtest.Dir(t), "started")
	if out, err := exec.Command("cp", "-a", dir, own).CombinedOutput(); err != nil {
		t.Fatalf("cp: %v: %s", err, out)
	}
	c := pgtest.Open(t, pgtest.Options{Major: s.Major, Dir: own})
	c.Start()
	return c
}

// proven is verified, and started, and looked at by the tools that know.
func proven(t *testing.T, s *pgtest.Server, dir string) *pgtest.Server {
	t.Helper()
	verified(t, s, dir)
	c := started(t, s, dir)
	return c
}

// What is compressed on the way arrives as it was.
func TestTakeCompressed(t *testing.T) {
	for major, names := range map[int][]string{13: {"pgcrypto"}, 18: {"auto", "holes"}} {
		for _, name := range names {
			t.Run(fmt.Sprint(major, " ", name), func(t *testing.T) {
				t.Parallel()
				s := pgtest.Start(t, pgtest.Options{Major: major})
				s.BenchInit(2)
				s.Exec("CREATE EXTENSION pgcrypto")
				conninfo := backupRole(s)
				dir := filepath.Join(pgtest.Dir(t), "backup")
				report := take(t, basebackup.Config{Conninfo: conninfo, Dir: dir, Compress: name})
				if name == "pgcrypto" && report.Received > report.Bytes/3 {
					t.Errorf("received %d bytes for %d", report.Received, report.Bytes)
				}
				verified(t, s, dir)
				// The pages that changed are compressed too.
				s.Exec("UPDATE pgbench_accounts SET abalance = 1 WHERE aid <= 20000")
				s.Exec("CHECKPOINT")
				report = take(t, basebackup.Config{Conninfo: conninfo, Dir: dir, Compress: name})
				if report.Method != "page LSN" {
					t.Errorf("refreshed by %q, because %s", report.Method, report.Reason)
				}
				// A tenth of the table, and all that is no main fork.
				if report.Written > report.Bytes*8/10 {
					t.Errorf("wrote %d of %d bytes", report.Written, report.Bytes)
				}
				verified(t, s, dir)
			})
		}
	}
}
