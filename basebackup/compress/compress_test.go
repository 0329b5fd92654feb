package compress

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"crypto/aes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
	"time"
)

func gzipped(t testing.TB, raw []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zlibbed(t testing.TB, raw []byte) []byte {
	var b bytes.Buffer
	w := zlib.NewWriter(&b)
	if _, err := w.Write(raw); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// inParts writes a packet as pgcrypto does, in parts of 16 kB.
func inParts(tag byte, body []byte) []byte {
	b := []byte{0xc0 | tag}
	for len(body) >= 1<<14 {
		b = append(append(b, 0xe0|14), body[:1<<14]...)
		body = body[1<<14:]
	}
	b = binary.BigEndian.AppendUint32(append(b, 255), uint32(len(body)))
	return append(b, body...)
}

// pgpMessage is what pgcrypto makes of raw. Real servers' are in the other test;
// this one lets the fuzzer see what is inside of the encryption.
func pgpMessage(t testing.TB, raw []byte) []byte {
	plain := inParts(tagLiteral, append([]byte{'b', 0, 1, 2, 3, 4}, raw...))
	return pgpEncrypt(inParts(tagCompressed, append([]byte{algoZLIB}, zlibbed(t, plain)...)))
}

func pgpEncrypt(plain []byte) []byte {
	prefix := []byte("sixteen at randomom")[:aes.BlockSize]
	prefix = append(prefix, prefix[14:]...)
	var iv, stream [aes.BlockSize]byte
	encrypt := func(b []byte) (out []byte) {
		for len(b) > 0 {
			pgpBlock(stream[:], iv[:])
			n := min(len(b), len(iv))
			for i := range n {
				iv[i] = b[i] ^ stream[i]
			}
			out, b = append(out, iv[:n]...), b[n:]
		}
		return out
	}
	head := encrypt(prefix)
	copy(iv[:], head[2:])
	body := append(head, encrypt(plain)...)
	return append([]byte{0xc0 | tagSessionKey, 4, 4, algoAES128, 0, algoSHA1}, inParts(tagEncrypted, body)...)
}

func methodNamed(name string) Method {
	for _, m := range Detect([]Fact{{"rideau", "compress", 1, ""}, {"public", "pgp_sym_encrypt_bytea", 3, "pgcrypto"}}) {
		if m.Name == name {
			return m
		}
	}
	panic(name)
}

func TestDetect(t *testing.T) {
	pgp := Fact{"public", "pgp_sym_encrypt_bytea", 3, "pgcrypto"}
	tests := []struct {
		name  string
		facts []Fact
		want  string
	}{
		{"nothing is installed: plain SQL remains", nil, "holes "},
		{"an extension that can", []Fact{pgp}, "pgcrypto \"public\".\"pgp_sym_encrypt_bytea\", holes "},
		{"made for us: before all else", []Fact{pgp, {"rideau", "compress", 1, ""}}, "function \"rideau\".\"compress\", pgcrypto \"public\".\"pgp_sym_encrypt_bytea\", holes "},
		{"of unknown level: after pgcrypto", []Fact{{"x\"y", "gzip", 2, "gzip"}, pgp}, "pgcrypto \"public\".\"pgp_sym_encrypt_bytea\", function \"x\"\"y\".\"gzip\", holes "},
		{"only its name is pgcrypto's", []Fact{{"public", "pgp_sym_encrypt_bytea", 3, ""}}, "holes "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, m := range Detect(tt.facts) {
				got = append(got, m.Name+" "+m.Function)
			}
			if s := strings.Join(got, ", "); s != tt.want {
				t.Errorf("got %s, want %s", s, tt.want)
			}
		})
	}
}

func TestChoose(t *testing.T) {
	bare := Detect(nil)
	if _, ok, err := Choose(bare, "none"); ok || err != nil {
		t.Errorf("none: %v %v", ok, err)
	}
	if m, ok, err := Choose(bare, "auto"); !ok || err != nil || m.Name != "holes" {
		t.Errorf("auto: %v %v %v", m, ok, err)
	}
	var missing *MissingError
	if _, _, err := Choose(bare, "pgcrypto"); !errors.As(err, &missing) || missing.Method != "pgcrypto" {
		t.Errorf("pgcrypto without it: %v", err)
	}
	if _, _, err := Choose(bare, "lzop"); !errors.Is(err, ErrUnknown) {
		t.Errorf("lzop: %v", err)
	}
}

// chunks that decoders must give back, with what is special about each.
func chunks() map[string][]byte {
	r := rand.New(rand.NewPCG(1, 2))
	noise := make([]byte, 300_000)
	for i := range noise {
		noise[i] = byte(r.Uint32())
	}
	return map[string][]byte{
		"empty":                {},
		"one byte":             {0},
		"less than a part":     bytes.Repeat([]byte("abc"), 1000),
		"a part to the byte":   bytes.Repeat([]byte{7}, 1<<14-6),
		"many parts":           bytes.Repeat([]byte("pgbench  "), 30_000),
		"longer when deflated": noise,
	}
}

func TestDecode(t *testing.T) {
	formats := []struct {
		name, method string
		make         func(testing.TB, []byte) []byte
	}{
		{"pgcrypto", "pgcrypto", pgpMessage},
		{"gzip", "function", gzipped},
		{"zlib", "function", zlibbed},
		{"stored", "pgcrypto", func(_ testing.TB, b []byte) []byte { return append([]byte{stored}, b...) }},
	}
	for _, f := range formats {
		d := methodNamed(f.method).NewDecoder() // one for all: its memory must not leak from one to the next
		for name, raw := range chunks() {
			t.Run(f.name+"/"+name, func(t *testing.T) {
				got, err := d.Decode([]byte("before"), f.make(t, raw), len(raw))
				if err != nil || string(got) != "before"+string(raw) {
					t.Fatalf("%d bytes became %d: %v", len(raw), len(got)-len("before"), err)
				}
				if len(raw) == 0 {
					return
				}
				if got, err := d.Decode(nil, f.make(t, raw), len(raw)-1); err == nil {
					t.Errorf("%d bytes were taken where %d were asked for", len(got), len(raw)-1)
				}
				packed := f.make(t, raw)
				if f.name == "stored" {
					return
				}
				for _, n := range []int{1, 2, 10, len(packed) / 2, len(packed) - 1} {
					if _, err := d.Decode(nil, f.make(t, raw)[:n], len(raw)); err == nil {
						t.Errorf("cut off after %d of %d bytes: no error", n, len(packed))
					}
				}
				if _, err := d.Decode(nil, append(packed, 0), len(raw)); err == nil {
					t.Error("a byte more at the end: no error")
				}
			})
		}
	}
}

// A bit that has changed on the way is found by zlib's checksum, if by nothing
// before.
func TestDecodeDamage(t *testing.T) {
	raw := chunks()["many parts"]
	d := methodNamed("pgcrypto").NewDecoder()
	good := pgpMessage(t, raw)
	for i := 0; i < len(good); i += 1 + i/500 {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		// The blocks of random bytes are only compared where they repeat.
		if got, err := d.Decode(nil, bad, len(raw)); err == nil && !bytes.Equal(got, raw) {
			t.Errorf("byte %d changed: wrong bytes without an error", i)
		}
	}
}

// What is small and becomes large is given up soon.
func TestBomb(t *testing.T) {
	zeros := make([]byte, 8<<20)
	for name, packed := range map[string][]byte{"function": gzipped(t, zeros), "pgcrypto": pgpMessage(t, zeros)} {
		d := methodNamed(name).NewDecoder()
		got, err := d.Decode(nil, packed, 256<<10)
		if err == nil || cap(got) > 512<<10 {
			t.Errorf("%s: %d bytes of memory, %v", name, cap(got), err)
		}
		if d := d.(*decoder); cap(d.scratch) > 512<<10 {
			t.Errorf("%s: %d bytes of memory are kept", name, cap(d.scratch))
		}
	}
}

func TestFormats(t *testing.T) {
	d := methodNamed("function").NewDecoder()
	for _, tt := range []struct{ name, src, want string }{
		{"zstd", "\x28\xb5\x2f\xfd....", "zstd: this program reads gzip and zlib"},
		{"lz4", "\x04\x22\x4d\x18....", "lz4: this program reads gzip and zlib"},
		{"raw", "PGDMP", "a function: it is neither gzip nor zlib"},
	} {
		var format *FormatError
		if _, err := d.Decode(nil, []byte(tt.src), 100); !errors.As(err, &format) || !strings.HasSuffix(err.Error(), tt.want) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

// holesOf is what holesExpr makes, page by page as the format's table says.
func holesOf(raw []byte) (out []byte) {
	for len(raw) >= pageSize {
		p := raw[:pageSize]
		lo, hi := int(binary.LittleEndian.Uint16(p[12:])), int(binary.LittleEndian.Uint16(p[14:]))
		switch {
		case bytes.Equal(p, zeroPage[:]):
			out = append(out, holesZero)
		case lo >= 24 && hi > lo && hi <= pageSize && bytes.Equal(p[lo:hi], zeroPage[lo:hi]):
			out = append(append(append(out, holesHole), p[:lo]...), p[hi:]...)
		default:
			out = append(append(out, holesWhole), p...)
		}
		raw = raw[pageSize:]
	}
	return append(out, raw...)
}

func FuzzHoles(f *testing.F) {
	f.Add([]byte{}, uint16(0), uint16(0))
	f.Add([]byte("tail"), uint16(24), uint16(8192))
	f.Add([]byte("tail"), uint16(100), uint16(90))
	f.Fuzz(func(t *testing.T, b []byte, lo, hi uint16) {
		// As an answer: no more than was asked for, whatever it is.
		d := methodNamed("holes").NewDecoder()
		for _, n := range []int{0, 1, pageSize, 2*pageSize + 3} {
			if got, err := d.Decode(nil, b, n); err == nil && len(b) > 0 && len(got) != n {
				t.Errorf("%d bytes, not %d", len(got), n)
			}
		}
		// As a chunk: back as it was.
		page := make([]byte, pageSize)
		binary.LittleEndian.PutUint16(page[12:], lo)
		binary.LittleEndian.PutUint16(page[14:], hi)
		raw := append(append(append(bytes.Clone(page), zeroPage[:]...), page...), b...)
		got, err := d.Decode(nil, holesOf(raw), len(raw))
		if err != nil || !bytes.Equal(got, raw) {
			t.Errorf("%d bytes became %d: %v", len(raw), len(got), err)
		}
	})
}

// FuzzDecode gives both what comes from a server and, encrypted as it must be,
// what is inside.
func FuzzDecode(f *testing.F) {
	for _, raw := range chunks() {
		if len(raw) < 1<<16 {
			f.Add(pgpMessage(f, raw))
			f.Add(gzipped(f, raw))
			f.Add(inParts(tagCompressed, append([]byte{algoZLIB}, zlibbed(f, inParts(tagLiteral, append([]byte("b\x00time"), raw...)))...)))
		}
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const most = 20_000
		for _, name := range []string{"pgcrypto", "function"} {
			d := methodNamed(name).NewDecoder()
			for _, src := range [][]byte{bytes.Clone(b), pgpEncrypt(b)} {
				if got, err := d.Decode(nil, src, most); err == nil && len(got) > most {
					t.Errorf("%s: %d bytes", name, len(got))
				}
			}
		}
	})
}

// play runs a Tuner over requests of 4 MB whose rates depend on the way, and
// returns how long they took, and the rates at the end.
func play(requests int, plain, compressed func(i int) float64) (took time.Duration, last bool) {
	var tuner Tuner
	for i := range requests {
		for mb := 4.0; mb > 0; {
			turn, n, mbs := tuner.Next(), mb, plain(i)
			if turn.Trial {
				n = float64(TrialBytes) / 1e6
			}
			if turn.Compress {
				mbs = compressed(i)
			}
			d := time.Duration(n / mbs * float64(time.Second))
			tuner.Done(turn, int64(n*1e6), d)
			took += d
			mb -= n
		}
	}
	return took, tuner.Compressing()
}

func TestTuner(t *testing.T) {
	always := func(mbs float64) func(int) float64 { return func(int) float64 { return mbs } }
	after := func(n int, before, then float64) func(int) float64 {
		return func(i int) float64 {
			if i < n {
				return before
			}
			return then
		}
	}
	tests := []struct {
		name              string
		plain, compressed func(int) float64
		want              bool
		best              time.Duration // of 2000 requests, always the better way
	}{
		{"a slow line", always(20), always(200), true, 2000 * 20 * time.Millisecond},
		{"a fast line, and a table that is hard to compress", always(2000), always(50), false, 2000 * 2 * time.Millisecond},
		{"no difference: the server's processors are spared", always(100), always(105), false, 2000 * 40 * time.Millisecond},
		{"the line becomes slow", after(1000, 1000, 20), always(200), true, 1000*4*time.Millisecond + 1000*20*time.Millisecond},
		{"the tables become hard", always(100), after(1000, 400, 50), false, 1000*10*time.Millisecond + 1000*40*time.Millisecond},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			took, last := play(2000, tt.plain, tt.compressed)
			if last != tt.want {
				t.Errorf("compressing: %v, want %v", last, tt.want)
			}
			// Trials at the beginning and at the change, and a twentieth.
			if limit := tt.best + tt.best/10 + 2*time.Second; took > limit {
				t.Errorf("took %v, the better way alone %v", took, tt.best)
			}
		})
	}
}

// What a Tuner costs where there is little to copy: 60 MB that one connection
// gets at 20 MB/s, or compressed at 200.
func TestTunerOfLittle(t *testing.T) {
	took, last := play(15, func(int) float64 { return 20 }, func(int) float64 { return 200 })
	if want := 300 * time.Millisecond; !last || took > want*4/3 {
		t.Errorf("took %v, the better way alone %v; compressing at the end: %v", took, want, last)
	}
	// And where the network is no matter: as compression is what is tried first.
	took, last = play(15, func(int) float64 { return 1000 }, func(int) float64 { return 50 })
	if want := 60 * time.Millisecond; last || took > want+100*time.Millisecond {
		t.Errorf("took %v, the better way alone %v; compressing at the end: %v", took, want, last)
	}
}

// Four connections that ask at once, before any has an answer: one of them tries
// the slow way, and who asks next knows of it.
func TestTunerIsShared(t *testing.T) {
	var tuner Tuner
	var turns []Turn
	plain := 0
	for range 4 {
		turn := tuner.Next()
		if turns = append(turns, turn); !turn.Trial {
			t.Error("a first request is no trial")
		}
		if !turn.Compress {
			plain++
		}
	}
	if plain != 1 {
		t.Errorf("%d of 4 connections begin without compression, want 1", plain)
	}
	for _, turn := range turns {
		took := 10 * time.Millisecond
		if !turn.Compress {
			took = 50 * time.Millisecond
		}
		tuner.Done(turn, TrialBytes, took)
	}
	if turn := tuner.Next(); turn.Trial || !turn.Compress || !tuner.Settled() {
		t.Errorf("after trials of which each is clear: %+v, settled %v", turn, tuner.Settled())
	}
}

// What loses each time is tried ever more seldom.
func TestTunerLosesInterest(t *testing.T) {
	var tuner Tuner
	var at []int // of trials without compression
	for i := range 4000 {
		turn := tuner.Next()
		took := 20 * time.Millisecond // of 4 MB
		if !turn.Compress {
			at = append(at, i)
			took = 50 * time.Millisecond // of 1 MB
		}
		tuner.Done(turn, 4e6, took)
	}
	if len(at) < 8 || at[2]-at[1] < 40 || at[7]-at[6] < 350 {
		t.Errorf("trials of what loses were requests %v", at)
	}
}

// What the client spends on pgcrypto's messages, for text that deflates to an
// eighth or so.
func BenchmarkDecode(b *testing.B) {
	r := rand.New(rand.NewPCG(3, 4))
	raw := make([]byte, 0, 256<<10)
	for len(raw) < 256<<10-128 {
		raw = append(append(raw, bytes.Repeat([]byte{' '}, 96)...), byte(r.Uint32()), byte(r.Uint32()), byte(r.Uint32()), 0, 0, 0, 1, 8)
	}
	for name, packed := range map[string][]byte{"pgcrypto": pgpMessage(b, raw), "function": gzipped(b, raw), "holes": holesOf(raw)} {
		b.Run(name, func(b *testing.B) {
			d := methodNamed(name).NewDecoder()
			b.SetBytes(int64(len(raw)))
			b.ReportAllocs()
			src, dst := make([]byte, len(packed)), make([]byte, 0, len(raw))
			for b.Loop() {
				copy(src, packed)
				if _, err := d.Decode(dst, src, len(raw)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
