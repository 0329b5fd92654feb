package manifest_test

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"rideau/basebackup/manifest"
	"rideau/internal/pgtest"
)

// majors have pg_basebackup and pg_verifybackup of their own, as 15 and 17 have;
// 17 changed the format.
var majors = []int{13, 18}

// backup takes a backup of s with pg_basebackup.
func backup(t *testing.T, s *pgtest.Server, args ...string) (dir string) {
	t.Helper()
	dir = filepath.Join(pgtest.Dir(t), "backup")
	args = append([]string{"-D", dir, "-c", "fast", "-d", s.Conninfo("")}, args...)
	pgtest.Run(t, s.Major, "pg_basebackup", args...)
	return dir
}

func parseFile(t *testing.T, dir string) (m *manifest.Manifest, text []byte) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(dir, manifest.Name))
	if err != nil {
		t.Fatal(err)
	}
	if m, err = manifest.Parse(bytes.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	return m, text
}

// TestRealManifests reads what servers wrote, writes it again to the same bytes,
// has pg_verifybackup accept a manifest that is all ours, and does not disagree
// with it about any damage.
func TestRealManifests(t *testing.T) {
	for _, major := range majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major})
			space := pgtest.Dir(t)
			s.Exec(fmt.Sprintf("CREATE TABLESPACE far LOCATION '%s'", space))
			s.Exec("CREATE TABLE near AS SELECT i, md5(i::text) FROM generate_series(1, 20000) i")
			s.Exec("CREATE TABLE distant TABLESPACE far AS SELECT * FROM near")
			for _, name := range []string{"caf\xe9", `quote " and \ and é`, "control \x01\n"} {
				if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(name), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			sysid := s.QueryValue("SELECT system_identifier FROM pg_control_system()")
			for _, algorithm := range []string{"NONE", "CRC32C", "SHA224", "SHA256", "SHA384", "SHA512"} {
				dir := backup(t, s, "--manifest-checksums", algorithm, "-T", space+"="+filepath.Join(pgtest.Dir(t), "far"))
				m, text := parseFile(t, dir)
				var again bytes.Buffer
				w := manifest.NewWriter(&again, m.Version, m.SystemID)
				for _, f := range m.Files {
					if err := w.Add(f); err != nil {
						t.Fatal(err)
					}
				}
				if err := w.Finish(m.WAL); err != nil {
					t.Fatal(err)
				}
				if !bytes.Equal(again.Bytes(), text) {
					t.Errorf("%s: what was read is not written as it was:\n%s", algorithm, firstDifference(again.String(), string(text)))
				}
				if want := manifest.VersionFor(major); m.Version != want || want == 2 && fmt.Sprint(m.SystemID) != sysid || want == 1 && m.SystemID != 0 {
					t.Errorf("version %d, system identifier %d; want %d, %s", m.Version, m.SystemID, want, sysid)
				}
				if len(m.WAL) != 1 || len(m.Files) < 900 || !slices.ContainsFunc(m.Files, func(f manifest.File) bool { return f.Path == "caf\xe9" }) ||
					!slices.ContainsFunc(m.Files, func(f manifest.File) bool { return f.Algorithm == algorithm && strings.HasPrefix(f.Path, "pg_tblspc/") }) {
					t.Errorf("%s: there are %d files and %d WAL ranges, or some are not there", algorithm, len(m.Files), len(m.WAL))
				}
				if algorithm == "CRC32C" {
					rewrite(t, s, dir, m)
				}
				compare(t, s, dir, "untouched, "+algorithm)
				if algorithm == "CRC32C" || algorithm == "SHA256" {
					damage(t, s, dir, m)
				}
			}
			forced, _ := parseFile(t, backup(t, s, "--manifest-force-encode", "-T", space+"="+filepath.Join(pgtest.Dir(t), "far")))
			if !slices.ContainsFunc(forced.Files, func(f manifest.File) bool { return f.Path == "global/pg_control" }) {
				t.Error("encoded paths are not read")
			}
		})
	}
}

func firstDifference(got, want string) string {
	g, w := strings.SplitAfter(got, "\n"), strings.SplitAfter(want, "\n")
	for i := range min(len(g), len(w)) {
		if g[i] != w[i] {
			return fmt.Sprintf("line %d is %swant %s", i+1, g[i], w[i])
		}
	}
	return fmt.Sprintf("%d lines, want %d", len(g), len(w))
}

// rewrite replaces a backup's manifest by one whose files, sizes and checksums
// are what is found on disk, the CRC of each file put together from pieces, and
// some without.
func rewrite(t *testing.T, s *pgtest.Server, dir string, m *manifest.Manifest) {
	t.Helper()
	out, err := os.Create(filepath.Join(dir, manifest.Name))
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	w := manifest.NewWriter(out, m.Version, m.SystemID)
	add := func(path string) {
		b, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		f := manifest.File{Path: path, Size: int64(len(b)), ModTime: time.Now()}
		if len(b)%3 != 0 || strings.Contains(path, "pg_tblspc") {
			f.Algorithm, f.Checksum = manifest.CRC32C, manifest.CRCBytes(crcOfPieces(b))
		}
		if err := w.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range m.Files {
		add(f.Path)
	}
	if err := w.Finish(m.WAL); err != nil {
		t.Fatal(err)
	}
	// This once with the WAL, so that the tool follows the ranges too.
	pgtest.Run(t, s.Major, "pg_verifybackup", dir)
}

// damage does all kinds of damage to a backup, one after the other, and undoes it.
func damage(t *testing.T, s *pgtest.Server, dir string, m *manifest.Manifest) {
	t.Helper()
	bySize := slices.SortedFunc(slices.Values(m.Files), func(a, b manifest.File) int { return cmp.Compare(b.Size, a.Size) })
	largest := func(below string) string {
		return bySize[slices.IndexFunc(bySize, func(f manifest.File) bool { return strings.HasPrefix(f.Path, below) })].Path
	}
	large, distant := largest("base/"), largest("pg_tblspc/")
	full := func(path string) string { return filepath.Join(dir, path) }
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	write := func(path, text string) func() {
		must(os.WriteFile(full(path), []byte(text), 0o644))
		return func() { must(os.RemoveAll(full(path))) }
	}
	change := func(path string, f func(b []byte) []byte) func() {
		old, err := os.ReadFile(full(path))
		must(err)
		must(os.WriteFile(full(path), f(bytes.Clone(old)), 0o644))
		return func() { must(os.WriteFile(full(path), old, 0o644)) }
	}
	flip := func(at int) func(b []byte) []byte {
		return func(b []byte) []byte { b[at] ^= 4; return b }
	}
	away := func(path string) func() {
		must(os.Rename(full(path), dir+".away"))
		return func() { must(os.RemoveAll(full(path))); must(os.Rename(dir+".away", full(path))) }
	}
	for _, d := range []struct {
		name string
		do   func() (undo func())
		want int // problems; -1: the manifest is no good
	}{
		{"a file is missing", func() func() { return away(large) }, 1},
		{"a file of a tablespace is missing", func() func() { return away(distant) }, 1},
		{"a directory is missing", func() func() { return away("pg_xact") }, 1},
		{"an extra file", func() func() { return write("base/extra", "") }, 1},
		{"an extra file whose name begins as what is ignored", func() func() { return write("pg_wal2", "x") }, 1},
		{"a manifest elsewhere", func() func() { return write("base/backup_manifest", "x") }, 1},
		{"what was made to start it", func() func() { return write("standby.signal", "") }, 0},
		{"more settings", func() func() { return write("postgresql.auto.conf", "x = 1") }, 0},
		{"more WAL", func() func() { return write("pg_wal/x", "") }, 0},
		{"cut off", func() func() { return change(large, func(b []byte) []byte { return b[:len(b)-8192] }) }, 1},
		{"longer", func() func() { return change(distant, func(b []byte) []byte { return append(b, 0) }) }, 1},
		{"first byte flipped", func() func() { return change(large, flip(0)) }, 1},
		{"a byte of the second piece flipped", func() func() { return change(large, flip(300_000)) }, 1},
		{"a byte in a tablespace flipped", func() func() { return change(distant, flip(12345)) }, 1},
		{"a link to nowhere", func() func() {
			must(os.Symlink("nowhere", full("base/link")))
			return func() { must(os.Remove(full("base/link"))) }
		}, 1},
		{"a file that links to nowhere", func() func() {
			undo := away(large)
			must(os.Symlink("nowhere", full(large)))
			return undo
		}, 1},
		{"a file that is linked", func() func() {
			undo := away(large)
			must(os.Symlink(dir+".away", full(large)))
			return undo
		}, 0},
		{"a tablespace that links to nowhere", func() func() {
			link := filepath.Dir(filepath.Dir(filepath.Dir(distant)))
			undo := away(link)
			must(os.Symlink("nowhere", full(link)))
			return undo
		}, 1},
		{"all kinds at once", func() func() {
			undo := []func(){away("global/pg_filenode.map"), write("extra", ""), change(large, flip(9)), change(distant, func(b []byte) []byte { return nil })}
			return func() {
				for _, u := range undo {
					u()
				}
			}
		}, 4},
		{"the manifest has a byte flipped", func() func() { return change(manifest.Name, flip(1000)) }, -1},
		{"the manifest is cut off", func() func() {
			return change(manifest.Name, func(b []byte) []byte { return b[:bytes.LastIndexByte(b[:5000], '\n')+1] })
		}, -1},
		{"the manifest is empty", func() func() { return change(manifest.Name, func([]byte) []byte { return nil }) }, -1},
		{"the manifest is missing", func() func() { return away(manifest.Name) }, -1},
	} {
		old, err := os.ReadFile(full("postgresql.auto.conf"))
		must(err)
		undo := d.do()
		report, err := compare(t, s, dir, d.name)
		switch {
		case d.want < 0 && err == nil:
			t.Errorf("%s: it is verified all the same", d.name)
		case d.want >= 0 && err == nil && len(report.Problems) != d.want:
			t.Errorf("%s: %v, want %d", d.name, report.Problems, d.want)
		}
		undo()
		must(os.WriteFile(full("postgresql.auto.conf"), old, 0o644))
	}
	compare(t, s, dir, "all damage undone")
}

// complaints are pg_verifybackup's, and what we call them. The path is in one of
// the groups.
var complaints = []struct {
	text *regexp.Regexp
	kind manifest.Kind
}{
	{regexp.MustCompile(`"(.*)" is present on disk but not in the manifest`), manifest.Extra},
	{regexp.MustCompile(`"(.*)" is present in the manifest but not on disk`), manifest.Missing},
	{regexp.MustCompile(`"(.*)" has size \d+ on disk but size \d+ in the manifest`), manifest.Size},
	{regexp.MustCompile(`checksum mismatch for file "(.*)"`), manifest.Mismatch},
	{regexp.MustCompile(`"(.*)" is not a regular file or directory`), manifest.Irregular},
	{regexp.MustCompile(`could not stat file or directory "([^"]*)"`), manifest.Unreadable},
}

// compare runs Verify and pg_verifybackup on a backup, which must say the same.
func compare(t *testing.T, s *pgtest.Server, dir, name string) (*manifest.Report, error) {
	t.Helper()
	report, err := manifest.Verify(context.Background(), dir, manifest.Options{})
	out, toolErr := pgtest.Command(t, s.Major, "pg_verifybackup", "-n", dir).CombinedOutput()
	if err != nil {
		_, isParse := errors.AsType[*manifest.ParseError](err)
		if toolErr == nil || !isParse && !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v, while pg_verifybackup says %s", name, err, out)
		}
		return nil, err
	}
	var got, want []string
	for _, p := range report.Problems {
		got = append(got, fmt.Sprint(p.Path, " ", p.Kind))
	}
	for line := range strings.Lines(string(out)) {
		for _, c := range complaints {
			if m := c.text.FindStringSubmatch(line); m != nil {
				want = append(want, fmt.Sprint(m[1], " ", c.kind))
			}
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) || (len(got) == 0) != (toolErr == nil) {
		t.Errorf("%s: %v\nwhile pg_verifybackup says %s", name, report.Problems, out)
	}
	return report, nil
}

// TestVerify is about what pg_verifybackup does not have.
func TestVerify(t *testing.T) {
	dir := t.TempDir()
	sizes := map[string]int{"empty": 0, "small": 100, "sub/exact": 256 << 10, "sub/large": 3<<20 + 8192 + 5, "sub/unsummed": 70000}
	content := map[string][]byte{}
	m := &manifest.Manifest{Version: 1}
	total := 0
	for name, size := range sizes {
		b := make([]byte, size)
		for i := range b {
			b[i] = byte(i * i >> 3)
		}
		content[name] = b
		total += size
		if err := os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), b, 0o644); err != nil {
			t.Fatal(err)
		}
		f := manifest.File{Path: name, Size: int64(size), ModTime: someTime, Algorithm: manifest.CRC32C, Checksum: manifest.CRCBytes(crcOfPieces(b))}
		if name == "sub/unsummed" {
			f.Algorithm, f.Checksum = manifest.None, nil
		}
		m.Files = append(m.Files, f)
	}
	if err := os.WriteFile(filepath.Join(dir, manifest.Name), []byte(text(t, m)), 0o644); err != nil {
		t.Fatal(err)
	}

	for _, jobs := range []int{-1, 0, 1, 2, 100} {
		var mu sync.Mutex
		seen := map[string][]byte{}
		var last int64
		report, err := manifest.Verify(t.Context(), dir, manifest.Options{
			Jobs: jobs,
			Progress: func(done, all int64) {
				if done <= last || done > all || all != int64(total) {
					t.Errorf("progress %d of %d after %d, of %d bytes", done, all, last, total)
				}
				last = done
			},
			Block: func(path string, offset int64, b []byte) {
				mu.Lock()
				defer mu.Unlock()
				if offset != int64(len(seen[path])) || offset%8192 != 0 || len(b) == 0 || len(b)%8192 != 0 && int(offset)+len(b) != sizes[path] {
					t.Errorf("%s: %d bytes at %d", path, len(b), offset)
				}
				seen[path] = append(seen[path], b...)
			},
		})
		if err != nil || len(report.Problems) > 0 || report.Files != len(sizes) || report.Bytes != int64(total) || last != int64(total) {
			t.Errorf("%d jobs: %+v, %v, progress up to %d", jobs, report, err, last)
		}
		for name, b := range content {
			if !bytes.Equal(seen[name], b) {
				t.Errorf("%d jobs: Block did not see %s as it is", jobs, name)
			}
		}
	}

	report, err := manifest.Verify(t.Context(), dir, manifest.Options{})
	if err != nil || report.Bytes != int64(total-sizes["sub/unsummed"]) {
		t.Errorf("a file without checksum was read for nobody: %+v, %v", report, err)
	}

	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	_, err = manifest.Verify(ctx, dir, manifest.Options{Progress: func(int64, int64) { cancel(why) }})
	if !errors.Is(err, why) {
		t.Errorf("ended from outside: %v", err)
	}

	// A directory that is in itself ends, at once and with a word about it.
	if err := os.Symlink("..", filepath.Join(dir, "sub", "up")); err != nil {
		t.Fatal(err)
	}
	report, err = manifest.Verify(t.Context(), dir, manifest.Options{})
	if err != nil || len(report.Problems) != 1 || report.Problems[0].Path != "sub/up" || report.Problems[0].Kind != manifest.Irregular {
		t.Errorf("a loop of directories: %+v, %v", report, err)
	}

	if _, err := manifest.Verify(t.Context(), filepath.Join(dir, "none"), manifest.Options{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a directory that does not exist: %v", err)
	}
}
