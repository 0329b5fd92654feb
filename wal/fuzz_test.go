package wal_test

import (
	"encoding/binary"
	"hash/crc32"
	"slices"
	"testing"

	"rideau/wal"
)

// small WAL for a fuzzer to change: two pages or three, with all that matters.
func fuzzSeeds() (seeds []*builder) {
	add := func(build func(w *builder)) {
		w := newBuilder()
		build(w)
		seeds = append(seeds, w)
	}
	add(func(w *builder) { w.message(0); w.message(1); w.message(300) })
	add(func(w *builder) { w.fill(8); w.message(100); w.fill(16); w.message(pageSize) })
	add(func(w *builder) {
		lost := w.some(wal.RMgrLogicalMessage, 0, make([]byte, 3*pageSize), 1)
		w.overwrite(lost)
		w.message(7)
	})
	add(func(w *builder) { // what a page continues, and padding after it
		w.page(12)
		w.b[2] |= 1
		w.b = append(w.b, make([]byte, 16)...)
		w.message(30)
	})
	add(func(w *builder) { // the end of XLOG_SWITCH, and padding
		w.page(8)
		w.b = append(w.b, 0x40, 0, 0, 0, 1, 2, 3, 4)
		w.b = append(w.b, make([]byte, 2*pageSize)...)
	})
	add(func(w *builder) { w.record(wal.RMgrXLOG, 0x40, nil); w.b = append(w.b, make([]byte, 100)...) })
	return seeds
}

// FuzzChecker gives a Checker anything at all. It must not panic, and what it
// accepts does not depend on the pieces in which it comes; a Reader and FindEnd
// accept the same. If fix is set, the CRC of what seems to be the first record
// is made right, so that it is not all that ever refuses anything.
func FuzzChecker(f *testing.F) {
	for i, w := range fuzzSeeds() {
		f.Add(w.b, uint16(1+i*13), i%2 == 0)
	}
	f.Fuzz(func(t *testing.T, b []byte, piece uint16, fix bool) {
		const from = 0x300000
		b = slices.Clone(b) // not ours to change
		if fix {
			fixCRC(b)
		}
		one := wal.NewChecker(megabyte, systemID, 2, from)
		n, err := one.Write(b)
		if n < 0 || n > len(b) || err == nil && n != len(b) || one.Pos() != from+wal.LSN(n) {
			t.Fatalf("wrote %d of %d bytes, Pos %s, error %v", n, len(b), one.Pos(), err)
		}
		if err != nil {
			corrupt(t, err)
		}
		if one.End() < from || one.End() > one.Pos() || one.Prev() != 0 && one.Prev() >= one.End() {
			t.Fatalf("End %s, Pos %s, Prev %s", one.End(), one.Pos(), one.Prev())
		}

		many := wal.NewChecker(megabyte, systemID, 2, from)
		errMany := pieces(many, b, 1+int(piece))
		if many.End() != one.End() || many.Prev() != one.Prev() || (errMany == nil) != (err == nil) || err != nil && errMany.Error() != err.Error() {
			t.Fatalf("in pieces of %d: End %s, Prev %s, %v; in one: End %s, Prev %s, %v",
				1+int(piece), many.End(), many.Prev(), errMany, one.End(), one.Prev(), err)
		}

		src := memory{from, b}
		lsns, end, err := readAll(wal.NewReader(src, megabyte, systemID, 2, from))
		if err != wal.ErrEndOfWAL {
			corrupt(t, err)
		}
		last := wal.LSN(0)
		if len(lsns) > 0 {
			last = lsns[len(lsns)-1]
		}
		// A Reader says at once that XLOG_SWITCH ends with its segment.
		padding := end == megabyte.Next(one.End()-1) && one.End() == from+wal.LSN(len(b))
		if last != one.Prev() || end != one.End() && !padding {
			t.Fatalf("the Reader: after %s at %s; the Checker: after %s at %s", last, end, one.Prev(), one.End())
		}

		c, why, err := wal.FindEnd(src, megabyte, systemID, 2, from)
		if err != nil || why == nil || c.Pos() != one.End() || c.End() != one.End() || c.Prev() != one.Prev() {
			t.Fatalf("FindEnd: End %s, Pos %s, Prev %s, %v, %v; want %s, %s", c.End(), c.Pos(), c.Prev(), why, err, one.End(), one.Prev())
		}

		one.Resume()
		if _, err := one.Write(b[one.Pos()-from:]); one.End() != c.End() {
			t.Fatalf("resumed, End is %s, not %s: %v", one.End(), c.End(), err)
		}
	})
}

// fixCRC makes the CRC right of what seems to be a record on the first page.
func fixCRC(b []byte) {
	const at = 40
	if len(b) < at+24 {
		return
	}
	n := binary.LittleEndian.Uint32(b[at:])
	if n < 24 || int(n) > min(len(b), pageSize)-at {
		return
	}
	crc := crc32.Update(0, castagnoli, b[at+24:at+int(n)])
	crc = crc32.Update(crc, castagnoli, b[at:at+20])
	binary.LittleEndian.PutUint32(b[at+20:], crc)
}

// FuzzReader gives Decode and String whatever a record with a good CRC may
// hold: what a server of another version, or with an extension, wrote there.
func FuzzReader(f *testing.F) {
	magics := []uint16{0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118, 0xD121}
	for _, g := range readGolden(f) {
		r := wal.NewReader(g, megabyte, 0, 0, g.base)
		for seen := map[string]bool{}; ; {
			rec, err := r.Next()
			if err != nil {
				break
			}
			if op := rec.RMgr.String() + rec.Operation(); !seen[op] && rec.Length < 1000 {
				seen[op] = true
				f.Add(uint8(g.major-13), uint8(rec.RMgr), rec.Info, append([]byte(nil), rec.Data()...))
			}
		}
	}
	f.Fuzz(func(t *testing.T, version, rm, info uint8, data []byte) {
		w := newBuilder()
		w.magic = magics[int(version)%len(magics)]
		if len(data) > 1<<20 {
			return
		}
		at := w.record(wal.RMgr(rm), info, data)
		rec, err := wal.NewReader(w, w.size, 0, 0, w.base).Next()
		if err != nil {
			if rm >= 22 || rm == 0 && info&0xF0 == 0x40 { // no such resource manager; its segment is not there
				return
			}
			t.Fatal(err)
		}
		if rec.LSN != at || string(rec.Data()) != string(data) || rec.Info != info || rec.RMgr != wal.RMgr(rm) {
			t.Fatalf("wrote %d %02x %q, read %d %02x %q", rm, info, data, rec.RMgr, rec.Info, rec.Data())
		}
		content, err := rec.Decode()
		if rec.String() == "" {
			t.Fatal("nothing is said of a record")
		}
		if err != nil {
			corrupt(t, err)
			return
		}
		// All of the data is something, and nothing is it twice.
		total := len(content.Main)
		for _, b := range content.Blocks {
			total += len(b.Image) + len(b.Data)
			if b.Image != nil && b.Compression == "" && len(b.Image)+int(b.HoleLength) != pageSize {
				t.Fatalf("an image of %d bytes with a hole of %d", len(b.Image), b.HoleLength)
			}
		}
		if total > len(data) {
			t.Fatalf("there are %d bytes in %d", total, len(data))
		}
	})
}
