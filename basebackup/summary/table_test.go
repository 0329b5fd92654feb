package summary

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rideau/internal/pgtest"
	"rideau/wal"
)

// What servers write down under all that relations go through must be read as
// they read it themselves, file by file and then merged.
func TestAgainstServers(t *testing.T) {
	for _, major := range []int{17, 18} {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major, Settings: map[string]string{
				"summarize_wal": "on", "autovacuum": "off", "checkpoint_timeout": "1h",
			}})
			for _, sql := range []string{
				"CREATE TABLE t (id int, filler text); INSERT INTO t SELECT i, repeat('x', 500) FROM generate_series(1, 20000) i",
				"CREATE INDEX ON t (id); DELETE FROM t WHERE id > 10000",
				"VACUUM t", // truncates
				"INSERT INTO t SELECT i, repeat('y', 500) FROM generate_series(1, 5000) i; CREATE TABLE gone AS SELECT 1",
				"CREATE DATABASE one STRATEGY = file_copy",
				"CREATE DATABASE two STRATEGY = wal_log",
				"DROP TABLE gone; TRUNCATE t; INSERT INTO t SELECT i, 'z' FROM generate_series(1, 100) i",
				"DROP DATABASE one",
			} {
				s.Exec(sql)
				s.Exec("CHECKPOINT") // a summary ends at each
			}
			// More than 4095 blocks of a chunk: its bitmap form.
			s.Exec("CREATE TABLE big (x text STORAGE PLAIN); INSERT INTO big SELECT repeat('b', 7000) FROM generate_series(1, 5000)")
			s.Exec("CHECKPOINT")
			end := s.QueryValue("SELECT redo_lsn FROM pg_control_checkpoint()")
			s.WaitQuery("t", "SELECT bool_or(end_lsn >= '"+end+"') FROM pg_available_wal_summaries()")

			dir := filepath.Join(s.Dir, "pg_wal", "summaries")
			var names []Name
			all := map[Fork]reference{}
			table := &Table{}
			bitmaps, limits, databases := 0, 0, 0
			for _, row := range s.Query("SELECT tli, start_lsn, end_lsn FROM pg_available_wal_summaries() ORDER BY start_lsn") {
				n := Name{TLI: 1, Start: lsn(t, row[1]), End: lsn(t, row[2])}
				names = append(names, n)
				b, err := os.ReadFile(filepath.Join(dir, n.String()))
				if err != nil {
					t.Fatal(err)
				}
				got := contents(t, b)
				want := map[string]bool{}
				for _, r := range s.Query("SELECT reltablespace, reldatabase, relfilenode, relforknumber, relblocknumber, is_limit_block FROM pg_wal_summary_contents(1, $1::text::pg_lsn, $2::text::pg_lsn)", row[1], row[2]) {
					want[strings.Join(r, " ")] = true
				}
				if len(got) != len(want) {
					t.Errorf("%s: %d lines, the server has %d", n, len(got), len(want))
				}
				for line := range want {
					if !got[line] {
						t.Errorf("%s: the server has %q", n, line)
					}
				}
				refer(t, all, b)
				if err := table.Add(bytes.NewReader(b)); err != nil {
					t.Fatalf("%s: %v", n, err)
				}
			}
			for f, c := range table.forks {
				if f.Relation == 0 {
					databases++
				}
				if c.limit != InvalidBlock {
					limits++
				}
				for _, k := range c.chunks {
					if k.bitmap != nil {
						bitmaps++
					}
				}
			}
			if bitmaps == 0 || limits == 0 || databases == 0 {
				t.Errorf("the churn made %d bitmaps, %d limits, %d databases: all must be seen", bitmaps, limits, databases)
			}
			check(t, table, all)
			if _, err := Cover(names, &wal.History{TLI: 1}, names[0].Start, lsn(t, end)); err != nil {
				t.Errorf("the server's summaries do not cover its WAL: %v", err)
			}
			t.Logf("%d files, %d forks", len(names), table.Len())
		})
	}
}

func lsn(t *testing.T, s string) wal.LSN {
	t.Helper()
	l, err := wal.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// contents is a file as pg_wal_summary_contents prints it.
func contents(t *testing.T, file []byte) map[string]bool {
	t.Helper()
	lines := map[string]bool{}
	for f, r := range entries(t, file) {
		prefix := fmt.Sprint(f.Tablespace, f.Database, f.Relation, f.Fork)
		if r.limit != InvalidBlock {
			lines[fmt.Sprint(prefix, " ", r.limit, " t")] = true
		}
		for b := range r.blocks {
			lines[fmt.Sprint(prefix, " ", b, " f")] = true
		}
	}
	return lines
}

// A reference is the plainest form of Changes.
type reference struct {
	limit  uint32
	blocks map[uint32]bool
}

// entries reads a file into the plainest form there is.
func entries(t *testing.T, file []byte) map[Fork]reference {
	t.Helper()
	all := map[Fork]reference{}
	var f Fork
	err := read(bytes.NewReader(file), func(g Fork, limit uint32) {
		f = g
		all[f] = reference{limit: limit, blocks: map[uint32]bool{}}
	}, func(n int, words []uint16) {
		for i, w := range words {
			if len(words) < maxEntries {
				all[f].blocks[uint32(n)*blocksPerChunk+uint32(w)] = true
				continue
			}
			for bit := range 16 {
				if w&(1<<bit) != 0 {
					all[f].blocks[uint32(n)*blocksPerChunk+uint32(i*16+bit)] = true
				}
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func refer(t *testing.T, all map[Fork]reference, file []byte) {
	t.Helper()
	for f, r := range entries(t, file) {
		old, ok := all[f]
		if !ok {
			old = reference{limit: InvalidBlock, blocks: map[uint32]bool{}}
		}
		old.limit = min(old.limit, r.limit)
		for b := range r.blocks {
			old.blocks[b] = true
		}
		all[f] = old
	}
}

// check holds a table against the plain form.
func check(t *testing.T, table *Table, all map[Fork]reference) {
	t.Helper()
	if table.Len() != len(all) {
		t.Errorf("the table has %d forks, want %d", table.Len(), len(all))
	}
	for f, r := range all {
		c := table.Lookup(f)
		_, wholeDatabase := all[Fork{Tablespace: f.Tablespace, Database: f.Database}]
		if wholeDatabase {
			if c == nil || c.Limit() != 0 {
				t.Errorf("%v: its database counts as changed, but not it", f)
			}
			continue
		}
		if c == nil || c.Limit() != r.limit {
			t.Errorf("%v: got %+v, want limit %d", f, c, r.limit)
			continue
		}
		top := uint32(0)
		for b := range r.blocks {
			top = max(top, b+1)
		}
		for _, span := range [][2]uint32{{0, top + 3}, {top / 3, top / 2}, {top, top}} {
			var want []uint32
			for b := range r.blocks {
				if b >= span[0] && b < span[1] && b < r.limit {
					want = append(want, b)
				}
			}
			for b := max(span[0], r.limit); b < span[1]; b++ {
				want = append(want, b)
			}
			slices.Sort(want)
			if got := slices.Collect(c.Blocks(span[0], span[1])); !slices.Equal(got, want) {
				t.Errorf("%v: blocks %d to %d: got %d of them, want %d", f, span[0], span[1], len(got), len(want))
			}
		}
	}
}

// write makes a file as WriteBlockRefTable does.
func write(all map[Fork]reference) []byte {
	b := binary.LittleEndian.AppendUint32(nil, magic)
	for f, r := range all {
		chunks := map[uint32][]uint16{}
		n := uint32(0)
		for k := range r.blocks {
			chunks[k/blocksPerChunk] = append(chunks[k/blocksPerChunk], uint16(k%blocksPerChunk))
			n = max(n, k/blocksPerChunk+1)
		}
		for _, v := range []uint32{f.Tablespace, f.Database, f.Relation, uint32(f.Fork), r.limit, n} {
			b = binary.LittleEndian.AppendUint32(b, v)
		}
		for i := range n {
			b = binary.LittleEndian.AppendUint16(b, uint16(min(len(chunks[i]), maxEntries)))
		}
		for i := range n {
			words := chunks[i]
			if len(words) >= maxEntries {
				words = make([]uint16, maxEntries)
				for _, o := range chunks[i] {
					words[o/16] |= 1 << (o % 16)
				}
			}
			for _, w := range words {
				b = binary.LittleEndian.AppendUint16(b, w)
			}
		}
	}
	b = append(b, make([]byte, entryHeaderSize)...)
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// Whatever files say, and in whatever order they come, the table is their union.
func TestMergeAtRandom(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	t.Logf("seed %d", seed)
	for range 20 {
		all := map[Fork]reference{}
		var files [][]byte
		for range 1 + rng.IntN(4) {
			file := map[Fork]reference{}
			for range rng.IntN(6) {
				r := reference{limit: InvalidBlock, blocks: map[uint32]bool{}}
				if rng.IntN(3) == 0 {
					r.limit = rng.Uint32N(3 * blocksPerChunk)
				}
				for range []int{0, 3, 2000, 5000}[rng.IntN(4)] {
					r.blocks[rng.Uint32N(uint32(1+rng.IntN(3))*blocksPerChunk)] = true
				}
				file[Fork{Tablespace: 1663, Database: 5, Relation: 1 + rng.Uint32N(4), Fork: rng.Int32N(3)}] = r
			}
			b := write(file)
			refer(t, all, b)
			files = append(files, b)
		}
		rng.Shuffle(len(files), func(i, j int) { files[i], files[j] = files[j], files[i] })
		table := &Table{}
		for _, b := range files {
			if err := table.Add(bytes.NewReader(b)); err != nil {
				t.Fatal(err)
			}
		}
		check(t, table, all)
	}
}

// A table that has seen a damaged file must not make anyone keep old blocks.
func TestDamage(t *testing.T) {
	f := Fork{Tablespace: 1663, Database: 5, Relation: 16384}
	good := write(map[Fork]reference{f: {limit: InvalidBlock, blocks: map[uint32]bool{7: true}}})
	for name, b := range map[string][]byte{
		"empty":     nil,
		"no magic":  append([]byte{0}, good[1:]...),
		"truncated": good[:len(good)-1],
		"longer":    append(slices.Clone(good), 0),
	} {
		damaged(t, name, b)
	}
	for i := range len(good) * 8 {
		b := slices.Clone(good)
		b[i/8] ^= 1 << (i % 8)
		damaged(t, fmt.Sprintf("bit %d of byte %d", i%8, i/8), b)
	}
}

func damaged(t *testing.T, name string, b []byte) {
	t.Helper()
	table := &Table{}
	err := table.Add(bytes.NewReader(b))
	var corrupt *CorruptError
	if !errors.As(err, &corrupt) {
		t.Errorf("%s: got error %v, want a CorruptError", name, err)
	}
	if c := table.Lookup(Fork{Tablespace: 1, Relation: 1}); c == nil || c.Limit() != 0 {
		t.Errorf("%s: got %+v of a fork that is not in it, want all changed", name, c)
	}
	if again := table.Add(bytes.NewReader(nil)); again != err {
		t.Errorf("%s: the next Add answers %v", name, again)
	}
}

func TestUnknownForkIsUnchanged(t *testing.T) {
	c := (&Table{}).Lookup(Fork{Relation: 1})
	if c != nil || len(slices.Collect(c.Blocks(0, 100))) != 0 {
		t.Errorf("got %+v, want nothing changed", c)
	}
}

func FuzzAdd(f *testing.F) {
	f.Add(write(map[Fork]reference{{Relation: 1}: {limit: 3, blocks: map[uint32]bool{7: true, 70000: true}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= 4 { // with a CRC that is right, or little would ever be merged
			b = slices.Clone(b)
			binary.LittleEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b[:len(b)-4], castagnoli))
		}
		table := &Table{}
		if table.Add(bytes.NewReader(b)) != nil {
			return
		}
		for _, c := range table.forks {
			last, some := uint32(0), false
			for b := range c.Blocks(0, min(c.limit, 1<<20)) {
				if some && b <= last {
					t.Fatalf("block %d comes after %d", b, last)
				}
				last, some = b, true
			}
		}
	})
}
