package wal_test

import (
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"testing"

	"rideau/wal"
)

// What servers write, and what must be made of it. The name of the row says
// why it is good. Each is given to a Checker in pieces of many sizes, and to a
// Reader, and all must agree.
var good = []struct {
	name  string
	build func(w *builder) (from, last wal.LSN) // where to start; where the last record begins
}{
	{"records within a page", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(100)
		w.message(1)
		return w.base, w.message(0)
	}},
	{"a record that ends where its page does", func(w *builder) (wal.LSN, wal.LSN) {
		w.fill(0)
		return w.base, w.message(10)
	}},
	{"a record of which 8 bytes are on its first page: its length, and no more of its header", func(w *builder) (wal.LSN, wal.LSN) {
		w.fill(8)
		return w.base, w.message(50)
	}},
	{"a record of which 16 bytes are on its first page", func(w *builder) (wal.LSN, wal.LSN) {
		w.fill(16)
		return w.base, w.message(50)
	}},
	{"a record of which only the header is on its first page", func(w *builder) (wal.LSN, wal.LSN) {
		w.fill(24)
		return w.base, w.message(50)
	}},
	{"a record of many pages, over the end of a segment", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(3 << 20)
		return w.base, w.message(10)
	}},
	{"a record that ends with a page it does not begin on", func(w *builder) (wal.LSN, wal.LSN) {
		w.fill(100)
		w.message(100 - 24 + pageSize - 24)
		return w.base, w.message(10)
	}},
	{"after XLOG_SWITCH the segment is padding", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(100)
		w.switchWAL()
		return w.base, w.message(10)
	}},
	{"nothing looks at the padding: a file that was used again may have anything there", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(100)
		from := w.switchWAL() + 24
		for i := range w.at(from) {
			w.at(from)[i] = 0xAA
		}
		return w.base, w.message(10)
	}},
	{"XLOG_SWITCH that ends where its segment does has no padding", func(w *builder) (wal.LSN, wal.LSN) {
		w.fillSegment(24)
		w.switchWAL()
		return w.base, w.message(10)
	}},
	{"XLOG_SWITCH that begins in one segment and ends in the next pads the next", func(w *builder) (wal.LSN, wal.LSN) {
		w.fillSegment(8)
		w.switchWAL()
		return w.base, w.message(10)
	}},
	{"the same, of which only the end is known", func(w *builder) (wal.LSN, wal.LSN) {
		w.fillSegment(8)
		w.switchWAL()
		return w.base + 1<<20, w.message(10)
	}},
	{"the same, with more of it in the second segment", func(w *builder) (wal.LSN, wal.LSN) {
		w.fillSegment(16)
		w.switchWAL()
		return w.base + 1<<20, w.message(10)
	}},
	{"the end of a record that began before the start is skipped", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(1<<20 + 12345)
		return w.base + 1<<20, w.message(10)
	}},
	{"and it may be all of the first page", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(1<<20 + 3*pageSize)
		return w.base + 1<<20, w.message(10)
	}},
	{"it is skipped from a page that is not a segment's first, too", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(3 * pageSize)
		return w.base + pageSize, w.message(10)
	}},
	{"a record may be the start", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(100)
		from := w.message(200)
		w.message(pageSize)
		return from, w.message(10)
	}},
	{"an incomplete record is overwritten", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(100)
		lost := w.some(wal.RMgrLogicalMessage, 0, make([]byte, 3*pageSize), 2)
		w.overwrite(lost)
		return w.base, w.message(10)
	}},
	{"an incomplete record is overwritten of which there is not even the header", func(w *builder) (wal.LSN, wal.LSN) {
		w.fill(8)
		lost := w.some(wal.RMgrLogicalMessage, 0, make([]byte, 100), 1)
		w.overwrite(lost)
		return w.base, w.message(10)
	}},
	{"an incomplete record is overwritten that began before the start", func(w *builder) (wal.LSN, wal.LSN) {
		lost := w.some(wal.RMgrLogicalMessage, 0, make([]byte, 3*pageSize), 2)
		w.overwrite(lost)
		return w.base + pageSize, w.message(10)
	}},
	{"an incomplete record is overwritten by the first page", func(w *builder) (wal.LSN, wal.LSN) {
		lost := w.some(wal.RMgrLogicalMessage, 0, make([]byte, 3*pageSize), 2)
		w.overwrite(lost)
		return w.base + 2*pageSize, w.message(10)
	}},
	{"a new timeline's copy of a segment begins with the old one's pages", func(w *builder) (wal.LSN, wal.LSN) {
		w.message(10000)
		w.tli = 2 // of three: that of the stream
		w.message(10000)
		w.tli = 3
		return w.base, w.message(10000)
	}},
	{"WAL of 13", func(w *builder) (wal.LSN, wal.LSN) {
		w.magic = 0xD106
		return w.base, w.message(20000)
	}},
	{"WAL of 19, which gave another bit to overwritten records", func(w *builder) (wal.LSN, wal.LSN) {
		w.magic = 0xD121
		lost := w.some(wal.RMgrLogicalMessage, 0, make([]byte, 3*pageSize), 2)
		w.overwrite(lost)
		return w.base, w.message(10)
	}},
	{"records of extensions, since 15", func(w *builder) (wal.LSN, wal.LSN) {
		w.magic = 0xD110
		return w.base, w.record(200, 0x10, make([]byte, 30))
	}},
	{"segments of 1 GB", func(w *builder) (wal.LSN, wal.LSN) {
		w.size, w.base, w.prev = 1<<30, 1<<30, 0
		w.message(20000)
		return w.base, w.message(10)
	}},
	{"the first record of a cluster has none before it", func(w *builder) (wal.LSN, wal.LSN) {
		w.prev = 0
		return w.base, w.message(10)
	}},
}

func TestGood(t *testing.T) {
	for _, tt := range good {
		t.Run(tt.name, func(t *testing.T) {
			w := newBuilder()
			from, last := tt.build(w)
			for _, n := range []int{1 << 30, 1 << 17, pageSize, 4096, 1000, 100, 7, 1} {
				c := wal.NewChecker(w.size, systemID, 3, from)
				if err := pieces(c, w.at(from), n); err != nil {
					t.Fatalf("in pieces of %d: %v", n, err)
				}
				if c.Pos() != w.pos() || c.End() != w.pos() || c.Prev() != last {
					t.Fatalf("in pieces of %d: Pos %s, End %s, Prev %s; want %s, %[5]s, %s", n, c.Pos(), c.End(), c.Prev(), w.pos(), last)
				}
			}

			lsns, end, err := readAll(wal.NewReader(w, w.size, systemID, 3, from))
			if err != wal.ErrEndOfWAL || end != w.pos() || lsns[len(lsns)-1] != last {
				t.Fatalf("the Reader ended at %s after the record at %s: %v; want %s, %s", end, lsns[len(lsns)-1], err, w.pos(), last)
			}

			c, why, err := wal.FindEnd(w, w.size, systemID, 3, from)
			if err != nil || why != wal.ErrEndOfWAL || c.Pos() != w.pos() || c.End() != w.pos() || c.Prev() != last {
				t.Fatalf("FindEnd: Pos %s, End %s, Prev %s, %v, %v; want %s, %[6]s, %s", c.Pos(), c.End(), c.Prev(), why, err, w.pos(), last)
			}
		})
	}
}

// Wherever WAL is cut, the end that is found is between the last whole record
// and the cut, and a checker that continues from there accepts the rest.
func TestEndAnywhere(t *testing.T) {
	for _, tt := range good {
		t.Run(tt.name, func(t *testing.T) {
			w := newBuilder()
			from, last := tt.build(w)
			all := w.at(from)
			step := max(1, len(all)/60) | 1
			end := from
			for cut := 0; cut <= len(all); cut += step {
				part := memory{from, all[:cut]}
				c, why, err := wal.FindEnd(part, w.size, systemID, 3, from)
				if err != nil || why != wal.ErrEndOfWAL {
					t.Fatalf("cut after %d bytes: %v, %v", cut, why, err)
				}
				if c.End() < end || c.End() > from+wal.LSN(cut) || c.Pos() != c.End() {
					t.Fatalf("cut after %d bytes: End %s after %s, Pos %s", cut, c.End(), end, c.Pos())
				}
				end = c.End()
				if err := pieces(c, w.at(c.Pos()), 1<<17); err != nil || c.End() != w.pos() || c.Prev() != last {
					t.Fatalf("continued after a cut after %d bytes: End %s, Prev %s, %v", cut, c.End(), c.Prev(), err)
				}

				// A file that was made before it was filled has zeros there.
				part.b = append(slices.Clone(part.b), make([]byte, 2*pageSize)...)
				c, _, err = wal.FindEnd(part, w.size, systemID, 3, from)
				if err != nil || c.End() < end || c.Pos() != c.End() {
					t.Fatalf("zeros after %d bytes: End %s, not %s, Pos %s, %v", cut, c.End(), end, c.Pos(), err)
				}
			}
		})
	}
}

// What no server writes is refused, with where it is and what is wrong. The
// good WAL before it remains good.
func TestCorrupt(t *testing.T) {
	put16 := binary.LittleEndian.PutUint16
	put32 := binary.LittleEndian.PutUint32
	put64 := binary.LittleEndian.PutUint64
	const page = 0x302000 // one that is not the first, and continues nothing
	tests := []struct {
		name   string
		spoil  func(w *builder) (lsn wal.LSN) // the last record before is at 0x301F00; answers what is wrong
		reason string
	}{
		{"a page of no version", func(w *builder) wal.LSN {
			w.message(10)
			put16(w.at(page), 0xD117)
			return page
		}, "page has magic number D117, which is of no supported version"},
		{"a page of another version than the page before", func(w *builder) wal.LSN {
			w.message(10)
			put16(w.at(page), 0xD116)
			return page
		}, "page has magic number D116, after D118"},
		{"info bits that mean nothing", func(w *builder) wal.LSN {
			w.message(10)
			put16(w.at(page)[2:], 0x10)
			return page
		}, "page has info bits 0010"},
		{"a page from a file that was used before", func(w *builder) wal.LSN {
			w.message(10)
			put64(w.at(page)[8:], 0x102000)
			return page
		}, "page has address 0/102000"},
		{"a timeline that has ended", func(w *builder) wal.LSN {
			w.tli = 0
			w.message(10)
			return page
		}, "page has timeline 0"},
		{"a timeline from the future", func(w *builder) wal.LSN {
			w.tli = 4
			w.message(10)
			return page
		}, "page has timeline 4, in WAL of timeline 3"},
		{"timelines in the wrong order", func(w *builder) wal.LSN {
			w.tli = 1
			w.message(10)
			return page
		}, "page has timeline 1, after 2"},
		{"a segment without a long header", func(w *builder) wal.LSN {
			w.fillSegment(0)
			w.message(10)
			put16(w.at(0x400000)[2:], 0)
			return 0x400000
		}, "first page of a segment has no long header"},
		{"another cluster", func(w *builder) wal.LSN {
			w.fillSegment(0)
			w.message(10)
			put64(w.at(0x400000)[24:], 42)
			return 0x400000
		}, "page is of the system with identifier 42, not of 7000000000000000001"},
		{"another segment size", func(w *builder) wal.LSN {
			w.fillSegment(0)
			w.message(10)
			put32(w.at(0x400000)[32:], 1<<24)
			return 0x400000
		}, "page is of a segment of 16777216 bytes, not of 1048576"},
		{"another page size", func(w *builder) wal.LSN {
			w.fillSegment(0)
			w.message(10)
			put32(w.at(0x400000)[36:], 16384)
			return 0x400000
		}, "page is of a server with wal_block_size 16384, only 8192 is supported"},

		{"the rest of a record is not there", func(w *builder) wal.LSN {
			w.some(wal.RMgrLogicalMessage, 0, make([]byte, 3*pageSize), 2)
			w.message(10)
			return page + 2*pageSize
		}, "page does not continue the record at 0/302018"},
		{"the rest of another record is there", func(w *builder) wal.LSN {
			w.message(3 * pageSize)
			put32(w.at(page + pageSize)[16:], 1234)
			return page + pageSize
		}, "page has 1234 bytes left of the record at 0/302018, not 16432"},
		{"the rest of a record is there that never began", func(w *builder) wal.LSN {
			w.message(10)
			put16(w.at(page)[2:], 1)
			return page
		}, "page continues a record, but none is incomplete"},
		{"nothing was there to be overwritten", func(w *builder) wal.LSN {
			w.overwrite(0x301F00)
			return page
		}, "page overwrites an incomplete record, but there is none"},
		{"another record is overwritten than the one that is incomplete", func(w *builder) wal.LSN {
			w.some(wal.RMgrLogicalMessage, 0, make([]byte, 3*pageSize), 1)
			return w.overwrite(0x301F00)
		}, "record overwrites the incomplete record at 0/301F00, not the one at 0/302018"},
		{"a record is overwritten by any other", func(w *builder) wal.LSN {
			w.some(wal.RMgrLogicalMessage, 0, make([]byte, 3*pageSize), 1)
			w.over = 8
			return w.message(10)
		}, "page overwrites an incomplete record, but does not begin with XLOG_OVERWRITE_CONTRECORD"},

		{"a record too short for its header", func(w *builder) wal.LSN {
			return w.record(0, 0, make([]byte, 50), func(h []byte) { put32(h, 23) })
		}, "record has length 23, at least 24 is needed for its header"},
		{"a record longer than memory", func(w *builder) wal.LSN {
			return w.record(0, 0, make([]byte, 50), func(h []byte) { put32(h, 1<<30) })
		}, "record has length 1073741824, more than any server can read"},
		{"a record after another than the one before it", func(w *builder) wal.LSN {
			return w.record(0, 0, make([]byte, 50), func(h []byte) { put64(h[8:], 0x301E00) })
		}, "record has prev-link 0/301E00, not 0/301F00"},
		{"the same, in a header that is on two pages", func(w *builder) wal.LSN {
			w.fill(16)
			return w.record(0, 0, make([]byte, 50), func(h []byte) { put64(h[8:], 0x301E00) })
		}, "record has prev-link 0/301E00, not 0/302018"},
		{"a resource manager that there is not", func(w *builder) wal.LSN {
			return w.record(22, 0, make([]byte, 50))
		}, "record has resource manager ID 22"},
		{"padding in the header that is not zero", func(w *builder) wal.LSN {
			return w.record(0, 0, make([]byte, 50), func(h []byte) { h[19] = 1 })
		}, "record has padding that is not zero"},
		{"a record that was changed", func(w *builder) wal.LSN {
			lsn := w.record(0, 0, make([]byte, 50))
			w.at(lsn)[60] = 1
			return lsn
		}, "record has an incorrect checksum"},
		{"a transaction ID that was changed", func(w *builder) wal.LSN {
			lsn := w.record(0, 0, make([]byte, 50))
			w.at(lsn)[4]++
			return lsn
		}, "record has an incorrect checksum"},
		{"a record of several pages that was changed", func(w *builder) wal.LSN {
			lsn := w.record(0, 0, make([]byte, 3*pageSize))
			w.at(lsn)[2*pageSize]++
			return lsn
		}, "record has an incorrect checksum"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newBuilder()
			w.tli = 2
			w.fill(256)
			if lsn := w.message(256 - 24); lsn != 0x301F00 || w.pos() != page {
				t.Fatalf("the good record is at %s, and ends at %s", lsn, w.pos())
			}
			want := tt.spoil(w)
			w.message(20000) // so that nothing ends for want of more

			end := w.base
			for n := range 1 + len(tt.name) { // some sizes
				c := wal.NewChecker(w.size, systemID, 3, w.base)
				err := pieces(c, w.b, 1+n*n*n)
				got := corrupt(t, err)
				if got.LSN != want || got.Reason != tt.reason {
					t.Fatalf("in pieces of %d: got %q, want %q at %s", 1+n*n*n, got, tt.reason, want)
				}
				if c.End() > want || c.End() <= c.Prev() || n > 0 && c.End() != end {
					t.Fatalf("in pieces of %d: End %s, was %s, Prev %s", 1+n*n*n, c.End(), end, c.Prev())
				}
				end = c.End()
				if _, again := c.Write([]byte{0}); again != err {
					t.Fatalf("wrote on after %v: %v", err, again)
				}
				if c.Resume() != end || c.Pos() != end || c.End() != end {
					t.Fatalf("resumed at %s, not at %s", c.Pos(), end)
				}
				if err := pieces(c, w.at(end), 1<<20); err == nil || err.Error() != got.Error() {
					t.Fatalf("resumed at %s: %v, not %v", end, err, got)
				}
			}

			_, readerEnd, err := readAll(wal.NewReader(w, w.size, systemID, 3, w.base))
			if got := corrupt(t, err); got.LSN != want || got.Reason != tt.reason || readerEnd != end {
				t.Errorf("the Reader said %v and stayed at %s, want %q at %s, and %s", got, readerEnd, tt.reason, want, end)
			}
			c, why, err := wal.FindEnd(w, w.size, systemID, 3, w.base)
			if err != nil || c.Pos() != end || corrupt(t, why).Reason != tt.reason {
				t.Errorf("FindEnd: %s because %v, %v", c.Pos(), why, err)
			}
		})
	}
}

// Some are wrong at the very start.
func TestCorruptStart(t *testing.T) {
	tests := []struct {
		name   string
		build  func(w *builder) (from, lsn wal.LSN)
		reason string
	}{
		{"extensions had no records before 15", func(w *builder) (wal.LSN, wal.LSN) {
			w.magic = 0xD10D
			return w.base, w.record(200, 0, nil)
		}, "record has resource manager ID 200"},
		{"a first record that comes after itself", func(w *builder) (wal.LSN, wal.LSN) {
			w.prev = w.base + 40
			return w.base, w.message(10)
		}, "record has prev-link 0/300028"},
		{"a record does not begin anywhere", func(w *builder) (wal.LSN, wal.LSN) {
			w.message(100)
			return w.base + 100, w.base + 100
		}, "no record can begin there, in segments of 1048576 bytes"},
		{"a record does not begin in a page's header", func(w *builder) (wal.LSN, wal.LSN) {
			w.message(100)
			return w.base + 16, w.base + 16
		}, "no record can begin there, in segments of 1048576 bytes"},
		{"a record is continued of which there is nothing left", func(w *builder) (wal.LSN, wal.LSN) {
			w.message(100)
			w.b[2] |= 1
			return w.base, w.base
		}, "page continues a record of which 0 bytes are left"},
		{"a record is continued that is too long", func(w *builder) (wal.LSN, wal.LSN) {
			w.message(100)
			w.b[2] |= 1
			w.b[19] = 0x80
			return w.base, w.base
		}, "page continues a record of which 2147483648 bytes are left"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newBuilder()
			from, want := tt.build(w)
			c := wal.NewChecker(w.size, systemID, 1, from)
			if got := corrupt(t, pieces(c, w.at(from), 11)); got.LSN != want || got.Reason != tt.reason {
				t.Errorf("got %v, want %q at %s", got, tt.reason, want)
			}
			_, _, err := readAll(wal.NewReader(w, w.size, systemID, 1, from))
			if got := corrupt(t, err); got.LSN != want || got.Reason != tt.reason {
				t.Errorf("the Reader said %v, want %q at %s", got, tt.reason, want)
			}
		})
	}
}

// A server sends only what it wrote: zeros in a stream are not the end of it.
// In files they are.
func TestZeros(t *testing.T) {
	for _, tt := range []struct {
		name string
		fill int // bytes left of the page before the zeros
	}{
		{"where a record must begin", 100},
		{"where a record must begin, with less left than its header needs", 8},
		{"where a page must begin", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newBuilder()
			last := w.fill(tt.fill)
			end := w.pos()
			w.b = append(w.b, make([]byte, 2*pageSize)...)

			c := wal.NewChecker(w.size, systemID, 1, w.base)
			if got := corrupt(t, pieces(c, w.b, 1000)); got.LSN != end || c.End() != end {
				t.Errorf("the Checker said %v, End %s; want %s", got, c.End(), end)
			}
			if lsns, at, err := readAll(wal.NewReader(w, w.size, systemID, 1, w.base)); err != wal.ErrEndOfWAL || at != end || len(lsns) != 1 {
				t.Errorf("the Reader said %v at %s, want %v at %s", err, at, wal.ErrEndOfWAL, end)
			}
			c, why, err := wal.FindEnd(w, w.size, systemID, 1, w.base)
			if err != nil || why != wal.ErrEndOfWAL || c.Pos() != end || c.Prev() != last {
				t.Errorf("FindEnd: %s because %v, %v", c.Pos(), why, err)
			}
		})
	}
}

// After a crash some of what was written last is on disk and some is not, in
// units of sectors. Whatever is lost, all records before it are found.
func TestFindEndTornTail(t *testing.T) {
	w := newBuilder()
	for i := range 60 {
		w.message(i * 97)
	}
	const sector = 512
	for torn := 0; torn+sector <= len(w.b); torn += sector {
		disk := memory{w.base, slices.Clone(w.b)}
		clear(disk.b[torn : torn+sector])
		lsns, end, _ := readAll(wal.NewReader(disk, w.size, systemID, 1, w.base))
		c, _, err := wal.FindEnd(disk, w.size, systemID, 1, w.base)
		if err != nil {
			t.Fatal(err)
		}
		if c.Pos() != end || len(lsns) > 0 && c.Prev() != lsns[len(lsns)-1] {
			t.Errorf("torn at %d: found the end at %s after %s, the Reader at %s", torn, c.Pos(), c.Prev(), end)
		}
		if c.Pos() > w.base+wal.LSN(torn)+sector {
			t.Errorf("torn at %d: found the end at %s", torn, c.Pos())
		}
		if err := pieces(c, w.at(c.Pos()), 1<<17); err != nil || c.End() != w.pos() {
			t.Errorf("torn at %d: could not continue: %v", torn, err)
		}
	}
}

// An error of the disk is not the end of WAL.
func TestReadError(t *testing.T) {
	w := newBuilder()
	w.message(3 << 20)
	src := failing{w, w.base + 1<<20}
	if _, _, err := wal.FindEnd(src, w.size, systemID, 1, w.base); !errors.Is(err, errDisk) {
		t.Errorf("FindEnd: %v", err)
	}
	r := wal.NewReader(src, w.size, systemID, 1, w.base)
	if _, err := r.Next(); !errors.Is(err, errDisk) || r.Pos() != w.base {
		t.Errorf("Next: %v at %s", err, r.Pos())
	}
}

type failing struct {
	io.ReaderAt
	from wal.LSN
}

var errDisk = errors.New("the disk is gone")

func (f failing) ReadAt(p []byte, off int64) (int, error) {
	if wal.LSN(off)+wal.LSN(len(p)) > f.from {
		return 0, errDisk
	}
	return f.ReaderAt.ReadAt(p, off)
}

// A Reader looks again at a source that has grown, and at one whose zeros have
// been filled, wherever it had come to the end.
func TestReaderFollows(t *testing.T) {
	for _, tt := range good {
		t.Run(tt.name, func(t *testing.T) {
			w := newBuilder()
			from, _ := tt.build(w)
			want, _, _ := readAll(wal.NewReader(w, w.size, systemID, 3, from))
			for _, filled := range []bool{false, true} {
				src := &memory{from &^ (pageSize - 1), nil}
				r := wal.NewReader(src, w.size, systemID, 3, from)
				var got []wal.LSN
				all := w.at(src.base)
				step := max(8, len(all)/50&^7)
				for cut := 0; ; cut = min(cut+step, len(all)) {
					src.b = all[:cut]
					if filled {
						src.b = append(slices.Clone(src.b), make([]byte, pageSize)...)
					}
					lsns, _, err := readAll(r)
					got = append(got, lsns...)
					// A record that is followed by zeros before its end looks
					// corrupt until it is whole.
					if err != wal.ErrEndOfWAL && (!filled || cut == len(all)) {
						t.Fatalf("after %d bytes: %v", cut, err)
					}
					if cut == len(all) {
						break
					}
				}
				if !slices.Equal(got, want) {
					t.Errorf("read %d records as WAL grew, %d at once", len(got), len(want))
				}
			}
		})
	}
}

// The hot path of the relay: nothing is allocated for what is good.
func TestCheckerAllocatesNothing(t *testing.T) {
	w := newBuilder()
	for w.pos() < w.base+1<<20 {
		w.message(int(w.pos() % 9000))
	}
	c := wal.NewChecker(w.size, systemID, 1, w.base)
	const n = 1000
	allocs := testing.AllocsPerRun(len(w.b)/n-2, func() {
		p := w.at(c.Pos())[:n]
		if _, err := c.Write(p); err != nil {
			t.Error(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations a Write", allocs)
	}
}
