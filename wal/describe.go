package wal

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strings"
	"time"
	"unicode"
)

// String describes the record on one line, as pg_waldump does: the same fields
// in the same order, so that what is written to find something in its output
// finds it here. Of what the operation did it says less.
func (rec *Record) String() string {
	var b strings.Builder
	content, err := rec.Decode()
	length := rec.Length
	if err == nil {
		for _, block := range content.Blocks {
			length -= uint32(len(block.Image))
		}
	}
	fmt.Fprintf(&b, "rmgr: %-11s len (rec/tot): %6d/%6d, tx: %10d, lsn: %s, prev %s, desc: %s",
		rec.RMgr, length, rec.Length, rec.XID, longLSN(rec.LSN), longLSN(rec.Prev), rec.Operation())
	if err != nil {
		fmt.Fprintf(&b, " (%v)", err)
		return b.String()
	}
	if text := rec.describe(content); text != "" {
		b.WriteByte(' ')
		b.WriteString(text)
	}
	for _, block := range content.Blocks {
		fmt.Fprintf(&b, ", blkref #%d: rel %d/%d/%d", block.ID, block.Tablespace, block.Database, block.Relation)
		if block.Fork != 0 {
			fmt.Fprintf(&b, " fork %s", block.Fork)
		}
		fmt.Fprintf(&b, " blk %d", block.Number)
		if block.Image != nil {
			b.WriteString(" FPW")
			if !block.Apply {
				b.WriteString(" for WAL verification")
			}
		}
	}
	return b.String()
}

// longLSN is as pg_waldump prints an LSN, which is with leading zeros.
func longLSN(lsn LSN) string { return fmt.Sprintf("%X/%08X", uint64(lsn)>>32, uint32(lsn)) }

// describe says what the operation did, from its main data. Layouts are those
// of the structs named xl_ in the server's headers; where a record is shorter
// than its layout, nothing is said.
func (rec *Record) describe(content *Content) string {
	h := header{b: content.Main}
	text := ""
	op := rec.Info & rmgrInfoMask
	switch rec.RMgr {
	case RMgrXLOG:
		text = describeXLOG(op, &h, rec.major)
	case RMgrTransaction:
		text = describeTransaction(rec.Info, &h, rec.major)
	case RMgrStandby:
		text = describeStandby(op, &h)
	case RMgrHeap, RMgrHeap2:
		text = describeHeap(rec.RMgr, op&0x70, &h)
	case RMgrBtree:
		switch rec.Operation() {
		case "INSERT_LEAF", "INSERT_UPPER", "INSERT_META", "INSERT_POST":
			text = fmt.Sprintf("off: %d", h.u16())
		case "SPLIT_L", "SPLIT_R":
			text = fmt.Sprintf("level: %d, firstrightoff: %d, newitemoff: %d", h.u32(), h.u16(), h.u16())
		case "NEWROOT":
			root, level := h.u32(), h.u32()
			text = fmt.Sprintf("root: %d, level: %d", root, level)
		}
	case RMgrStorage:
		switch rec.Operation() {
		case "CREATE":
			text = fmt.Sprintf("rel %s fork %s", h.relation(), Fork(h.u32()))
		case "TRUNCATE":
			block := h.u32()
			text = fmt.Sprintf("rel %s to %d blocks", h.relation(), block)
		}
	case RMgrSequence:
		text = "rel " + h.relation()
	case RMgrLogicalMessage:
		text = describeMessage(&h)
	}
	if h.short {
		return ""
	}
	return text
}

func describeXLOG(op uint8, h *header, major int) string {
	switch op {
	case 0x00, 0x10: // CHECKPOINT_SHUTDOWN, CHECKPOINT_ONLINE
		// CheckPoint of pg_control.h.
		redo, tli, prev, fpw := LSN(h.u64()), h.u32(), h.u32(), h.u32()&0xFF != 0
		text := fmt.Sprintf("redo %s; tli %d; prev tli %d; fpw %t; ", redo, tli, prev, fpw)
		if level := h.u32(); major >= 17 { // padding before
			text += fmt.Sprintf("wal_level %s; ", walLevel(level))
		}
		if major <= 18 { // from 19 on it is laid out otherwise
			xid, epoch := h.u32(), h.u32()
			oid, multi, offset := h.u32(), h.u32(), h.u32()
			oldest, oldestDB, oldestMulti, oldestMultiDB := h.u32(), h.u32(), h.u32(), h.u32()
			h.take(4 + 8 + 4 + 4) // padding, time, commit timestamps
			text += fmt.Sprintf("xid %d:%d; oid %d; multi %d; offset %d; oldest xid %d in DB %d; oldest multi %d in DB %d; oldest running xid %d; ",
				epoch, xid, oid, multi, offset, oldest, oldestDB, oldestMulti, oldestMultiDB, h.u32())
		}
		if op == 0 {
			return text + "shutdown"
		}
		return text + "online"
	case 0x30: // NEXTOID
		return fmt.Sprint(h.u32())
	case 0x50: // BACKUP_END
		return LSN(h.u64()).String()
	case 0x60: // PARAMETER_CHANGE
		text := fmt.Sprintf("max_connections=%d max_worker_processes=%d max_wal_senders=%d max_prepared_xacts=%d max_locks_per_xact=%d",
			h.u32(), h.u32(), h.u32(), h.u32(), h.u32())
		level, hints, timestamps := h.u32(), h.u8(), h.u8()
		return text + fmt.Sprintf(" wal_level=%s wal_log_hints=%s track_commit_timestamp=%s", walLevel(level), onOff(hints), onOff(timestamps))
	case 0x70: // RESTORE_POINT
		h.u64()
		return cString(h.b)
	case 0x80: // FPW_CHANGE
		return fmt.Sprint(h.u8() != 0)
	case 0x90: // END_OF_RECOVERY
		when, tli, prev := timestamp(h.u64()), h.u32(), h.u32()
		text := fmt.Sprintf("tli %d; prev tli %d; time %s", tli, prev, when)
		if major >= 17 {
			text += "; wal_level " + walLevel(h.u32())
		}
		return text
	case xlogOverwriteContrecord:
		lsn := LSN(h.u64())
		return fmt.Sprintf("lsn %s; time %s", lsn, timestamp(h.u64()))
	case 0xE0: // CHECKPOINT_REDO
		return "wal_level " + walLevel(h.u32())
	}
	return ""
}

// Flags of xact.h.
const (
	xactHasInfo     = 0x80
	xactHasDatabase = 1 << 0
	xactHasSubxacts = 1 << 1
	xactHasRels     = 1 << 2
	xactHasInvals   = 1 << 3
	xactHasTwoPhase = 1 << 4
	xactHasGID      = 1 << 7
	xactHasStats    = 1 << 8 // since 15
)

func describeTransaction(info uint8, h *header, major int) string {
	switch op := info & 0x70; op {
	case 0x00, 0x20, 0x30, 0x40: // COMMIT, ABORT, COMMIT_PREPARED, ABORT_PREPARED
		text := timestamp(h.u64())
		flags := uint32(0)
		if info&xactHasInfo != 0 {
			flags = h.u32()
		}
		if flags&xactHasDatabase != 0 {
			h.take(8)
		}
		if flags&xactHasSubxacts != 0 {
			text += "; subxacts:" + listXIDs(h.array(4))
		}
		if flags&xactHasRels != 0 {
			rels := header{b: h.array(12)}
			text += fmt.Sprintf("; %d rels:", len(rels.b)/12)
			for i := 0; len(rels.b) > 0; i++ {
				if i == listed {
					text += " ..."
					break
				}
				text += " " + rels.relation()
			}
		}
		if flags&xactHasStats != 0 {
			size := 12
			if major >= 18 { // identifiers of statistics became 64 bits
				size = 16
			}
			h.array(size)
		}
		if flags&xactHasInvals != 0 && (op == 0x00 || op == 0x30) {
			h.array(16) // sizeof(SharedInvalidationMessage)
		}
		if flags&xactHasTwoPhase != 0 {
			text = fmt.Sprintf("%d: ", h.u32()) + text
			if flags&xactHasGID != 0 {
				text += fmt.Sprintf("; gid %q", cString(h.b))
			}
		}
		return text
	case 0x10: // PREPARE
		h.take(16)
		when := timestamp(h.u64())
		numbers := 5 // owner, subxacts, relations twice, invalidations
		if major >= 15 {
			numbers = 7 // statistics twice
		}
		h.take(4 * numbers)
		h.take(2) // initfileinval and padding
		length := int(h.u16())
		h.take(16) // origin
		return fmt.Sprintf("gid %s: %s", cString(h.take(length)), when)
	case 0x50: // ASSIGNMENT
		top := h.u32()
		return fmt.Sprintf("xtop %d: subxacts:%s", top, listXIDs(h.array(4)))
	}
	return ""
}

func describeStandby(op uint8, h *header) string {
	switch op {
	case 0x00: // LOCK
		text := ""
		for locks := (header{b: h.array(12)}); len(locks.b) > 0; {
			text += fmt.Sprintf(" xid %d db %d rel %d", locks.u32(), locks.u32(), locks.u32())
		}
		return strings.TrimPrefix(text, " ")
	case 0x10: // RUNNING_XACTS
		count, subcount, overflow := h.u32(), h.u32(), h.u32()&0xFF != 0
		next, oldest, latest := h.u32(), h.u32(), h.u32()
		text := fmt.Sprintf("nextXid %d latestCompletedXid %d oldestRunningXid %d", next, latest, oldest)
		if count > 0 {
			text += fmt.Sprintf("; %d xacts:%s", count, listXIDs(h.take(int(count)*4)))
		}
		if overflow {
			text += "; subxid overflowed"
		}
		if subcount > 0 {
			text += fmt.Sprintf("; %d subxacts:%s", subcount, listXIDs(h.take(int(subcount)*4)))
		}
		return text
	}
	return ""
}

func describeHeap(rm RMgr, op uint8, h *header) string {
	switch {
	case rm == RMgrHeap && op == 0x00: // INSERT
		return fmt.Sprintf("off: %d, flags: 0x%02X", h.u16(), h.u8())
	case rm == RMgrHeap && (op == 0x10 || op == 0x60), // DELETE, LOCK
		rm == RMgrHeap2 && op == 0x60: // LOCK_UPDATED
		xmax, offset, _, flags := h.u32(), h.u16(), h.u8(), h.u8()
		return fmt.Sprintf("xmax: %d, off: %d, flags: 0x%02X", xmax, offset, flags)
	case rm == RMgrHeap && (op == 0x20 || op == 0x40): // UPDATE, HOT_UPDATE
		xmax, offset, _, flags := h.u32(), h.u16(), h.u8(), h.u8()
		return fmt.Sprintf("old_xmax: %d, old_off: %d, flags: 0x%02X, new_xmax: %d, new_off: %d",
			xmax, offset, flags, h.u32(), h.u16())
	case rm == RMgrHeap && (op == 0x50 || op == 0x70): // HEAP_CONFIRM, INPLACE
		return fmt.Sprintf("off: %d", h.u16())
	case rm == RMgrHeap2 && op == 0x50: // MULTI_INSERT
		flags, _, tuples := h.u8(), h.u8(), h.u16()
		return fmt.Sprintf("ntuples: %d, flags: 0x%02X", tuples, flags)
	}
	return ""
}

func describeMessage(h *header) string {
	h.u32() // database
	transactional := h.u32()&0xFF != 0
	prefix, size := h.u64(), h.u64()
	if prefix > uint64(len(h.b)) {
		h.short = true
		return ""
	}
	kind := "non-transactional"
	if transactional {
		kind = "transactional"
	}
	return fmt.Sprintf("%s, prefix %q; payload (%d bytes)", kind, cString(h.take(int(prefix))), size)
}

// relation reads a RelFileLocator.
func (h *header) relation() string {
	return fmt.Sprintf("%d/%d/%d", h.u32(), h.u32(), h.u32())
}

// array reads a 32-bit count, then as many elements of the size given.
func (h *header) array(size int) []byte { return h.take(int(h.u32()) * size) }

// listed is how many of a list are shown: a commit can have millions.
const listed = 20

func listXIDs(b []byte) string {
	var text strings.Builder
	for i := 0; len(b) >= 4; i, b = i+1, b[4:] {
		if i == listed {
			fmt.Fprintf(&text, " ... (%d more)", len(b)/4)
			break
		}
		fmt.Fprintf(&text, " %d", binary.LittleEndian.Uint32(b))
	}
	return text.String()
}

func cString(b []byte) string {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		b = b[:i]
	}
	// Names are whatever a client sent, and go to a terminal.
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return '?'
		}
		return r
	}, string(b))
}

// timestamp formats a TimestampTz: microseconds since 2000, in UTC.
func timestamp(t uint64) string {
	epoch := time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)
	return time.UnixMicro(epoch.UnixMicro() + int64(t)).UTC().Format("2006-01-02 15:04:05.000000 UTC")
}

func walLevel(level uint32) string {
	switch level {
	case 0:
		return "minimal"
	case 1:
		return "replica"
	case 2:
		return "logical"
	}
	return "?"
}

func onOff(b uint8) string {
	if b != 0 {
		return "on"
	}
	return "off"
}
