package archive

import (
	"encoding/binary"
	"hash/crc32"
	"strings"
	"testing"

	"rideau/wal"
)

// A walMaker writes WAL of NOOP records as a server of 15 would.
type walMaker struct {
	tli   wal.TLI
	start wal.LSN // where a segment begins
	prev  wal.LSN
	b     []byte
}

func (m *walMaker) pos() wal.LSN { return m.start + wal.LSN(len(m.b)) }

// page begins a page, on which the first left bytes are of a record begun
// before.
func (m *walMaker) page(left int) {
	le := binary.LittleEndian
	h := make([]byte, 24)
	le.PutUint16(h[0:], 0xD110)
	info := uint16(0)
	if left > 0 {
		info |= 1 // XLP_FIRST_IS_CONTRECORD
	}
	lsn := m.pos()
	if testSize.Offset(lsn) == 0 {
		h = append(h, make([]byte, 16)...)
		info |= longHeaderFlag
		le.PutUint64(h[24:], 7000000000000000001)
		le.PutUint32(h[32:], uint32(testSize))
		le.PutUint32(h[36:], 8192)
	}
	le.PutUint16(h[2:], info)
	le.PutUint32(h[4:], uint32(m.tli))
	le.PutUint64(h[8:], uint64(lsn))
	le.PutUint32(h[16:], uint32(left))
	m.b = append(m.b, h...)
}

// record appends a record with size bytes of data, 256 or more.
func (m *walMaker) record(size int) {
	le := binary.LittleEndian
	rec := make([]byte, 24+5+size)
	le.PutUint32(rec[0:], uint32(len(rec)))
	le.PutUint64(rec[8:], uint64(m.prev))
	rec[16] = 0x20 // XLOG_NOOP
	rec[24] = 254  // XLR_BLOCK_ID_DATA_LONG
	le.PutUint32(rec[25:], uint32(size))
	for i := range size {
		rec[29+i] = byte(i)
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	le.PutUint32(rec[20:], crc32.Update(crc32.Checksum(rec[24:], table), table, rec[:20]))

	if len(m.b)%8192 == 0 {
		m.page(0)
	}
	m.prev = m.pos()
	for len(rec) > 0 {
		n := min(len(rec), 8192-len(m.b)%8192)
		m.b = append(m.b, rec[:n]...)
		rec = rec[n:]
		if len(rec) > 0 {
			m.page(len(rec))
		}
	}
	for len(m.b)%8 != 0 {
		m.b = append(m.b, 0)
	}
}

// fill appends records up to lsn and a little more.
func (m *walMaker) fill(lsn wal.LSN) {
	for m.pos() < lsn {
		m.record(1000 + int(m.pos()%777))
	}
}

// segments adds what was made to texts, in files of their names; the last one,
// not being full, as a partial one.
func (m *walMaker) segments(texts map[string]string) {
	for at := 0; at < len(m.b); at += int(testSize) {
		name := testSize.FileName(m.tli, m.start+wal.LSN(at))
		text := m.b[at:min(at+int(testSize), len(m.b))]
		if len(text) < int(testSize) {
			name += partialSuffix
			text = append(text[:len(text):len(text)], make([]byte, int(testSize)-len(text))...)
		}
		texts[name] = string(text)
	}
}

// promote answers a maker of the new timeline's WAL: it begins with a copy of
// the segment so far.
func (m *walMaker) promote(tli wal.TLI) *walMaker {
	start := testSize.Start(m.pos())
	return &walMaker{tli: tli, start: start, prev: m.prev, b: []byte(string(m.b[start-m.start:]))}
}

// Verify reads across segments and timelines, names what is corrupt, goes on
// behind it, and finds the end in the partial segment.
func TestVerify(t *testing.T) {
	one := &walMaker{tli: 1, start: 0x100000}
	one.fill(0x380000)
	two := one.promote(2)
	two.fill(0x580000)
	three := two.promote(3) // and comes to nothing: 3 is beside the path of 4
	four := two.promote(4)
	two.fill(0x780000)
	four.fill(0x880000)
	end := four.pos()

	good := map[string]string{
		"00000002.history": "1\t" + one.pos().String() + "\tx\n",
		"00000003.history": "1\t" + one.pos().String() + "\tx\n2\t" + three.pos().String() + "\tx\n",
		"00000004.history": "1\t" + one.pos().String() + "\tx\n2\t" + three.pos().String() + "\tx\n",
	}
	for _, m := range []*walMaker{one, two, three, four} {
		m.segments(good)
	}
	verify := func(texts map[string]string, tli wal.TLI) *Report {
		t.Helper()
		a, _ := archiveOf(t, "", texts)
		inv, err := a.Inventory(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		r := inv.Check(tli)
		var last wal.LSN
		if err := a.Verify(t.Context(), r, func(lsn wal.LSN) { last = lsn }); err != nil {
			t.Fatal(err)
		}
		if want := r.Ranges[len(r.Ranges)-1].To; last != want && len(r.Corrupt) == 0 {
			t.Errorf("progress came to %s, want %s", last, want)
		}
		return r
	}

	r := verify(good, 0)
	if !r.Whole() || r.End != end || r.Path.TLI != 4 {
		t.Errorf("timeline 4: whole %v, corrupt %v, end %s, want %s\n%s", r.Whole(), r.Corrupt, r.End, end, describe(r))
	}
	r = verify(good, 2)
	if !r.Whole() || r.End != two.pos() || r.Path.TLI != 2 {
		t.Errorf("timeline 2: whole %v, corrupt %v, end %s, want %s\n%s", r.Whole(), r.Corrupt, r.End, two.pos(), describe(r))
	}

	change := func(name string, at int, to byte) map[string]string {
		texts := map[string]string{}
		for n, text := range good {
			if n == name {
				text = text[:at] + string([]byte{to}) + text[at+1:]
			}
			texts[n] = text
		}
		return texts
	}
	tests := []struct {
		why     string
		texts   map[string]string
		corrupt string // segments
		reason  string
		end     wal.LSN
	}{
		{"a bit in a record of timeline 1", change("000000010000000000000002", 500_000, 0xEE), "000000010000000000000002", "", end},
		{"a page of another place", change("000000020000000000000004", 8*8192+8, 0xEE), "000000020000000000000004", "", end},
		{"a byte in the copy of the switch segment", change("000000040000000000000005", 100_000, 0xEE), "000000040000000000000005", "", end},
		{"the same byte in the old timeline's copy is beside the path", change("000000020000000000000005", 100_000, 0xEE), "", "", end},
		{"a torn end of the partial segment is its end", change("000000040000000000000008.partial", 300_000, 0xEE), "", "", 0},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			r := verify(tt.texts, 0)
			var names []string
			for _, c := range r.Corrupt {
				names = append(names, c.Segment)
				if s := testSize.Start(c.Err.LSN); testSize.FileName(r.Path.TLIAt(s+wal.LSN(testSize)-1), s) != c.Segment {
					t.Errorf("%s is said to be in %s", c.Err.LSN, c.Segment)
				}
			}
			if got := strings.Join(names, " "); got != tt.corrupt || r.Whole() != (tt.corrupt == "") {
				t.Errorf("corrupt: %q, whole %v, want %q", got, r.Whole(), tt.corrupt)
			}
			if tt.end != 0 && r.End != tt.end || tt.end == 0 && (r.End <= 0x800000+290_000 || r.End > 0x800000+300_000) {
				t.Errorf("end %s, want %s", r.End, tt.end)
			}
		})
	}

	t.Run("a hole, and then WAL again", func(t *testing.T) {
		texts := change("", 0, 0)
		delete(texts, "000000020000000000000004")
		if r := verify(texts, 0); r.Whole() || len(r.Ranges) != 2 || len(r.Corrupt) != 0 || r.End != end {
			t.Errorf("%s, end %s", describe(r), r.End)
		}
	})
	t.Run("the last segment ends in zeros, as one made of a partial segment does", func(t *testing.T) {
		texts := change("", 0, 0)
		const last = "000000040000000000000008"
		texts[last] = texts[last+partialSuffix]
		delete(texts, last+partialSuffix)
		if r := verify(texts, 0); !r.Whole() || r.End != end {
			t.Errorf("whole %v, corrupt %v, end %s, want %s", r.Whole(), r.Corrupt, r.End, end)
		}
		// But zeros and then something is a hole.
		texts[last] = texts[last][:testSize-1] + "x"
		if r := verify(texts, 0); r.Whole() || len(r.Corrupt) != 1 || r.Corrupt[0].Err.LSN != end {
			t.Errorf("whole %v, corrupt %v, want it at %s", r.Whole(), r.Corrupt, end)
		}
		// And zeros to the end of a segment are, where another follows.
		delete(texts, last)
		before := "000000040000000000000007"
		texts[before] = texts[before][:testSize/2] + strings.Repeat("\x00", int(testSize/2))
		texts[last] = good[last+partialSuffix]
		if r := verify(texts, 0); r.Whole() || len(r.Corrupt) != 1 || r.Corrupt[0].Segment != before {
			t.Errorf("whole %v, corrupt %v, want it in %s", r.Whole(), r.Corrupt, before)
		}
	})
	t.Run("another cluster's segment", func(t *testing.T) {
		r := verify(change("000000010000000000000002", 24, 0xEE), 0)
		if len(r.Corrupt) != 1 || r.Corrupt[0].Segment != "000000010000000000000002" {
			t.Errorf("corrupt: %v", r.Corrupt)
		}
	})
}

// Records are read through a WAL from any store, at any place.
func TestWAL(t *testing.T) {
	one := &walMaker{tli: 1, start: 0x100000}
	one.fill(0x3FFFFF)
	texts := map[string]string{}
	one.segments(texts)
	a, _ := archiveOf(t, "", texts)
	inv, err := a.Inventory(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	r := inv.Check(0)
	w := a.WAL(t.Context(), r.Ranges[0], r.SegmentSize)
	defer w.Close()
	all := string(one.b[:3<<20])
	for _, c := range []struct{ from, n, want int }{
		{0, 10, 10}, {1<<20 - 5, 10, 10}, {1<<20 - 5, 2<<20 + 5, 2<<20 + 5}, {3<<20 - 5, 10, 5}, {3 << 20, 1, 0}, {100, 1, 1},
	} {
		p := make([]byte, c.n)
		n, err := w.ReadAt(p, int64(r.Ranges[0].From)+int64(c.from))
		if n != c.want || (err != nil) != (c.want < c.n) || string(p[:n]) != all[c.from:c.from+n] {
			t.Errorf("ReadAt of %d bytes at %d: %d, %v; want %d", c.n, c.from, n, err, c.want)
		}
	}
	if _, err := w.ReadAt(make([]byte, 1), 0xFFFFF); err == nil {
		t.Error("read before the beginning")
	}
	reader := wal.NewReader(w, r.SegmentSize, 0, 1, r.Ranges[0].From)
	var last wal.LSN
	for {
		rec, err := reader.Next()
		if err != nil {
			break
		}
		last = rec.LSN
	}
	if last <= 0x3FF000-0x1000 || last >= 0x400000 {
		t.Errorf("the last record read is at %s", last)
	}
}
