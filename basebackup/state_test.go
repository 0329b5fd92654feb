package basebackup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"
)

var testInit = stateInit{SystemID: 1<<63 + 5, Major: 17, CatalogVersion: 202406281, ExtentSize: 16 << 20,
	Base: base{Kind: localComplete, Since: 0x2000028, SinceTLI: 1, Reach: 0x2000128, ReachTLI: 1, Checksums: true}}

func TestStateSurvives(t *testing.T) {
	dir := t.TempDir()
	if _, err := openState(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Fatalf("without a state: %v", err)
	}
	s, err := createState(dir, testInit, map[string][]byte{oldControl: []byte("control")})
	if err != nil {
		t.Fatal(err)
	}
	first := attempt{Start: 0x3000028, TLI: 1, Time: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), Server: "x", Checksums: true}
	must(t, s.addAttempt(first))
	must(t, s.record([]extentRecord{{"base/5/1", 0, 100, 0x3000028}, {"base/5/1", 2, 8192, 0x3000028}, {"a \"b\nc", 0, 1, 0x3000028}}))
	must(t, s.forget("base/5/2", "base/5/3"))
	must(t, s.record([]extentRecord{{"base/5/3", 0, 5, 0x3000028}}))
	must(t, s.Close())

	if _, err := createState(dir, testInit, nil); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a state was replaced by a new one: %v", err)
	}
	s, err = openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	if s.init.Base != testInit.Base || s.init.SystemID != testInit.SystemID || len(s.attempts()) != 1 || s.attempts()[0] != first {
		t.Errorf("got %+v, %+v", s.init, s.attempts())
	}
	for _, tt := range []struct {
		path   string
		extent int
		length int64
		ok     bool
		void   bool
	}{
		{"base/5/1", 0, 100, true, false},
		{"base/5/1", 1, 0, false, false},
		{"base/5/1", 2, 8192, true, false},
		{"base/5/1", 3, 0, false, false},
		{"base/5/2", 0, 0, false, true},
		{"base/5/3", 0, 5, true, true}, // its extents are known again, the base's are not
		{"a \"b\nc", 0, 1, true, false},
		{"never", 0, 0, false, false},
	} {
		since, length, ok := s.known(tt.path, tt.extent)
		if ok != tt.ok || length != tt.length || ok && since != 0x3000028 || s.void(tt.path) != tt.void {
			t.Errorf("%q %d: got %s, %d, %v, void %v", tt.path, tt.extent, since, length, ok, s.void(tt.path))
		}
	}
	if b, err := s.saved(oldControl); err != nil || string(b) != "control" {
		t.Errorf("the old control file: %q, %v", b, err)
	}
	if b, err := s.saved(oldManifest); err != nil || b != nil {
		t.Errorf("the manifest that was not there: %q, %v", b, err)
	}
	must(t, s.remove())
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("after the end there is still %v", left)
	}
	if s, err := createState(dir, testInit, nil); err != nil {
		t.Error(err)
	} else {
		must(t, s.Close())
	}
}

// After a power cut at any byte of an append the journal says what it said
// before, or more of what was being said, and goes on from there.
func TestJournalTornAnywhere(t *testing.T) {
	dir := t.TempDir()
	s, err := createState(dir, testInit, nil)
	if err != nil {
		t.Fatal(err)
	}
	steps := []func() error{
		func() error {
			return s.record([]extentRecord{{"base/1/1", 0, 8192, 0x100}, {"base/1/2", 0, 8192, 0x100}})
		},
		func() error { return s.forget("base/1/1", "base/1/3") },
		func() error {
			return s.record([]extentRecord{{"base/1/1", 0, 999, 0x200}, {"base/1/1", 1, 9, 0x200}, {"x\ny", 0, 1, 0x200}})
		},
	}
	path := filepath.Join(dir, stateDir, journalFile)
	synced := []int64{0} // where each step ended
	for _, step := range steps {
		must(t, step())
		info, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		synced = append(synced, info.Size())
	}
	must(t, s.Close())
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	said := make([]map[string]string, len(whole)+1) // by how many bytes are there
	for n := range said {
		said[n] = reopen(t, dir, whole[:n])
		if n > 0 && whole[n-1] != '\n' && !maps.Equal(said[n], said[n-1]) {
			t.Fatalf("cut after %d bytes, in the middle of a line, it says %v", n, said[n])
		}
	}
	if len(said[len(whole)]) != 6 {
		t.Errorf("the whole journal says %v", said[len(whole)])
	}
	for _, garbage := range [][]byte{make([]byte, 100), []byte("\n\n"), []byte("00000000 + 0 1 0/1 x\n"), append(make([]byte, 20), whole...)} {
		for _, n := range synced {
			if got := reopen(t, dir, append(whole[:n:n], garbage...)); !maps.Equal(got, said[n]) {
				t.Errorf("with %q after %d bytes it says %v, want %v", garbage[:2], n, got, said[n])
			}
		}
	}
}

// reopen opens a journal of these bytes, answers what it says, and sees that
// what is appended is there when it is opened again.
func reopen(t *testing.T, dir string, journal []byte) map[string]string {
	t.Helper()
	must(t, os.WriteFile(filepath.Join(dir, stateDir, journalFile), journal, 0o600))
	s, err := openState(dir)
	if err != nil {
		t.Fatal(err)
	}
	says := allOf(s)
	must(t, s.record([]extentRecord{{"after", 0, 7, 0x300}}))
	must(t, s.Close())
	if s, err = openState(dir); err != nil {
		t.Fatal(err)
	}
	again := allOf(s)
	if again["after 0"] != "0/300 7" {
		t.Fatalf("what was appended to %q is lost: %v", journal, again)
	}
	delete(again, "after 0")
	if !maps.Equal(again, says) {
		t.Fatalf("an append changed what %q says from %v to %v", journal, says, again)
	}
	must(t, s.Close())
	return says
}

func allOf(s *state) map[string]string {
	says := map[string]string{}
	for path, f := range s.files {
		if f.void {
			says[path] = "void"
		}
		for i := range f.extents {
			if since, length, ok := s.known(path, i); ok {
				says[fmt.Sprint(path, " ", i)] = fmt.Sprint(since, " ", length)
			}
		}
	}
	return says
}

// A crash while the state is made or removed leaves either a state that is whole
// or none.
func TestStateHalfMade(t *testing.T) {
	dir := t.TempDir()
	must(t, os.MkdirAll(filepath.Join(dir, stateDir), 0o700))
	must(t, os.WriteFile(filepath.Join(dir, stateDir, journalFile), nil, 0o600))
	must(t, os.MkdirAll(filepath.Join(dir, removedState), 0o700))
	if _, err := openState(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a state: %v", err)
	}
	s, err := createState(dir, testInit, nil)
	if err != nil {
		t.Fatal(err)
	}
	must(t, s.Close())
	must(t, os.WriteFile(filepath.Join(dir, stateDir, stateFile), []byte(`{"version": 99}`), 0o600))
	var damaged *stateError
	if _, err := openState(dir); !errors.As(err, &damaged) {
		t.Errorf("a version of the future: %v", err)
	}
	must(t, os.Remove(filepath.Join(dir, stateDir, journalFile)))
	must(t, os.WriteFile(filepath.Join(dir, stateDir, stateFile), []byte(`{"version": 1, "extent_size": 1}`), 0o600))
	if _, err := openState(dir); !errors.As(err, &damaged) {
		t.Errorf("no journal: %v", err)
	}
}

func TestStateMemory(t *testing.T) {
	dir := t.TempDir()
	s, err := createState(dir, testInit, nil)
	if err != nil {
		t.Fatal(err)
	}
	const files = 50_000
	var batch []extentRecord
	for i := range files {
		batch = append(batch, extentRecord{fmt.Sprintf("pg_tblspc/16390/PG_17/5/%d", 100000+i), 0, 8192, 0x3000028})
	}
	must(t, s.record(batch))
	must(t, s.Close())
	batch = nil
	var before, after runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&before)
	s = nil
	runtime.GC()
	runtime.ReadMemStats(&before)
	if s, err = openState(dir); err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d files: %d MB", files, used>>20)
	if used > 10<<20 {
		t.Errorf("the state of %d files takes %d MB", files, used>>20)
	}
	must(t, s.Close())
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
