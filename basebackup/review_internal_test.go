package basebackup

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"rideau/basebackup/manifest"
)

// A server is trusted with its own data, and not with the machine that the
// backup is on.
func TestListHostile(t *testing.T) {
	for _, tt := range []struct {
		path string
		why  string // "": it is one that a server has
	}{
		{"base/5/16384", ""},
		{"a..b/..c", ""},
		{"pg_wal", ""},
		{"../evil", "beside DIR"},
		{"..", "above DIR"},
		{"base/../../evil", "beside DIR, the long way"},
		{"base/5/..", "not what it looks like"},
		{"/etc/passwd", "anywhere"},
		{"", "DIR itself"},
		{".", "DIR itself"},
		{"./base/5/1", "a second name of a file"},
		{"base//5/1", "a second name of a file"},
		{"base/5/", "a second name of a directory"},
		{"pg_wal/000000010000000000000001", "ours to save, from the WAL's own source"},
		{"pg_wal/archive_status/000000010000000000000001.ready", "ours to make"},
		{stateDir + "/journal", "our own state"},
		{"lost+found/1", "a file system's"},
		{"log/postgresql.log", "not asked for"},
	} {
		t.Run(tt.path, func(t *testing.T) {
			t.Parallel()
			l, err := list(t.Context(), answering(t, "global/pg_control", tt.path), &facts{major: 18, catalog: 202506291, logDir: "log"}, false)
			switch {
			case tt.why == "" && (err != nil || l.control == nil):
				t.Errorf("a server that has it: %v", err)
			case tt.why != "" && (err == nil || !strings.Contains(err.Error(), "cannot be in its data directory")):
				t.Errorf("it is %s; the error is %v", tt.why, err)
			}
		})
	}
}

// answering is a connection to a server that lists these files, whatever it is
// asked. The messages are those of COPY TO in binary format.
func answering(t *testing.T, paths ...string) *stream {
	t.Helper()
	var out []byte
	message := func(tag byte, body []byte) {
		out = binary.BigEndian.AppendUint32(append(out, tag), uint32(4+len(body)))
		out = append(out, body...)
	}
	message('H', []byte{1, 0, 3, 0, 1, 0, 1, 0, 1})
	message('d', append([]byte("PGCOPY\n\xff\r\n\x00"), make([]byte, 8)...))
	for _, p := range paths {
		row := binary.BigEndian.AppendUint16(nil, 3)
		row = append(binary.BigEndian.AppendUint32(row, uint32(len(p))), p...)
		for _, n := range []uint64{8192, 1700000000} { // its size, its time
			row = binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint32(row, 8), n)
		}
		message('d', row)
	}
	message('d', []byte{0xff, 0xff})
	message('c', nil)
	message('C', []byte("COPY 2\x00"))
	message('Z', []byte{'I'})

	here, there := net.Pipe()
	t.Cleanup(func() { here.Close(); there.Close() })
	go func() {
		buf := make([]byte, 64<<10)
		for asked := false; !asked; { // the statement ends with a zero
			n, err := there.Read(buf)
			if err != nil {
				return
			}
			asked = bytes.HasSuffix(buf[:n], []byte{0})
		}
		there.Write(out)
	}()
	return &stream{server: "hostile", conn: here, r: bufio.NewReader(here)}
}

// What a link leads to is not DIR's, even if the link came after DIR was looked
// at.
func TestCreateFollowsNoLink(t *testing.T) {
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	must(t, os.WriteFile(outside, []byte("precious"), 0o644))
	must(t, os.Symlink(outside, filepath.Join(dir, "PG_VERSION")))
	c := &copier{dir: dir, mode: 0o600, umask: 0o600}
	if f, err := c.create("PG_VERSION"); err == nil {
		f.Close()
		t.Error("a link was opened")
	}
	if info, err := os.Stat(outside); err != nil || info.Mode() != 0o644 {
		t.Errorf("what it leads to: %v, %v", info.Mode(), err)
	}
}

// Two workers end the two extents of a file at the same time. Either may be the
// last, which ends the file; the other must not miss what it takes away. The
// race detector sees it whoever is first.
func TestTwoEndOneFile(t *testing.T) {
	t.Parallel()
	const tail = 3 * 8192
	want := manifest.CombineCRC(1, 2, tail)
	dir := t.TempDir()
	for range 300 {
		// Without a lock, which would hide from the detector what has none.
		var extents [2]int
		files := 0
		f := &file{path: "f", size: extentSize + tail, kind: mainFork}
		c := &copier{dir: dir, mode: 0o600, shift: manifest.NewShift(extentSize), chunk: manifest.NewShift(chunkSize)}
		c.copied = func(t *task) { extents[t.extent]++ }
		c.done = func(got *file, vanished bool, size int64, crc uint32) error {
			files++
			if got != f || vanished || size != f.size || crc != want {
				t.Errorf("vanished %t, %d bytes, CRC %08X, want %d bytes, CRC %08X", vanished, size, crc, f.size, want)
			}
			return nil
		}
		c.queue.fill([]*file{f})
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for k, crc := range []uint32{1, 2} {
			fd, err := os.OpenFile(filepath.Join(dir, "f"), os.O_RDWR|os.O_CREATE, 0o600)
			must(t, err)
			w, off := &worker{c: c}, int64(k)*extentSize
			end := &task{file: f, extent: k, off: off, n: min(extentSize, f.size-off), fd: fd, crcs: []uint32{crc}}
			w.mine = []*task{end}
			wg.Go(func() {
				<-begin
				if err := w.finish(end); err != nil {
					t.Error(err)
				}
			})
		}
		close(begin)
		wg.Wait()
		if extents != [2]int{1, 1} || files != 1 {
			t.Fatalf("extents were ended %v times, and the file %d times", extents, files)
		}
	}
	if info, err := os.Stat(filepath.Join(dir, "f")); err != nil || info.Size() != extentSize+tail {
		t.Errorf("the file: %v, %v", info.Size(), err)
	}
}
