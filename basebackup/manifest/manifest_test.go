package manifest_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"pgregory.net/rapid"

	"rideau/basebackup/manifest"
)

var someTime = time.Date(2026, 11, 22, 17, 7, 12, 0, time.UTC)

// text is what Writer makes of m.
func text(t testing.TB, m *manifest.Manifest) string {
	t.Helper()
	var b bytes.Buffer
	w := manifest.NewWriter(&b, m.Version, m.SystemID)
	for _, f := range m.Files {
		if err := w.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Finish(m.WAL); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// signed is body with the last line that it needs.
func signed(body string) string {
	return fmt.Sprintf("%s\"Manifest-Checksum\": \"%x\"}\n", body, sha256.Sum256([]byte(body)))
}

var sample = &manifest.Manifest{
	Version:  2,
	SystemID: 18446744073709551615,
	Files: []manifest.File{
		{Path: "base/5/16390", Size: 607125504, ModTime: someTime, Algorithm: manifest.CRC32C, Checksum: manifest.CRCBytes(0x2247748a)},
		{Path: "a \"\\\b\f\n\r\t\x01\x1f\x7f<é>\u2028", Size: 0, ModTime: someTime, Algorithm: manifest.None},
		{Path: "caf\xe9", Size: 1, Algorithm: manifest.SHA224, Checksum: bytes.Repeat([]byte{0xAB}, 28)},
	},
	WAL: []manifest.Range{{TLI: 3, Start: 0x68000100, End: 0x16_B374D848}, {TLI: 2, Start: 0x68000070, End: 0x68000100}},
}

// The text is that of backup_manifest.c and escape_json, which real manifests
// show only in part: no server has files with such names.
const sampleText = `{ "PostgreSQL-Backup-Manifest-Version": 2,
"System-Identifier": 18446744073709551615,
"Files": [
{ "Path": "base/5/16390", "Size": 607125504, "Last-Modified": "2026-11-22 17:07:12 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "8a744722" },
{ "Path": "a \"\\\b\f\n\r\t\u0001\u001f` + "\x7f<é>\u2028" + `", "Size": 0, "Last-Modified": "2026-11-22 17:07:12 GMT" },
{ "Encoded-Path": "636166e9", "Size": 1, "Checksum-Algorithm": "SHA224", "Checksum": "abababababababababababababababababababababababababababab" }
],
"WAL-Ranges": [
{ "Timeline": 3, "Start-LSN": "0/68000100", "End-LSN": "16/B374D848" },
{ "Timeline": 2, "Start-LSN": "0/68000070", "End-LSN": "0/68000100" }
],
`

func TestWriter(t *testing.T) {
	if got, want := text(t, sample), signed(sampleText); got != want {
		t.Errorf("wrote\n%s\nwant\n%s", got, want)
	}
	empty := "{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n],\n\"WAL-Ranges\": [\n\n],\n"
	if got := text(t, &manifest.Manifest{Version: manifest.VersionFor(16)}); got != signed(empty) {
		t.Errorf("wrote\n%s\nwant\n%s", got, signed(empty))
	}
}

func TestWriterRefuses(t *testing.T) {
	crc := manifest.CRCBytes(0)
	for _, f := range []manifest.File{
		{Path: ""}, {Path: "/etc/passwd"}, {Path: "../a"}, {Path: "a/../../b"}, {Path: "a//b"}, {Path: "./a"}, {Path: "a/"}, {Path: "a\x00b"},
		{Path: "a", Size: -1},
		{Path: "a", Algorithm: "MD5", Checksum: crc},
		{Path: "a", Algorithm: manifest.SHA256, Checksum: crc},
		{Path: "a", Algorithm: manifest.CRC32C},
		{Path: "a", Algorithm: manifest.None, Checksum: crc},
	} {
		var b bytes.Buffer
		w := manifest.NewWriter(&b, 2, 1)
		if err := w.Add(f); err == nil {
			t.Errorf("%+v is accepted", f)
		}
		if err := w.Finish(nil); err != nil {
			t.Errorf("after %+v: %v", f, err)
		} else if m, err := manifest.Parse(&b); err != nil || len(m.Files) != 0 {
			t.Errorf("after %+v: %v", f, err)
		}
		if w.Add(manifest.File{Path: "a"}) == nil || w.Finish(nil) == nil {
			t.Error("a finished manifest goes on")
		}
	}
	if err := manifest.NewWriter(io.Discard, 3, 1).Finish(nil); err == nil {
		t.Error("version 3 is accepted")
	}
	for _, r := range []manifest.Range{{TLI: 0, Start: 1, End: 2}, {TLI: 1, Start: 2, End: 1}, {TLI: 1, End: 1}} {
		if err := manifest.NewWriter(io.Discard, 2, 1).Finish([]manifest.Range{r}); err == nil {
			t.Errorf("%+v is accepted", r)
		}
	}
}

// A disk that is full is told at the latest by Finish, for ever.
func TestWriterPassesErrorsOn(t *testing.T) {
	for _, room := range []int64{0, 10, 200, int64(len(sampleText)), int64(len(sampleText)) + 50} {
		w := manifest.NewWriter(&disk{room}, 2, 1)
		err := w.Add(sample.Files[0])
		for range 5 {
			err = errors.Join(err, w.Add(sample.Files[1]))
		}
		if err = errors.Join(err, w.Finish(sample.WAL)); !errors.Is(err, errFull) {
			t.Errorf("with room for %d bytes: %v", room, err)
		}
		if w.Finish(nil) == nil {
			t.Error("Finish succeeds after it has failed")
		}
	}
}

var errFull = errors.New("full")

type disk struct{ room int64 }

func (d *disk) Write(p []byte) (int, error) {
	if d.room -= int64(len(p)); d.room < 0 {
		return 0, errFull
	}
	return len(p), nil
}

func TestParse(t *testing.T) {
	read := func(s string) *manifest.Manifest {
		t.Helper()
		m, err := manifest.Parse(iotest.OneByteReader(strings.NewReader(s)))
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	if got := read(signed(sampleText)); !reflect.DeepEqual(got, sample) {
		t.Errorf("read %+v\nwant %+v", got, sample)
	}
	// JSON that says the same in other words, and algorithms in any case.
	other := strings.NewReplacer(": ", " :\t", "{ ", "{\r\n\n", "CRC32C", "crc32C", `base/5`, `\u0062as\u0065\/5`, "<é>", `<\u00e9>`).Replace(sampleText)
	if got := read(signed(other)); !reflect.DeepEqual(got, sample) {
		t.Errorf("read %+v\nwant %+v", got, sample)
	}
	pair := strings.Replace(sampleText, "5/16390", `\ud83d\ude00`, 1)
	if got := read(signed(pair)).Files[0].Path; got != "base/😀" {
		t.Errorf("read %q", got)
	}
}

// Each row changes the sample in one place, and makes its checksum right again.
func TestParseRefuses(t *testing.T) {
	tests := []struct {
		old, new string
		line     int
		reason   string
	}{
		{`{ "PostgreSQL-Backup-Manifest-Version": 2,`, `{`, 2, `"System-Identifier" where the manifest's version should be`},
		{`Version": 2`, `Version": 3`, 1, `version 3 is not known`},
		{`Version": 2`, `Version": "2"`, 1, `found "" where a number`},
		{`Version": 2`, `Version": 1`, 12, `the system identifier belongs to version 2`},
		{"\"System-Identifier\": 18446744073709551615,\n", "", 11, `the system identifier belongs to version 2`},
		{`18446744073709551615`, `18446744073709551616`, 2, `"18446744073709551616" where a number`},
		{`18446744073709551615`, `-1`, 2, `where a number`},
		{`18446744073709551615`, `1, "System-Identifier": 1`, 2, `key "System-Identifier" is there twice`},
		{`18446744073709551615`, `1, "Rideau": 1`, 2, `key "Rideau" is not known`},
		{`"Size": 0`, `"Size": 00`, 5, `"00" where a number`},
		{`"Size": 0`, `"Size": 1.5`, 5, `found '.' where '}' should be`},
		{`"Size": 0`, `"Size": 9223372036854775808`, 5, `where a number up to`},
		{`"Size": 0, `, ``, 5, `key "Size" is missing`},
		{`"Size": 0`, `"Size": 0, "Size": 0`, 5, `key "Size" is there twice`},
		{`"Size": 0`, `"Size": 0, "Mode": 0`, 5, `key "Mode" is not known in a file`},
		{`"Size": 0`, `"Size": 0, "Encoded-Path": "61"`, 5, `either a path or an encoded path`},
		{`"Encoded-Path": "636166e9", `, ``, 6, `either a path or an encoded path`},
		{`636166e9`, `636166e`, 6, `is not hexadecimal`},
		{`636166e9`, `63610063`, 6, `does not name a file`},
		{`base/5/16390`, `../base`, 4, `does not name a file`},
		{`base/5/16390`, `/base`, 4, `does not name a file`},
		{`base/5/16390`, `\u0000`, 4, `escape \u0000, which is none`},
		{`base/5/16390`, `\x`, 4, `escape \x`},
		{`base/5/16390`, `\u12`, 4, `escape \u12`},
		{`base/5/16390`, `\ud83dx`, 4, `escape \ud83d`},
		{`base/5/16390`, `\ud83d\u0041`, 4, `escape \ud83d`},
		{`base/5/16390`, "caf\xe9", 4, `is not UTF-8`},
		{`base/5/16390`, "a\tb", 4, `control character`},
		{`base/5/16390`, strings.Repeat("x", 70000), 4, `longer than 65536 bytes`},
		{`{ "Encoded-Path": "636166e9"`, `{ "Path": "base/5/16390"`, 6, `path "base/5/16390" is there twice`},
		{`2026-11-22 17:07:12 GMT" }`, `yesterday" }`, 5, `"yesterday" is not a time`},
		{`CRC32C`, `MD5`, 4, `unknown checksum algorithm "MD5"`},
		{`CRC32C`, `SHA256`, 4, `those of SHA256 have 32`},
		{`CRC32C`, `NONE`, 4, `those of NONE have 0`},
		{`, "Checksum": "8a744722"`, ``, 4, `checksum of 0 bytes`},
		{`"Checksum-Algorithm": "CRC32C", `, ``, 4, `those of NONE have 0`},
		{`8a744722`, `8a74472x`, 4, `is not hexadecimal`},
		{"abab\" }\n", "abab\" },\n", 7, `found ']' where '{' should be`},
		{`"Timeline": 3`, `"Timeline": 0`, 9, `is none`},
		{`"Timeline": 3`, `"Timeline": 4294967296`, 9, `where a number`},
		{`"Timeline": 3, `, ``, 9, `key "Timeline" is missing`},
		{`"Timeline": 3`, `"Timeline": 3, "Timelime": 3`, 9, `key "Timelime" is not known in a WAL range`},
		{`0/68000070`, `68000070`, 10, `68000070`},
		{`0/68000070`, `0/68000200`, 10, `is none`},
		{"\"WAL-Ranges\"", "\"Files\"", 8, `key "Files" is there twice`},
	}
	for _, tt := range tests {
		if !strings.Contains(sampleText, tt.old) {
			t.Errorf("there is no %s in the sample", tt.old)
		}
		_, err := manifest.Parse(strings.NewReader(signed(strings.Replace(sampleText, tt.old, tt.new, 1))))
		checkParseError(t, fmt.Sprintf("%s for %s", tt.new, tt.old), err, tt.line, tt.reason)
	}

	whole := signed(sampleText)
	for _, tt := range []struct {
		name, text string
		line       int
		reason     string
	}{
		{"empty", "", 0, `ends where '{' should be`},
		{"not JSON", "no\n", 1, `found 'n' where '{' should be`},
		{"cut off after a line", sampleText, 11, `ends where '"' should be`},
		{"cut off in a line", whole[:300], 5, `does not end with a newline`},
		{"without its last newline", strings.TrimSuffix(whole, "\n"), 12, `does not end with a newline`},
		{"without a checksum", strings.TrimSuffix(sampleText, ",\n") + "\n}\n", 12, `key "Manifest-Checksum" is missing`},
		{"on one line", strings.ReplaceAll(signed(strings.ReplaceAll(sampleText, "\n", " ")), "\n", "") + "\n", 1, `it is the only line`},
		{"a line more", whole + "\n", 13, `the manifest's checksum is`},
		{"another manifest behind it", whole + whole, 13, `found '{' after the end`},
		{"a short checksum", sampleText + "\"Manifest-Checksum\": \"ab\"}\n", 12, `checksum has 1 bytes`},
		{"a key after the checksum", strings.TrimSuffix(whole, "}\n") + ", \"x\": 1}\n", 12, `comes after the checksum`},
		{"another size", strings.Replace(whole, "607125504", "607125505", 1), 12, `the manifest's checksum is`},
		{"white space", strings.Replace(whole, "{ ", "{  ", 1), 12, `the manifest's checksum is`},
	} {
		_, err := manifest.Parse(strings.NewReader(tt.text))
		checkParseError(t, tt.name, err, tt.line, tt.reason)
	}

	if _, err := manifest.Parse(io.MultiReader(strings.NewReader(whole[:300]), iotest.ErrReader(errFull))); !errors.Is(err, errFull) {
		t.Errorf("a disk that fails: %v", err)
	}
}

func checkParseError(t *testing.T, name string, err error, line int, reason string) {
	t.Helper()
	parse, ok := errors.AsType[*manifest.ParseError](err)
	if !ok || parse.Line != line || !strings.Contains(parse.Reason, reason) {
		t.Errorf("%s: %v; want line %d: %s", name, err, line, reason)
	}
}

// No byte of a manifest can change unnoticed, be it white space.
func TestParseSeesEveryByte(t *testing.T) {
	whole := signed(sampleText)
	for i := range len(whole) - 1 {
		b := []byte(whole)
		b[i] ^= 1
		if m, err := manifest.Parse(bytes.NewReader(b)); err == nil && !reflect.DeepEqual(m, sample) {
			t.Errorf("byte %d may change", i)
		} else if err == nil && i < len(sampleText) {
			t.Errorf("byte %d may change, though it says the same", i)
		}
	}
}

func TestCombineCRC(t *testing.T) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	sum := func(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }
	rapid.Check(t, func(t *rapid.T) {
		a := rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "a")
		b := rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "b")
		want := sum(append(bytes.Clone(a), b...))
		if got := manifest.CombineCRC(sum(a), sum(b), int64(len(b))); got != want {
			t.Fatalf("combined %x, want %x", got, want)
		}
		if got := manifest.NewShift(int64(len(b))).Combine(sum(a), sum(b)); got != want {
			t.Fatalf("shifted %x, want %x", got, want)
		}
		// Parts longer than a test can hash: two zero-filled ones are one.
		n := rapid.Int64Range(0, 1<<61).Draw(t, "n")
		m := rapid.Int64Range(0, 1<<61).Draw(t, "m")
		crc := rapid.Uint32().Draw(t, "crc")
		twice := manifest.NewShift(m).Combine(manifest.NewShift(n).Combine(crc, 0), 0)
		if once := manifest.NewShift(n+m).Combine(crc, 0); once != twice {
			t.Fatalf("%d and %d bytes after %x: %x at once, %x one after the other", n, m, crc, once, twice)
		}
	})
	big := make([]byte, 64<<20) // a multiple of which none of the small ones are
	big[0], big[len(big)-1] = 1, 2
	if got, want := manifest.CombineCRC(sum(big), sum(big), int64(len(big))), crc32.Update(sum(big), castagnoli, big); got != want {
		t.Errorf("64 MiB twice: %x, want %x", got, want)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(sampleText), true)
	f.Add([]byte(signed(sampleText)), false)
	f.Add([]byte("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [\n],\n\"WAL-Ranges\": [\n\n],\n"), true)
	f.Fuzz(func(t *testing.T, b []byte, sign bool) {
		if sign {
			b = []byte(signed(string(b)))
		}
		m, err := manifest.Parse(bytes.NewReader(b))
		if err != nil {
			if _, ok := errors.AsType[*manifest.ParseError](err); !ok || m != nil {
				t.Fatalf("%v, with %v", err, m)
			}
			return
		}
		for i := range m.Files {
			m.Files[i].ModTime = m.Files[i].ModTime.Truncate(time.Second)
		}
		again, err := manifest.Parse(strings.NewReader(text(t, m)))
		if err != nil || !reflect.DeepEqual(again, m) {
			t.Fatalf("read again it is %+v (%v)\nnot %+v", again, err, m)
		}
	})
}

func BenchmarkShift(b *testing.B) {
	s := manifest.NewShift(64 << 20)
	crc := uint32(1)
	for b.Loop() {
		crc = s.Combine(crc, 7)
	}
}

func BenchmarkParse(b *testing.B) {
	m := &manifest.Manifest{Version: 2, SystemID: 1}
	for i := range 100_000 {
		m.Files = append(m.Files, manifest.File{Path: fmt.Sprintf("base/5/%d", i), Size: 8192, ModTime: someTime, Algorithm: manifest.CRC32C, Checksum: manifest.CRCBytes(uint32(i))})
	}
	whole := text(b, m)
	b.SetBytes(int64(len(whole)))
	for b.Loop() {
		if _, err := manifest.Parse(strings.NewReader(whole)); err != nil {
			b.Fatal(err)
		}
	}
}

// crcOfPieces is the CRC of b, from those of pieces of different lengths.
func crcOfPieces(b []byte) (crc uint32) {
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	for n := 1; len(b) > 0; n = 3*n + 1 {
		n := min(n, len(b))
		crc = manifest.CombineCRC(crc, crc32.Checksum(b[:n], castagnoli), int64(n))
		b = b[n:]
	}
	return crc
}
