package basebackup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/wal"
)

// pgBasebackup makes a backup with PostgreSQL's own tool, of a server with a
// table of some megabytes. It answers where the table's file is in it.
func pgBasebackup(t *testing.T, major int) (dir, table string) {
	t.Helper()
	server := pgtest.Start(t, pgtest.Options{Major: major})
	server.Exec("CREATE TABLE t AS SELECT n, repeat('x', 500) FROM generate_series(1, 5000) n")
	server.Exec("CHECKPOINT")
	table = server.QueryValue("SELECT pg_relation_filepath('t')")
	dir = filepath.Join(pgtest.Dir(t), "backup")
	pgtest.Run(t, major, "pg_basebackup", "-d", server.Conninfo("user=postgres"), "-D", dir, "-c", "fast")
	server.Stop(pgserver.Fast)
	return dir, table
}

func verified(t *testing.T, cfg VerifyConfig) *Verification {
	t.Helper()
	v, err := Verify(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// change puts b into a file of dir, and takes it back with the test.
func change(t *testing.T, dir, name string, at int64, b byte) {
	t.Helper()
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	old := make([]byte, 1)
	if _, err := f.ReadAt(old, at); err != nil {
		t.Fatal(err)
	}
	if old[0] == b {
		b++
	}
	if _, err := f.WriteAt([]byte{b}, at); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.WriteFile(filepath.Join(dir, name), patched(t, dir, name, at, old[0]), 0o600) })
}

func patched(t *testing.T, dir, name string, at int64, b byte) []byte {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Error(err)
	}
	if at < int64(len(text)) {
		text[at] = b
	}
	return text
}

func move(t *testing.T, dir, old, name string) {
	t.Helper()
	if err := os.Rename(filepath.Join(dir, old), filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.Rename(filepath.Join(dir, name), filepath.Join(dir, old)) })
}

// A backup is sound as it was made, and each damage to it is found, at its
// place, and nothing else.
func TestVerifyFindsDamage(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			dir, table := pgBasebackup(t, major)
			v := verified(t, VerifyConfig{Dir: dir})
			if !v.Sound() || v.Started || v.WALAbsent || v.Pages < 300 || !v.Checksums || len(v.WAL) != 1 || v.Torn != 0 {
				t.Fatalf("a fresh backup: %+v", v)
			}
			if v := verified(t, VerifyConfig{Dir: dir, Quick: true}); !v.Sound() || v.Pages != 0 || v.Files < 100 {
				t.Errorf("a fresh backup, quickly: %+v", v)
			}
			size := wal.SegmentSize(16 << 20)
			segment := "pg_wal/" + size.FileName(v.WAL[0].TLI, v.WAL[0].From)
			tests := []struct {
				name   string
				damage func(t *testing.T)
				quick  bool // it is found quickly too
				path   string
				kinds  []string
				block  int
			}{
				{"a byte of a page, which two proofs find", func(t *testing.T) { change(t, dir, table, 3*8192+5000, 'y') }, false,
					table, []string{"checksum", "page"}, 3},
				{"a byte of a file without pages", func(t *testing.T) { change(t, dir, "pg_hba.conf", 1, 'y') }, false,
					"pg_hba.conf", []string{"checksum"}, 0},
				{"a file is away", func(t *testing.T) { move(t, dir, table, "../away") }, true, table, []string{"missing"}, 0},
				{"a file more", func(t *testing.T) {
					if err := os.WriteFile(filepath.Join(dir, "base/new"), nil, 0o600); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { os.Remove(filepath.Join(dir, "base/new")) })
				}, false, "base/new", []string{"extra"}, 0},
				{"no label", func(t *testing.T) { move(t, dir, "backup_label", "../label") }, true, "backup_label", []string{"label", "missing"}, 0},
				{"a byte of the manifest", func(t *testing.T) { change(t, dir, "backup_manifest", 200, '7') }, true,
					"backup_manifest", []string{"manifest"}, 0},
				{"a byte of pg_control", func(t *testing.T) { change(t, dir, "global/pg_control", 100, 7) }, true,
					"global/pg_control", []string{"control", "checksum"}, 0},
				{"a byte of the WAL that is needed", func(t *testing.T) { change(t, dir, segment, int64(size.Offset(v.WAL[0].From))+20, 0xFF) }, true,
					segment, []string{"wal"}, 0},
				{"backup not finished", func(t *testing.T) {
					if err := os.Mkdir(filepath.Join(dir, stateDir), 0o700); err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { os.Remove(filepath.Join(dir, stateDir)) })
				}, true, stateDir, []string{"unfinished"}, 0},
			}
			for _, tt := range tests {
				t.Run(tt.name, func(t *testing.T) {
					tt.damage(t)
					v := verified(t, VerifyConfig{Dir: dir})
					var kinds []string
					for _, p := range v.Problems {
						if p.Path != tt.path {
							t.Errorf("found %+v as well", p)
						}
						kinds = append(kinds, p.Kind)
						if p.Kind == "page" && *p.Block != uint32(tt.block) {
							t.Errorf("block %d is called damaged, and it is %d", *p.Block, tt.block)
						}
					}
					if len(kinds) != len(tt.kinds) {
						t.Errorf("found %q, want %q: %+v", kinds, tt.kinds, v.Problems)
					}
					for _, want := range tt.kinds {
						if !strings.Contains(strings.Join(kinds, " "), want) {
							t.Errorf("found %q, want %q", kinds, tt.kinds)
						}
					}
					if quick := verified(t, VerifyConfig{Dir: dir, Quick: true}); quick.Sound() == tt.quick {
						t.Errorf("quickly, sound is %t: %+v", quick.Sound(), quick.Problems)
					}
				})
			}
			if v := verified(t, VerifyConfig{Dir: dir}); !v.Sound() {
				t.Errorf("the test did not clean up: %+v", v.Problems)
			}

			// Its WAL is elsewhere: only who knows that can say that it is no fault.
			move(t, dir, segment, "../segment")
			if v := verified(t, VerifyConfig{Dir: dir, NoWAL: true}); !v.Sound() || !v.WALAbsent {
				t.Errorf("without WAL, on purpose: %+v", v)
			}
			if v := verified(t, VerifyConfig{Dir: dir}); v.Sound() || !v.WALAbsent {
				t.Errorf("without WAL: %+v", v)
			}
		})
	}
}

// Where a server has run, only pages can be looked at; where it runs, nothing.
func TestVerifyAfterStart(t *testing.T) {
	t.Parallel()
	dir, table := pgBasebackup(t, 15)
	server := pgtest.Open(t, pgtest.Options{Major: 15, Dir: dir})
	server.Start()
	_, err := Verify(t.Context(), VerifyConfig{Dir: dir})
	if running, ok := errors.AsType[*RunningError](err); !ok || running.Dir != dir {
		t.Errorf("while a server runs: %v", err)
	}
	server.Exec("UPDATE t SET n = n + 1")
	server.Stop(pgserver.Fast)
	v := verified(t, VerifyConfig{Dir: dir})
	if !v.Started || !v.Sound() || v.Pages < 300 || v.Torn != 0 {
		t.Errorf("after a clean stop: %+v", v)
	}
	change(t, dir, table, 8192+5000, 'y')
	v = verified(t, VerifyConfig{Dir: dir})
	if len(v.Problems) != 1 || v.Problems[0].Path != table || *v.Problems[0].Block != 1 {
		t.Errorf("a damaged page: %+v", v.Problems)
	}
}

func TestVerifyNothing(t *testing.T) {
	if _, err := Verify(t.Context(), VerifyConfig{Dir: filepath.Join(t.TempDir(), "none")}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	if _, err := Verify(t.Context(), VerifyConfig{Dir: t.TempDir()}); err == nil {
		t.Error("an empty directory was verified")
	}
}
