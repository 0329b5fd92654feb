package wal_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"io"
	"testing"

	"rideau/wal"
)

const (
	pageSize = 8192
	megabyte = wal.SegmentSize(1 << 20)
	systemID = 7000000000000000001
)

// A builder writes WAL as a server does, or, where a test asks for it, as no
// server does. It begins where a segment does.
type builder struct {
	magic uint16
	tli   wal.TLI
	size  wal.SegmentSize
	base  wal.LSN
	prev  wal.LSN
	b     []byte
	over  uint16 // the flag for the next page, if it overwrites an incomplete record
}

func newBuilder() *builder {
	return &builder{magic: 0xD118, tli: 1, size: megabyte, base: 0x300000, prev: 0x2FFF00}
}

func (w *builder) pos() wal.LSN { return w.base + wal.LSN(len(w.b)) }

// at is what has been written from lsn on, to be spoiled.
func (w *builder) at(lsn wal.LSN) []byte { return w.b[lsn-w.base:] }

// ReadAt makes a builder a source for readers.
func (w *builder) ReadAt(p []byte, off int64) (int, error) {
	return memory{w.base, w.b}.ReadAt(p, off)
}

// memory is WAL in memory, from an LSN on.
type memory struct {
	base wal.LSN
	b    []byte
}

func (m memory) ReadAt(p []byte, off int64) (int, error) {
	if wal.LSN(off) < m.base {
		return 0, errors.New("read before the beginning")
	}
	return bytes.NewReader(m.b).ReadAt(p, off-int64(m.base))
}

var _ io.ReaderAt = memory{}

// page writes a page's header, if pos is where one belongs. Left is how much
// there is of a record from the page before.
func (w *builder) page(left int) {
	pos := w.pos()
	if pos%pageSize != 0 {
		return
	}
	h := make([]byte, 24, 40)
	info := w.over
	w.over = 0
	if left > 0 {
		info |= 1
	}
	if w.size.Offset(pos) == 0 {
		info |= 2
		h = h[:40]
		binary.LittleEndian.PutUint64(h[24:], systemID)
		binary.LittleEndian.PutUint32(h[32:], uint32(w.size))
		binary.LittleEndian.PutUint32(h[36:], pageSize)
	}
	binary.LittleEndian.PutUint16(h, w.magic)
	binary.LittleEndian.PutUint16(h[2:], info)
	binary.LittleEndian.PutUint32(h[4:], uint32(w.tli))
	binary.LittleEndian.PutUint64(h[8:], uint64(pos))
	binary.LittleEndian.PutUint32(h[16:], uint32(left))
	w.b = append(w.b, h...)
}

// record writes a record and answers where it begins. Edits change its header
// before the CRC is computed.
func (w *builder) record(rm wal.RMgr, info uint8, data []byte, edits ...func(header []byte)) wal.LSN {
	return w.some(rm, info, data, 1<<30, edits...)
}

// some writes no more of a record than there is room for on so many pages.
func (w *builder) some(rm wal.RMgr, info uint8, data []byte, pages int, edits ...func(header []byte)) wal.LSN {
	h := make([]byte, 24)
	binary.LittleEndian.PutUint32(h, uint32(24+len(data)))
	binary.LittleEndian.PutUint32(h[4:], 731)
	binary.LittleEndian.PutUint64(h[8:], uint64(w.prev))
	h[16], h[17] = info, byte(rm)
	for _, edit := range edits {
		edit(h)
	}
	crc := crc32.Update(0, castagnoli, data)
	crc = crc32.Update(crc, castagnoli, h[:20])
	binary.LittleEndian.PutUint32(h[20:], crc)

	w.page(0)
	lsn := w.pos()
	for left := append(h, data...); len(left) > 0 && pages > 0; pages-- {
		if len(left) < len(h)+len(data) {
			w.page(len(left))
		}
		n := min(len(left), int(pageSize-w.pos()%pageSize))
		w.b = append(w.b, left[:n]...)
		if left = left[n:]; len(left) == 0 {
			w.prev = lsn
		}
	}
	for len(w.b)%8 != 0 {
		w.b = append(w.b, 0)
	}
	return lsn
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// message writes a record with so many bytes of data, of which nothing is known
// but that they are there.
func (w *builder) message(n int) wal.LSN {
	data := make([]byte, n)
	for i := range data {
		data[i] = byte(i*7 + n)
	}
	return w.record(wal.RMgrLogicalMessage, 0, data)
}

// fill writes a record that leaves so many bytes of the page.
func (w *builder) fill(left int) wal.LSN {
	w.page(0)
	n := int(pageSize-w.pos()%pageSize) - left - 24
	if n < 0 { // on the next page then
		w.message(100)
		return w.fill(left)
	}
	return w.message(n)
}

// fillSegment writes records up to so many bytes from the end of the segment.
func (w *builder) fillSegment(left int) {
	for w.size.Next(w.pos())-w.pos() > pageSize {
		w.fill(0)
	}
	w.fill(left)
}

// switchWAL writes XLOG_SWITCH, and the padding up to the next segment.
func (w *builder) switchWAL() wal.LSN {
	lsn := w.record(wal.RMgrXLOG, 0x40, nil)
	if w.size.Offset(w.pos()) != 0 {
		w.b = append(w.b, make([]byte, w.size.Next(w.pos())-w.pos())...)
	}
	return lsn
}

// overwrite writes XLOG_OVERWRITE_CONTRECORD on a page of its own, as a server
// does that finds an incomplete record at lost.
func (w *builder) overwrite(lost wal.LSN) wal.LSN {
	w.over = 8
	if w.magic >= 0xD120 {
		w.over = 4
	}
	data := make([]byte, 18)
	data[0], data[1] = 255, 16
	binary.LittleEndian.PutUint64(data[2:], uint64(lost))
	return w.record(wal.RMgrXLOG, 0xD0, data)
}

// pieces writes b to c in pieces of so many bytes.
func pieces(c *wal.Checker, b []byte, n int) error {
	for len(b) > 0 {
		p := b[:min(n, len(b))]
		if m, err := c.Write(p); err != nil {
			return err
		} else if m != len(p) {
			return errors.New("short write without an error")
		}
		b = b[len(p):]
	}
	return nil
}

// readAll reads records until something ends them.
func readAll(r *wal.Reader) (lsns []wal.LSN, end wal.LSN, err error) {
	for {
		rec, err := r.Next()
		if err != nil {
			return lsns, r.Pos(), err
		}
		lsns = append(lsns, rec.LSN)
	}
}

func corrupt(t testing.TB, err error) *wal.CorruptError {
	t.Helper()
	var c *wal.CorruptError
	if !errors.As(err, &c) {
		t.Fatalf("got error %v, want a CorruptError", err)
	}
	return c
}
