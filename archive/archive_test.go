package archive

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rideau/wal"
)

const testSize = wal.MinSegmentSize

// segmentText is a segment with a first page header and nothing after it.
func segmentText(size wal.SegmentSize, tli wal.TLI, lsn wal.LSN) string {
	b := make([]byte, size)
	binary.LittleEndian.PutUint16(b[0:], 0xD110) // 15's XLOG_PAGE_MAGIC
	binary.LittleEndian.PutUint16(b[2:], longHeaderFlag)
	binary.LittleEndian.PutUint32(b[4:], uint32(tli))
	binary.LittleEndian.PutUint64(b[8:], uint64(lsn))
	binary.LittleEndian.PutUint64(b[24:], 7000000000000000001)
	binary.LittleEndian.PutUint32(b[32:], uint32(size))
	binary.LittleEndian.PutUint32(b[36:], 8192)
	return string(b)
}

// archiveOf is an archive in memory of the names given, made to be what they
// say, and the texts given for others.
func archiveOf(t *testing.T, names string, texts map[string]string) (*Archive, *memory) {
	t.Helper()
	m := newMemory()
	put := func(name, text string) {
		if err := m.Put(context.Background(), name, strings.NewReader(text)); err != nil {
			t.Fatal(err)
		}
	}
	for name := range strings.FieldsSeq(names) {
		tli, lsn, err := testSize.ParseFileName(strings.TrimSuffix(name, partialSuffix))
		if err != nil {
			t.Fatal(err)
		}
		put(name, segmentText(testSize, tli, lsn))
	}
	for name, text := range texts {
		put(name, text)
	}
	return New(m), m
}

func TestKindOf(t *testing.T) {
	tests := []struct {
		name string
		want kind
	}{
		{"000000010000000A000000FE", segment},
		{"000000010000000A000000FE.partial", partial},
		{"0000000A.history", history},
		{"000000010000000a000000fe", other}, // the server writes upper case
		{"000000010000000A000000F", other},
		{"000000010000000A000000FEE", other},
		{"000000010000000A000000FE.gz", other},
		{"000000010000000A000000FE.00000028.backup", other},
		{"000000010000000A000000FE.partial.partial", other},
		{"A.history", other},
		{"0000000A.partial", other},
		{"0000000A.history.new", other},
		{".history", other},
		{"RECOVERYXLOG", other},
		{"", other},
	}
	for _, tt := range tests {
		if got := kindOf(tt.name); got != tt.want {
			t.Errorf("kindOf(%q) = %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestOpen(t *testing.T) {
	ctx := context.Background()
	good := segmentText(testSize, 2, 0x200000)
	a, m := archiveOf(t, "000000020000000000000002 000000020000000000000003.partial", map[string]string{
		"00000002.history":         "1\t0/200100\tno recovery target specified\n",
		"000000020000000000000004": "",
		"000000020000000000000005": good[:longHeaderSize-1],
		"000000020000000000000006": strings.Repeat("\x00", int(testSize)),
		"000000020000000000000007": good, // the segment of another LSN
		"000000020000000000000008": segmentText(testSize, 3, 0x800000),
		"000000020000000000000009": segmentText(testSize, 1, 0x900000), // an ancestor's page: may be
		"00000002000000000000000A": segmentText(testSize, 2, 0xA00000) + "x",
		"00000002000000000000000B": segmentText(testSize, 2, 0xB00000)[:testSize-1],
		"00000002000000000000000C": segmentText(2*testSize, 2, 0xC00000),
		"000000020000000000001001": segmentText(testSize, 2, 0x100100000), // no such name at 1 MB
	})
	tests := []struct {
		name    string
		damaged string
	}{
		{"000000020000000000000002", ""},
		{"000000020000000000000003.partial", ""},
		{"00000002.history", ""},
		{"000000020000000000000009", ""},
		{"000000020000000000000004", "it has only 0 bytes"},
		{"000000020000000000000005", "it has only 39 bytes"},
		{"000000020000000000000006", "it begins with zeros where a page header should be"},
		{"000000020000000000000007", "its first page is that of 0/200000"},
		{"000000020000000000000008", "its first page is of timeline 3"},
		{"00000002000000000000000A", "it has 1048577 bytes, not the 1048576 of a segment"},
		{"00000002000000000000000B", "it has 1048575 bytes, not the 1048576 of a segment"},
		{"00000002000000000000000C", "its first page is that of 0/C00000"}, // where 2 MB make it 0/1800000
		{"000000020000000000001001", "its first page says that segments are 1MB, and then there is no such name"},
	}
	for _, tt := range tests {
		content, size, err := a.Open(ctx, tt.name)
		if tt.damaged != "" {
			var damage *DamageError
			if !errors.As(err, &damage) || damage.Name != tt.name || damage.Reason != tt.damaged {
				t.Errorf("Open(%q) returned %v, want damage: %s", tt.name, err, tt.damaged)
			}
			continue
		}
		if err != nil {
			t.Error(err)
			continue
		}
		got, err := io.ReadAll(content)
		if err != nil || string(got) != m.text[tt.name] || size != int64(len(got)) {
			t.Errorf("Open(%q) gave %d bytes, %d announced, %v", tt.name, len(got), size, err)
		}
	}

	if _, _, err := a.Open(ctx, "00000002000000000000000E"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a segment that is not there returned %v", err)
	}
	var name *NameError
	if _, _, err := a.Open(ctx, "postgresql.conf"); !errors.As(err, &name) || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of something else returned %v", err)
	}
	m.fail = func(op, name string) error { return errors.New("input/output error") }
	if _, _, err := a.Open(ctx, "00000002.history"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open of a broken store returned %v", err)
	}
}

// An archive without any WAL does not say that WAL is at its end.
func TestOpenEmpty(t *testing.T) {
	a, m := archiveOf(t, "", map[string]string{"lost+found": "x"})
	if _, _, err := a.Open(context.Background(), "00000002.history"); !errors.Is(err, ErrEmpty) {
		t.Errorf("Open returned %v, want ErrEmpty", err)
	}
	dir := t.TempDir()
	if _, _, err := New(Dir(dir)).Open(context.Background(), "00000002.history"); !errors.Is(err, ErrEmpty) {
		t.Errorf("Open in a directory returned %v, want ErrEmpty", err)
	}
	for i := range 250 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := New(Dir(dir)).Open(context.Background(), "00000002.history"); !errors.Is(err, ErrEmpty) {
		t.Errorf("Open in a directory of other things returned %v, want ErrEmpty", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "000000010000000000000001.partial"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := New(Dir(dir)).Open(context.Background(), "00000002.history"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Open in a directory with WAL returned %v, want fs.ErrNotExist", err)
	}

	m.fail = func(op, name string) error {
		if op == "list" {
			return errors.New("input/output error")
		}
		return nil
	}
	if _, _, err := a.Open(context.Background(), "00000002.history"); err == nil || errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrEmpty) {
		t.Errorf("Open where List fails returned %v", err)
	}
}

// The console serves ranges of a file, and so must be able to seek in it.
func TestOpenOfDirIsFile(t *testing.T) {
	dir := Dir(t.TempDir())
	a := New(dir)
	const name = "000000010000000000000001"
	text := segmentText(testSize, 1, 0x100000)
	if err := a.Put(context.Background(), name, strings.NewReader(text)); err != nil {
		t.Fatal(err)
	}
	content, _, err := a.Open(context.Background(), name)
	if err != nil {
		t.Fatal(err)
	}
	defer content.Close()
	if _, ok := content.(*os.File); !ok {
		t.Errorf("Open answered a %T", content)
	}
	if got, err := io.ReadAll(content); err != nil || string(got) != text {
		t.Errorf("Open gave %d bytes, %v", len(got), err)
	}
}

func TestPut(t *testing.T) {
	ctx := context.Background()
	const name, hist = "000000010000000000000002", "00000002.history"
	good, histText := segmentText(testSize, 1, 0x200000), "1\t0/200100\twhy not\n"
	tests := []struct {
		why, name, text string
		want            any // nil, or a pointer to the error's type
	}{
		{"a segment", name, good, nil},
		{"the same again", name, good, nil},
		{"with another end", name, good[:testSize-1] + "x", new(*ExistsError)},
		{"that is another", "000000010000000000000003", good, new(*DamageError)},
		{"too short", "000000010000000000000004", segmentText(testSize, 1, 0x400000)[:testSize-1], new(*DamageError)},
		{"too long", "000000010000000000000004", segmentText(testSize, 1, 0x400000) + "x", new(*DamageError)},
		{"nearly nothing", "000000010000000000000004", "x", new(*DamageError)},
		{"too short for the one that is there", name, good[:testSize-1], new(*DamageError)},
		{"a history", hist, histText, nil},
		{"the same history", hist, histText, nil},
		{"another history", hist, histText + "# x\n", new(*ExistsError)},
		{"a history that is none", "00000003.history", "what?\n", new(*DamageError)},
		{"a partial segment", name + ".partial", good, new(*NameError)},
		{"something else", "postgresql.conf", "x", new(*NameError)},
	}
	a, m := archiveOf(t, "", nil)
	for _, tt := range tests {
		err := a.Put(ctx, tt.name, strings.NewReader(tt.text))
		if tt.want == nil && err != nil || tt.want != nil && !errors.As(err, tt.want) {
			t.Errorf("%s: Put returned %v, want %T", tt.why, err, tt.want)
		}
	}
	if got, want := list(t, m, ""), fmt.Sprintf("%s:%d %s:%d", name, testSize, hist, len(histText)); got != want {
		t.Errorf("listed %s, want %s", got, want)
	}
	if m.text[name] != good || m.text[hist] != histText {
		t.Error("content was changed")
	}
	broken := errors.New("input/output error")
	if err := a.Put(ctx, "000000010000000000000007", failing{broken}); !errors.Is(err, broken) {
		t.Errorf("Put of what cannot be read returned %v", err)
	}
	m.fail = func(op, name string) error { return broken }
	if err := a.Put(ctx, name, strings.NewReader(good)); !errors.Is(err, broken) {
		t.Errorf("Put to a broken store returned %v", err)
	}
}

func TestRemove(t *testing.T) {
	a, m := archiveOf(t, "000000010000000000000001 000000010000000000000002 000000010000000000000003", map[string]string{"postgresql.conf": "x"})
	if err := a.Remove(context.Background(), []string{"000000010000000000000001", "postgresql.conf", "000000010000000000000002"}); err == nil {
		t.Error("removed what is not WAL")
	}
	if got, want := list(t, m, ""), fmt.Sprintf("000000010000000000000002:%d 000000010000000000000003:%d postgresql.conf:1", testSize, testSize); got != want {
		t.Errorf("listed %s, want %s", got, want)
	}
}
