package pgrepl

import (
	"strconv"

	"github.com/jackc/pgx/v5/pgtype"

	"rideau/wal"
)

// The answers to commands, in the columns and types of each major version.

// ReplySystem answers [IdentifySystem].
func (s *Session) ReplySystem(sys System) error {
	tliType := uint32(pgtype.Int8OID)
	if s.Major() < 16 {
		tliType = pgtype.Int4OID
	}
	return s.Reply("IDENTIFY_SYSTEM",
		[]Column{{"systemid", pgtype.TextOID}, {"timeline", tliType}, {"xlogpos", pgtype.TextOID}, {"dbname", pgtype.TextOID}},
		[]Value{Value(strconv.FormatUint(sys.ID, 10)), Value(sys.TLI.String()), Value(sys.Pos.String()), nil})
}

// ReplyShow answers [Show].
func (s *Session) ReplyShow(name, value string) error {
	return s.Reply("SHOW", []Column{{name, pgtype.TextOID}}, []Value{Value(value)})
}

// ReplyHistory answers [TimelineHistory] with the text of the history file.
func (s *Session) ReplyHistory(tli wal.TLI, text []byte) error {
	textType := uint32(pgtype.TextOID)
	if s.Major() < 14 {
		textType = pgtype.ByteaOID // but not escaped: the bytes as they are
	}
	if text == nil {
		text = []byte{}
	}
	return s.Reply("TIMELINE_HISTORY",
		[]Column{{"filename", pgtype.TextOID}, {"content", textType}},
		[]Value{Value(tli.HistoryName()), text})
}

// ReplyCreated answers [CreateSlot] for a physical slot.
func (s *Session) ReplyCreated(name string) error {
	return s.Reply("CREATE_REPLICATION_SLOT",
		[]Column{{"slot_name", pgtype.TextOID}, {"consistent_point", pgtype.TextOID}, {"snapshot_name", pgtype.TextOID}, {"output_plugin", pgtype.TextOID}},
		[]Value{Value(name), Value("0/0"), nil, nil})
}

// ReplyDropped answers [DropSlot].
func (s *Session) ReplyDropped() error { return s.Reply("DROP_REPLICATION_SLOT", nil) }

// ReplySlot answers [ReadSlot]. Nil: there is no such slot, which is no error.
func (s *Session) ReplySlot(slot *Slot) error {
	row := []Value{nil, nil, nil}
	if slot != nil {
		row[0] = Value("physical")
		if slot.Restart != wal.InvalidLSN {
			row[1], row[2] = Value(slot.Restart.String()), Value(slot.RestartTLI.String())
		}
	}
	return s.Reply("READ_REPLICATION_SLOT",
		[]Column{{"slot_type", pgtype.TextOID}, {"restart_lsn", pgtype.TextOID}, {"restart_tli", pgtype.Int8OID}}, row)
}
