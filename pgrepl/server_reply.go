package pgrepl

import (
	"strconv"

	"rideau/wal"
)

// The answers to commands, in the columns and types of each major version.

// ReplySystem answers [IdentifySystem].
func (s *Session) ReplySystem(sys System) error {
	tliType := uint32(oidInt8)
	if s.Major() < 16 {
		tliType = oidInt4
	}
	return s.Reply("IDENTIFY_SYSTEM",
		[]Column{{"systemid", oidText}, {"timeline", tliType}, {"xlogpos", oidText}, {"dbname", oidText}},
		[]Value{Value(strconv.FormatUint(sys.ID, 10)), Value(sys.TLI.String()), Value(sys.Pos.String()), nil})
}

// ReplyShow answers [Show].
func (s *Session) ReplyShow(name, value string) error {
	return s.Reply("SHOW", []Column{{name, oidText}}, []Value{Value(value)})
}

// ReplyHistory answers [TimelineHistory] with the text of the history file.
func (s *Session) ReplyHistory(tli wal.TLI, text []byte) error {
	textType := uint32(oidText)
	if s.Major() < 14 {
		textType = oidBytea // but not escaped: the bytes as they are
	}
	if text == nil {
		text = []byte{}
	}
	return s.Reply("TIMELINE_HISTORY",
		[]Column{{"filename", oidText}, {"content", textType}},
		[]Value{Value(tli.HistoryName()), text})
}

// ReplyCreated answers [CreateSlot] for a physical slot.
func (s *Session) ReplyCreated(name string) error {
	return s.Reply("CREATE_REPLICATION_SLOT",
		[]Column{{"slot_name", oidText}, {"consistent_point", oidText}, {"snapshot_name", oidText}, {"output_plugin", oidText}},
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
		[]Column{{"slot_type", oidText}, {"restart_lsn", oidText}, {"restart_tli", oidInt8}}, row)
}
