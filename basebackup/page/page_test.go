package page_test

import (
	"encoding/binary"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"rideau/basebackup/page"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/wal"
)

var seeds = [32]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// reference is the checksum as checksum_impl.h tells it, row by row, with the
// page's own set to zero. That the two agree with a server, real pages show.
func reference(p []byte, block uint32) uint16 {
	p = append([]byte(nil), p...)
	p[8], p[9] = 0, 0
	sums := seeds
	round := func(lane int, value uint32) {
		tmp := sums[lane] ^ value
		sums[lane] = tmp*16777619 ^ tmp>>17
	}
	for i := range page.Size / 4 {
		round(i%32, binary.LittleEndian.Uint32(p[4*i:]))
	}
	for i := range 64 {
		round(i%32, 0)
	}
	h := block
	for _, sum := range sums {
		h ^= sum
	}
	return uint16(h%65535 + 1)
}

// filled is a page with a good header and random bytes after it.
func filled(r *rand.Rand, block uint32) []byte {
	p := make([]byte, page.Size)
	for i := range p {
		p[i] = byte(r.Uint32())
	}
	for offset, value := range map[int]uint16{10: uint16(r.UintN(8)), 12: 40, 14: 4000, 16: 8176, 18: 0x2004} {
		binary.LittleEndian.PutUint16(p[offset:], value)
	}
	binary.LittleEndian.PutUint16(p[8:], reference(p, block))
	return p
}

func TestChecksumIsTheReference(t *testing.T) {
	seed := rand.Uint64()
	r := rand.New(rand.NewPCG(seed, 0))
	for range 2000 {
		block := r.Uint32()
		p := filled(r, block)
		before := string(p)
		if got, want := page.Checksum(p, block), reference(p, block); got != want {
			t.Fatalf("seed %d: checksum %x, want %x", seed, got, want)
		}
		if string(p) != before {
			t.Fatalf("seed %d: the page was changed", seed)
		}
		if !page.Check(p, block, true) {
			t.Fatalf("seed %d: refused: %s", seed, page.Explain(p, block, true))
		}
		if page.Check(p, block^1<<r.UintN(16), true) {
			t.Fatalf("seed %d: accepted in another block", seed)
		}
	}
}

// Every field is read at its place.
func TestHeader(t *testing.T) {
	p := make([]byte, page.Size)
	if !page.IsNew(p) || !page.IsZero(p) {
		t.Error("a page of zeros is not new, or not zero")
	}
	copy(p, []byte{0x16, 0, 0, 0, 0x48, 0xd8, 0x74, 0xb3, 0x34, 0x12})
	if got, want := page.LSN(p), wal.LSN(0x16_B374D848); got != want {
		t.Errorf("LSN %s, want %s", got, want)
	}
	if got := page.Stored(p); got != 0x1234 {
		t.Errorf("stored checksum %x, want 1234", got)
	}
	if !page.IsNew(p) || page.IsZero(p) {
		t.Error("a page without pd_upper is new, and this one is not zero")
	}
	p[15] = 1
	if page.IsNew(p) {
		t.Error("a page with pd_upper is not new")
	}
	for i := range page.Size {
		p := make([]byte, page.Size)
		p[i] = 0x80
		if page.IsZero(p) {
			t.Errorf("a page with byte %d set is not zero", i)
		}
	}
}

// Each row spoils a good page, whose header says lower 40, upper 4000, special
// 8176, without flags.
func TestFaults(t *testing.T) {
	const block = 7
	put := func(offset int, values ...uint16) func([]byte) []byte {
		return func(p []byte) []byte {
			for i, v := range values {
				binary.LittleEndian.PutUint16(p[offset+2*i:], v)
			}
			return p
		}
	}
	tests := []struct {
		name   string
		spoil  func(p []byte) []byte
		kind   page.Kind
		detail string
	}{
		{"nothing", put(10, 0), page.None, ``},
		{"all flags that exist", put(10, 7), page.None, ``},
		{"a flag that does not exist", put(10, 0xB), page.BadFlags, `flags 000b, of which 0008 do not exist`},
		{"no free space left", put(12, 4000), page.None, ``},
		{"free space ends before it begins", put(12, 4001), page.BadBounds, `lower 4001, upper 4000, special 8176`},
		{"no tuples", put(14, 8176), page.None, ``},
		{"tuples begin behind their end", put(14, 8177), page.BadBounds, `upper 8177`},
		{"nothing special", put(16, 8192), page.None, ``},
		{"special begins behind the page", put(16, 8200), page.BadBounds, `special 8200`},
		{"special is not aligned", put(16, 8180), page.BadBounds, `special 8180`},
		{"pages of 16 kB", put(18, 0x4004), page.BadVersion, `size 16384 and layout version 4, not 8192 and 4`},
		{"layout of 8.2", put(18, 0x2003), page.BadVersion, `size 8192 and layout version 3`},
		{"all zero", func(p []byte) []byte { clear(p); return p }, page.None, ``},
		{"new, with a header", put(14, 0), page.NewNotZero, `not all zero`},
		{"new, but for the last byte", func(p []byte) []byte { clear(p); p[page.Size-1] = 1; return p }, page.NewNotZero, `not all zero`},
		{"cut off", func(p []byte) []byte { return p[:5000] }, page.Short, `has only 5000 of 8192 bytes`},
		{"nothing at all", func([]byte) []byte { return nil }, page.Short, `has only 0 of 8192 bytes`},
		{"two pages", func(p []byte) []byte { return append(p, p...) }, page.Short, `has 16384 bytes, not 8192`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := tt.spoil(filled(rand.New(rand.NewPCG(1, 1)), block))
			if len(p) == page.Size && !page.IsZero(p) {
				binary.LittleEndian.PutUint16(p[8:], reference(p, block))
			}
			for _, checksums := range []bool{true, false} {
				f := page.Explain(p, block, checksums)
				if ok := page.Check(p, block, checksums); ok != (tt.kind == page.None) || f.Kind != tt.kind || !strings.Contains(f.Detail, tt.detail) {
					t.Errorf("checksums %t: ok %t, kind %s, %q; want kind %s, %q", checksums, ok, f.Kind, f.Detail, tt.kind, tt.detail)
				}
			}
		})
	}
	t.Run("another checksum", func(t *testing.T) {
		p := filled(rand.New(rand.NewPCG(1, 1)), block)
		good := page.Stored(p)
		binary.LittleEndian.PutUint16(p[8:], good+1)
		f := page.Explain(p, block, true)
		want := page.Fault{Block: block, Kind: page.BadChecksum, Stored: good + 1, Computed: good, Detail: f.Detail}
		if f != want || f.String() != fmt.Sprintf("block 7: calculated checksum %X but block contains %X", good, good+1) {
			t.Errorf("%+v, want %+v", f, want)
		}
		if !page.Check(p, block, false) {
			t.Error("refused though the cluster has no checksums")
		}
	})
}

// relationFile matches the files that pg_checksums looks at: a relfilenode, its
// fork, its segment.
var relationFile = regexp.MustCompile(`^\d+(?:_(?:fsm|vm|init))?(?:\.(\d+))?$`)

// relations calls visit with each relation's file below a data directory, and
// the number of its first block.
func relations(t *testing.T, dir string, visit func(path string, first uint32, b []byte)) {
	for _, sub := range []string{"base", "global"} {
		err := filepath.WalkDir(filepath.Join(dir, sub), func(path string, d fs.DirEntry, err error) error {
			m := relationFile.FindStringSubmatch(filepath.Base(path))
			if err != nil || d.IsDir() || m == nil {
				return err
			}
			b, err := os.ReadFile(path)
			segment, _ := strconv.ParseUint(m[1], 10, 32) // "": the first
			visit(path, uint32(segment)*(1<<30/page.Size), b)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestRealPages checks every block of a server that was stopped cleanly, with
// relations of all access methods, then damages some and asks pg_checksums to
// agree.
func TestRealPages(t *testing.T) {
	for _, major := range []int{13, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major})
			s.Exec(`CREATE TABLE t AS SELECT i, i % 1000 AS k, repeat(md5(i::text), 4) AS v, ARRAY[i, i+1] AS a, int4range(i, i+9) AS r FROM generate_series(1, 30000) i`)
			for _, method := range []string{"btree (v)", "hash (k)", "gin (a)", "gist (r)", "spgist (r)", "brin (i)"} {
				s.Exec("CREATE INDEX ON t USING " + method)
			}
			s.Exec("CREATE SEQUENCE s")
			s.Exec("CREATE UNLOGGED TABLE u AS SELECT * FROM t LIMIT 100")
			s.Exec("DELETE FROM t WHERE i % 3 = 0")
			s.Exec("VACUUM t")
			s.Exec("UPDATE t SET k = k + 1 WHERE i < 10000")
			table := filepath.Join(s.Dir, s.QueryValue("SELECT pg_relation_filepath('t')"))
			s.Exec("CHECKPOINT")
			end := s.LSN()
			s.Stop(pgserver.Fast)

			var blocks, withLSN int
			relations(t, s.Dir, func(path string, first uint32, b []byte) {
				for ; len(b) > 0; b, first = b[min(page.Size, len(b)):], first+1 {
					p := b[:min(page.Size, len(b))]
					if !page.Check(p, first, true) {
						t.Errorf("%s: %s", path, page.Explain(p, first, true))
						continue
					}
					blocks++
					if !page.IsNew(p) && page.LSN(p) > 0x10000 {
						withLSN++
					}
					if page.LSN(p) > end {
						t.Errorf("%s: block %d has LSN %s, after the end of WAL at %s", path, first, page.LSN(p), end)
					}
				}
			})
			if blocks < 3000 || withLSN < 1000 {
				t.Fatalf("there are only %d blocks, %d with an LSN; the test shows less than it says", blocks, withLSN)
			}
			if out := pgtest.Run(t, major, "pg_checksums", "--check", "-D", s.Dir); !strings.Contains(out, "Bad checksums:  0") {
				t.Fatalf("pg_checksums disagrees: %s", out)
			}

			b, err := os.ReadFile(table)
			if err != nil {
				t.Fatal(err)
			}
			r := rand.New(rand.NewPCG(uint64(major), 0))
			var flipped int
			for block := range uint32(8) {
				p := b[block*page.Size:][:page.Size]
				positions := r.Perm(8 * page.Size)[:500]
				for bit := range 8 * 24 { // all of the header
					positions = append(positions, bit)
				}
				for _, bit := range positions {
					p[bit/8] ^= 1 << (bit % 8)
					if page.Check(p, block, true) {
						t.Errorf("block %d with bit %d flipped is accepted", block, bit)
					}
					p[bit/8] ^= 1 << (bit % 8)
				}
				p[r.IntN(page.Size-24)+24] ^= 1 << r.IntN(8)
				flipped++
			}
			if err := os.WriteFile(table, b, 0o600); err != nil {
				t.Fatal(err)
			}
			var bad int
			relations(t, s.Dir, func(path string, first uint32, b []byte) {
				for i := 0; i < len(b); i, first = i+page.Size, first+1 {
					if f := page.Explain(b[i:i+page.Size], first, true); f.Kind == page.BadChecksum && path == table {
						bad++
					} else if f.Kind != page.None {
						t.Errorf("%s: %s", path, f)
					}
				}
			})
			cmd := pgtest.Command(t, major, "pg_checksums", "--check", "-D", s.Dir)
			out, err := cmd.CombinedOutput()
			if want := fmt.Sprintf("Bad checksums:  %d\n", flipped); bad != flipped || err == nil || !strings.Contains(string(out), want) {
				t.Errorf("%d pages were damaged, %d are found; pg_checksums (%v): %s", flipped, bad, err, out)
			}
		})
	}
}

// FuzzCheck gives Check anything at all. If fix is set, the checksum is made
// right, so that it is not all that ever refuses anything.
func FuzzCheck(f *testing.F) {
	f.Add([]byte{}, uint32(0), false)
	f.Add(make([]byte, page.Size), uint32(1), true)
	f.Add(filled(rand.New(rand.NewPCG(0, 0)), 2), uint32(2), false)
	f.Add(filled(rand.New(rand.NewPCG(0, 0)), 2)[:100], uint32(2), false)
	f.Fuzz(func(t *testing.T, p []byte, block uint32, fix bool) {
		p = append([]byte(nil), p...) // not ours to change
		if fix && len(p) > 0 && len(p) < page.Size {
			p = append(p, make([]byte, page.Size-len(p))...)
		}
		if fix && len(p) == page.Size {
			binary.LittleEndian.PutUint16(p[8:], reference(p, block))
		}
		for _, checksums := range []bool{true, false} {
			ok, fault := page.Check(p, block, checksums), page.Explain(p, block, checksums)
			if ok != (fault.Kind == page.None) || ok != (fault.Detail == "") || fault.Block != block {
				t.Fatalf("checksums %t: ok %t, fault %+v", checksums, ok, fault)
			}
			if ok && checksums && !page.IsZero(p) && page.Stored(p) != reference(p, block) {
				t.Fatal("accepted with a checksum that is not the reference's")
			}
			if ok && checksums && !page.Check(p, block, false) {
				t.Fatal("accepted with a checksum, refused without")
			}
		}
	})
}

func TestCheckDoesNotAllocate(t *testing.T) {
	p := filled(rand.New(rand.NewPCG(0, 0)), 3)
	if n := testing.AllocsPerRun(100, func() { page.Check(p, 3, true) }); n != 0 {
		t.Errorf("Check allocates %v times", n)
	}
}

// The pages of a piece as it is read from a file; not one page over and over,
// which would always be in the first cache.
func benchmark(b *testing.B, one func(p []byte, block uint32) bool) {
	r := rand.New(rand.NewPCG(0, 0))
	var piece []byte
	for block := range uint32(32) {
		piece = append(piece, filled(r, block)...)
	}
	b.SetBytes(int64(len(piece)))
	for b.Loop() {
		for block := range uint32(32) {
			if !one(piece[block*page.Size:][:page.Size], block) {
				b.Fatal("refused")
			}
		}
	}
}

func BenchmarkCheck(b *testing.B) {
	benchmark(b, func(p []byte, block uint32) bool { return page.Check(p, block, true) })
}

func BenchmarkCheckHeader(b *testing.B) {
	benchmark(b, func(p []byte, block uint32) bool { return page.Check(p, block, false) })
}

func BenchmarkReference(b *testing.B) {
	benchmark(b, func(p []byte, block uint32) bool { return page.Stored(p) == reference(p, block) })
}

func BenchmarkZero(b *testing.B) {
	p := make([]byte, page.Size)
	b.SetBytes(page.Size)
	for b.Loop() {
		if !page.Check(p, 0, true) {
			b.Fatal("refused")
		}
	}
}
