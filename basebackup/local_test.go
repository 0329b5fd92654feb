package basebackup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"rideau/basebackup/control"
	"rideau/internal/durable"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/wal"
)

func TestInspectWhatIsNoCluster(t *testing.T) {
	for _, tt := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"absent", nil, "empty"},
		{"empty", map[string]string{}, "empty"},
		{"locked by us, on a file system of its own", map[string]string{durable.LockName: "1", "lost+found/": ""}, "empty"},
		{"a crash left temporary files", map[string]string{".state.json.1.tmp": "", removedState + "/journal": ""}, "empty"},
		{"half a state", map[string]string{stateDir + "/journal": ""}, "empty"},
		{"a state", map[string]string{stateDir + "/" + stateFile: "{}", "base/1/1": ""}, "interrupted"},
		{"somebody's files", map[string]string{"thesis.tex": "", "photos/cat": ""}, "foreign: thesis.tex"},
		{"a directory of databases, not one", map[string]string{"16/main/PG_VERSION": "16\n"}, "foreign: 16"},
		{"no pg_control", map[string]string{"PG_VERSION": "16\n", "base/1/1": ""}, "foreign: no global/pg_control"},
		{"a pg_control of zeros", map[string]string{"PG_VERSION": "16\n", "global/pg_control": strings.Repeat("\x00", 8192)}, "foreign: version 0"},
		{"a pg_control that never ends", map[string]string{"PG_VERSION": "16\n", "global/pg_control": strings.Repeat("\x00", 8193)}, "larger than 8192 bytes"},
		{"no version at all", map[string]string{"PG_VERSION": "nine\n"}, `foreign: "nine\n"`},
		{"a server runs, whatever else is there", map[string]string{"postmaster.pid": fmt.Sprint(os.Getpid(), "\n/x\n"), stateDir + "/" + stateFile: "{}"}, "running"},
		{"a server that died", map[string]string{"postmaster.pid": "999999999\n"}, "foreign: postmaster.pid"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "dir")
			if tt.files != nil {
				must(t, os.Mkdir(dir, 0o700))
			}
			for name, content := range tt.files {
				path := filepath.Join(dir, name)
				must(t, os.MkdirAll(filepath.Dir(path), 0o700))
				if strings.HasSuffix(name, "/") {
					must(t, os.MkdirAll(path, 0o700))
					continue
				}
				must(t, os.WriteFile(path, []byte(content), 0o600))
			}
			l, err := inspect(dir)
			var running *RunningError
			var foreign *ForeignError
			got := ""
			switch {
			case errors.As(err, &running):
				got = "running"
			case errors.As(err, &foreign):
				got = "foreign: " + strings.Join(foreign.Names, ", ") + err.Error()
			case err != nil:
				got = err.Error()
			default:
				got = string(l.kind)
			}
			kind, what, _ := strings.Cut(tt.want, ": ")
			if !strings.Contains(got, kind) || !strings.Contains(got, what) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

// A backup is one that nobody has started for as long as that is so, and every
// sign that it was started is enough.
func TestInspectBackup(t *testing.T) {
	for _, major := range []int{13, 17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major})
			var running *RunningError
			if _, err := inspect(s.Dir); !errors.As(err, &running) || running.PID != s.PID() {
				t.Errorf("the server that runs: %v", err)
			}
			dir := filepath.Join(pgtest.Dir(t), "backup")
			pgtest.Run(t, major, "pg_basebackup", "-D", dir, "-d", s.Conninfo("user=postgres"), "-X", "fetch", "-c", "fast")
			s.Stop(pgserver.Fast)
			if l := look(t, s.Dir); l.kind != localCluster || l.control.State != control.ShutDown || l.major != major {
				t.Errorf("the server that was stopped: %+v", l)
			}

			l := look(t, dir)
			if l.kind != localComplete {
				t.Fatalf("a new backup is %q: %s", l.kind, l.why)
			}
			init, why := l.standing()
			first, last := ends(l.manifest.WAL)
			if init.Base.Since != first.Start || init.Base.Reach != last.End || init.Base.Since == 0 || !init.Base.Checksums || init.SystemID != l.control.SystemID {
				t.Errorf("it stands at %+v (%s), its manifest has %+v", init, why, l.manifest.WAL)
			}
			for name, change := range map[string]func(string) error{
				"backup_label": os.Remove, "backup_manifest": os.Remove,
				"postmaster.opts": func(p string) error { return os.WriteFile(p, nil, 0o600) },
				"postmaster.pid":  func(p string) error { return os.WriteFile(p, []byte("999999999\n"), 0o600) },
				// As a server that was started leaves it. The checksum stays the same.
				"global/pg_control": func(p string) error {
					b, err := os.ReadFile(p)
					if err != nil {
						return err
					}
					end := 288
					if major == 18 {
						end = 292
					}
					binary.LittleEndian.PutUint64(b[24:], binary.LittleEndian.Uint64(b[24:])+2)
					binary.LittleEndian.PutUint32(b[end:], crc32.Checksum(b[:end], journalCRC))
					return os.WriteFile(p, b, 0o600)
				},
			} {
				changed(t, dir, name, change)
			}
			changed(t, dir, "backup_manifest", func(p string) error {
				b, err := os.ReadFile(p)
				if err == nil {
					err = os.WriteFile(p, append(b[:len(b)/2:len(b)/2], b[len(b)/2+1:]...), 0o600)
				}
				return err
			})
			if l := look(t, dir); l.kind != localComplete {
				t.Fatalf("with all put back the backup is %q: %s", l.kind, l.why)
			}

			b := pgtest.Open(t, pgtest.Options{Major: major, Dir: dir})
			b.Start()
			b.Kill()
			if l := look(t, dir); l.kind != localCluster || l.control.State != control.InProduction {
				t.Errorf("a backup that was started is %q, %s", l.kind, l.control.State)
			}
		})
	}
}

// changed does something to a file of a backup, sees that it is none any more,
// and puts the file back.
func changed(t *testing.T, dir, name string, change func(path string) error) {
	t.Helper()
	path := filepath.Join(dir, name)
	old, readErr := os.ReadFile(path)
	must(t, change(path))
	if l := look(t, dir); l.kind != localCluster || l.why == "" {
		t.Errorf("with another %s the backup is %q", name, l.kind)
	}
	if errors.Is(readErr, fs.ErrNotExist) {
		must(t, os.Remove(path))
		return
	}
	must(t, os.WriteFile(path, old, 0o600))
}

func look(t *testing.T, dir string) *local {
	t.Helper()
	l, err := inspect(dir)
	must(t, err)
	return l
}

// TestStandbyIsKnownSinceRedo is the proof that the page LSN rung is sound for a
// standby that was stopped: pages that the primary has with an older LSN than
// the standby's last redo are the standby's too, however it was churned.
func TestStandbyIsKnownSinceRedo(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major, Settings: map[string]string{"full_page_writes": "on"}})
			s.BenchInit(2)
			s.Exec("CREATE TABLE still AS SELECT generate_series(1, 30000) i") // and never changed again
			standby := s.Standby(pgtest.Options{Name: "s", Settings: map[string]string{"shared_buffers": "1MB"}}, s.Conninfo("user=postgres"))
			standby.Start()
			bench := s.Bench("-T", "3", "-c", "2", "-n")
			for range 3 {
				s.Exec("CREATE TABLE IF NOT EXISTS churn AS SELECT 1 i; TRUNCATE churn; INSERT INTO churn SELECT generate_series(1, 20000)")
				s.Exec("VACUUM churn")
				s.Exec("CHECKPOINT")
				standby.WaitLSN(s.LSN())
				standby.Exec("CHECKPOINT") // a restartpoint
			}
			must(t, bench.Wait())
			standby.WaitLSN(s.LSN())
			s.Exec("UPDATE pgbench_accounts SET abalance = 0 WHERE aid % 7 = 0")
			standby.WaitLSN(s.LSN()) // replayed, and some of it written: its buffers are few
			standby.Stop(pgserver.Fast)
			s.Exec("UPDATE pgbench_accounts SET abalance = 1 WHERE aid % 1000 = 0")
			s.Stop(pgserver.Fast)

			l := look(t, standby.Dir)
			init, why := l.standing()
			if init.Base.Since == 0 || init.Base.Since != l.control.Redo {
				t.Fatalf("the standby stands at %+v: %s", init.Base, why)
			}
			primary := look(t, s.Dir).control
			p, err := choose(init, why, nil, &ladderServer{systemID: primary.SystemID, major: major, catalog: primary.CatalogVersion,
				history: &wal.History{TLI: 1}, checksums: true, start: primary.Redo, reach: primary.Checkpoint})
			if err != nil || p.base.kind != newerPages {
				t.Fatalf("the choice is %v, %v", p, err)
			}
			kept, sent, fresher := comparePages(t, s.Dir, standby.Dir, p.base.since, init.Base.Reach)
			t.Logf("since %s: %d pages kept, %d sent, %d of these newer at the standby than at redo", p.base.since, kept, sent, fresher)
			if kept < 1000 || sent < 100 || fresher == 0 {
				t.Error("the churn was not one that proves anything")
			}
		})
	}
}

var mainForkName = regexp.MustCompile(`^\d+(\.\d+)?$`)

// comparePages sees that every page that would be kept has the server's LSN,
// and that none is fresher than the standby's reach. Content may differ in
// hint bits, which leave it.
func comparePages(t *testing.T, server, here string, since, reach wal.LSN) (kept, sent, fresher int) {
	t.Helper()
	must(t, filepath.WalkDir(filepath.Join(server, "base"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !mainForkName.MatchString(d.Name()) {
			return err
		}
		rel, err := filepath.Rel(server, path)
		must(t, err)
		theirs, err := os.ReadFile(path)
		must(t, err)
		ours, err := os.ReadFile(filepath.Join(here, rel))
		if errors.Is(err, fs.ErrNotExist) {
			return nil // copied whole
		}
		must(t, err)
		for off := 0; off+8192 <= min(len(theirs), len(ours)); off += 8192 {
			there, local := pageLSN(theirs[off:]), pageLSN(ours[off:])
			switch {
			case local > reach:
				t.Errorf("%s block %d has LSN %s, past the standby's minimum recovery point %s", rel, off/8192, local, reach)
			case there >= since || there == 0:
				sent++
				if local >= since {
					fresher++
				}
			case local != there:
				t.Errorf("%s block %d would be kept: it has LSN %s, the server's %s, both should be the same below %s", rel, off/8192, local, there, since)
			default:
				kept++
			}
		}
		return nil
	}))
	return kept, sent, fresher
}

func pageLSN(b []byte) wal.LSN {
	return wal.LSN(binary.LittleEndian.Uint32(b))<<32 | wal.LSN(binary.LittleEndian.Uint32(b[4:]))
}
