package pgrepl

import (
	"encoding/binary"
	"fmt"
	"time"

	"rideau/wal"
)

// The messages inside CopyData while WAL is streamed, tag first, as in
// PostgreSQL's "Streaming Replication Protocol" chapter:
//
//	server  'w' start int64, end int64, time int64, WAL bytes
//	        'k' end int64, time int64, reply byte
//	client  'r' write int64, flush int64, apply int64, time int64, reply byte
//	        'h' time int64, xmin u32, epoch u32, catalog xmin u32, epoch u32
const (
	tagWAL       = 'w'
	tagKeepalive = 'k'
	tagStatus    = 'r'
	tagFeedback  = 'h'

	walHeaderLen = 25 // of 'w', before the WAL itself
	keepaliveLen = 18 // walreceiver refuses any other length
	statusLen    = 34
	feedbackLen  = 25
)

// MaxWALMessage is the most WAL in one message: MAX_SEND_SIZE of walsender.c,
// 16 pages.
const MaxWALMessage = 16 * 8192

// pgEpoch is 2000-01-01, from which the protocol counts microseconds.
var pgEpoch = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

func pgTime(t time.Time) uint64 { return uint64(t.Sub(pgEpoch).Microseconds()) }

func fromPgTime(us uint64) time.Time {
	// Microseconds, not a Duration: a Duration ends in 2292 and these bytes
	// come from outside.
	return time.UnixMicro(pgEpoch.UnixMicro() + int64(us))
}

// A Status is a standby's report: the first byte not yet written, not yet
// flushed, not yet applied. Zero means "none, ever": a receiver that replays
// nothing leaves Apply zero.
type Status struct {
	Write, Flush, Apply wal.LSN
	Time                time.Time // when it was sent, by the standby's clock
	ReplyRequested      bool
}

// AppendTo appends the message to b, tag first, without a CopyData header.
// Each position is sent as it is: none is made up from another.
func (s Status) AppendTo(b []byte) []byte {
	b = append(b, tagStatus)
	b = binary.BigEndian.AppendUint64(b, uint64(s.Write))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Flush))
	b = binary.BigEndian.AppendUint64(b, uint64(s.Apply))
	b = binary.BigEndian.AppendUint64(b, pgTime(s.Time))
	return append(b, boolByte(s.ReplyRequested))
}

// parseStatus reads a whole 'r' message, tag included.
func parseStatus(b []byte) (Status, error) {
	if len(b) != statusLen {
		return Status{}, fmt.Errorf("invalid standby status message: %d bytes, want %d", len(b), statusLen)
	}
	return Status{
		Write:          wal.LSN(binary.BigEndian.Uint64(b[1:])),
		Flush:          wal.LSN(binary.BigEndian.Uint64(b[9:])),
		Apply:          wal.LSN(binary.BigEndian.Uint64(b[17:])),
		Time:           fromPgTime(binary.BigEndian.Uint64(b[25:])),
		ReplyRequested: b[33] != 0,
	}, nil
}

// A FullXID is a transaction id with its epoch, comparable as a number. Zero is
// none.
type FullXID uint64

// A Feedback is hot standby feedback: the oldest transactions that queries on
// the standby, and catalog readers there, still need to see. Both zero means
// that nothing is held.
type Feedback struct {
	Xmin, CatalogXmin FullXID
}

// AppendTo appends the message to b, tag first, without a CopyData header.
func (f Feedback) AppendTo(b []byte, now time.Time) []byte {
	b = append(b, tagFeedback)
	b = binary.BigEndian.AppendUint64(b, pgTime(now))
	b = binary.BigEndian.AppendUint32(b, uint32(f.Xmin))
	b = binary.BigEndian.AppendUint32(b, uint32(f.Xmin>>32))
	b = binary.BigEndian.AppendUint32(b, uint32(f.CatalogXmin))
	return binary.BigEndian.AppendUint32(b, uint32(f.CatalogXmin>>32))
}

// parseFeedback reads a whole 'h' message, tag included. An xid of zero
// is none, whatever its epoch says (InvalidTransactionId).
func parseFeedback(b []byte) (Feedback, error) {
	if len(b) != feedbackLen {
		return Feedback{}, fmt.Errorf("invalid hot standby feedback message: %d bytes, want %d", len(b), feedbackLen)
	}
	full := func(b []byte) FullXID {
		xid, epoch := binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:])
		if xid == 0 {
			return 0
		}
		return FullXID(epoch)<<32 | FullXID(xid)
	}
	return Feedback{Xmin: full(b[9:]), CatalogXmin: full(b[17:])}, nil
}

func boolByte(b bool) byte {
	if b {
		return 1
	}
	return 0
}

// An EndOfTimeline says that a server has no more WAL on TLI: its history goes
// on as Next, from LSN.
type EndOfTimeline struct {
	TLI  wal.TLI
	Next wal.TLI
	LSN  wal.LSN // the first byte that is not on TLI
}

func (e *EndOfTimeline) Error() string {
	return fmt.Sprintf("timeline %d ends at %s, where timeline %d begins", e.TLI, e.LSN, e.Next)
}
