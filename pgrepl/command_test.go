package pgrepl

import (
	"errors"
	"strings"
	"testing"
)

// The texts are those that clients of 13 to 18 send, spaces included.
func TestParseCommand(t *testing.T) {
	long := strings.Repeat("x", 70)
	tests := []struct {
		name string
		text string
		want Command // without its text
	}{
		{"walreceiver", `IDENTIFY_SYSTEM`, IdentifySystem{}},
		{"with a semicolon", "IDENTIFY_SYSTEM ;\n", IdentifySystem{}},
		{"pg_basebackup", `SHOW data_directory_mode`, Show{Name: "data_directory_mode"}},
		{"identifiers are folded", `SHOW Wal_Segment_Size`, Show{Name: "wal_segment_size"}},
		{"quoted ones are not", `SHOW "Server_Version"`, Show{Name: "Server_Version"}},
		{"an extension's setting", `SHOW pg_stat_statements.max`, Show{Name: "pg_stat_statements.max"}},
		{"walreceiver", `TIMELINE_HISTORY 4`, TimelineHistory{TLI: 4}},

		{"walreceiver, temporary slot", `CREATE_REPLICATION_SLOT "pg_walreceiver_3021" TEMPORARY PHYSICAL RESERVE_WAL`,
			CreateSlot{Name: "pg_walreceiver_3021", Temporary: true, ReserveWAL: true}},
		{"pg_basebackup up to 14", `CREATE_REPLICATION_SLOT "pg_basebackup_17" TEMPORARY PHYSICAL RESERVE_WAL`,
			CreateSlot{Name: "pg_basebackup_17", Temporary: true, ReserveWAL: true}},
		{"pg_basebackup since 15", `CREATE_REPLICATION_SLOT "pg_basebackup_17" TEMPORARY PHYSICAL ( RESERVE_WAL)`,
			CreateSlot{Name: "pg_basebackup_17", Temporary: true, ReserveWAL: true}},
		{"pg_receivewal --create-slot since 15", `CREATE_REPLICATION_SLOT "s" PHYSICAL (RESERVE_WAL)`,
			CreateSlot{Name: "s", ReserveWAL: true}},
		{"libpqwalreceiver since 15", `CREATE_REPLICATION_SLOT "s" PHYSICAL (RESERVE_WAL FALSE)`, CreateSlot{Name: "s"}},
		{"nothing reserved", `CREATE_REPLICATION_SLOT s PHYSICAL`, CreateSlot{Name: "s"}},
		{"an option's word in small letters", `CREATE_REPLICATION_SLOT s PHYSICAL (reserve_wal 'on')`, CreateSlot{Name: "s", ReserveWAL: true}},
		{"a doubled quote", `CREATE_REPLICATION_SLOT "a""b" PHYSICAL`, CreateSlot{Name: `a"b`}},
		{"a keyword in small letters is a name", `CREATE_REPLICATION_SLOT slot PHYSICAL`, CreateSlot{Name: "slot"}},
		{"logical", `CREATE_REPLICATION_SLOT "s" LOGICAL pgoutput (SNAPSHOT 'nothing', TWO_PHASE)`, CreateSlot{Name: "s", Plugin: "pgoutput"}},
		{"logical up to 14", `CREATE_REPLICATION_SLOT "s" TEMPORARY LOGICAL "pgoutput" NOEXPORT_SNAPSHOT`, CreateSlot{Name: "s", Temporary: true, Plugin: "pgoutput"}},
		{"names are cut as the server cuts them", `READ_REPLICATION_SLOT ` + long, ReadSlot{Name: long[:63]}},

		{"pg_receivewal", `READ_REPLICATION_SLOT s`, ReadSlot{Name: "s"}},
		{"pg_receivewal --drop-slot", `DROP_REPLICATION_SLOT "s"`, DropSlot{Name: "s"}},
		{"waiting", `DROP_REPLICATION_SLOT s WAIT;`, DropSlot{Name: "s", Wait: true}},
		{"subscription", `ALTER_REPLICATION_SLOT "s" ( FAILOVER true, TWO_PHASE false );`, AlterSlot{Name: "s"}},

		{"walreceiver", `START_REPLICATION SLOT "standby1" 0/3000000 TIMELINE 1`, StartReplication{Slot: "standby1", LSN: 0x3000000, TLI: 1}},
		{"walreceiver without a slot", `START_REPLICATION 16/B3000000 TIMELINE 2`, StartReplication{LSN: 0x16B3000000, TLI: 2}},
		{"pg_receivewal has two spaces where no slot is", `START_REPLICATION  0/3000000 TIMELINE 1`, StartReplication{LSN: 0x3000000, TLI: 1}},
		{"physical, said so", `START_REPLICATION PHYSICAL 0/3000000`, StartReplication{LSN: 0x3000000}},
		{"as 19 prints positions", `START_REPLICATION SLOT s PHYSICAL 00000000/03000000 TIMELINE 1`, StartReplication{Slot: "s", LSN: 0x3000000, TLI: 1}},
		{"zeros of any number", `START_REPLICATION 00000000000/00000000003000000`, StartReplication{LSN: 0x3000000}},
		{"hexadecimal that looks like a name", `START_REPLICATION ABC/DEF`, StartReplication{LSN: 0xABC00000DEF}},
		{"logical", `START_REPLICATION SLOT "s" LOGICAL 0/0 (proto_version '4', publication_names '"p"', binary)`, StartReplication{Slot: "s", Logical: true}},

		{"pg_basebackup since 15", `BASE_BACKUP ( LABEL 'pg_basebackup base backup',  PROGRESS,  CHECKPOINT 'fast',  WAIT 0,  MANIFEST 'yes',  TARGET 'client')`, BaseBackup{}},
		{"pg_basebackup up to 14", `BASE_BACKUP LABEL 'it''s mine' PROGRESS FAST NOWAIT  MAX_RATE 1024 TABLESPACE_MAP  MANIFEST 'yes' MANIFEST_CHECKSUMS 'SHA256'`, BaseBackup{}},
		{"no option", `BASE_BACKUP`, BaseBackup{}},
		{"pg_basebackup --incremental", `UPLOAD_MANIFEST`, UploadManifest{}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := parseCommand(tt.text)
			if err != nil {
				t.Fatalf("parseCommand(%q): %v", tt.text, err)
			}
			if got.Text() != tt.text {
				t.Errorf("Text() = %q, want %q", got.Text(), tt.text)
			}
			if got := withoutText(got); got != tt.want {
				t.Errorf("parseCommand(%q) = %+v, want %+v", tt.text, got, tt.want)
			}
		})
	}
}

func withoutText(cmd Command) Command {
	switch c := cmd.(type) {
	case IdentifySystem:
		c.commandText = ""
		return c
	case Show:
		c.commandText = ""
		return c
	case TimelineHistory:
		c.commandText = ""
		return c
	case CreateSlot:
		c.commandText = ""
		return c
	case DropSlot:
		c.commandText = ""
		return c
	case ReadSlot:
		c.commandText = ""
		return c
	case AlterSlot:
		c.commandText = ""
		return c
	case StartReplication:
		c.commandText = ""
		return c
	case BaseBackup:
		c.commandText = ""
		return c
	case UploadManifest:
		c.commandText = ""
		return c
	}
	panic("an unknown command")
}

// Every answer was seen from a server of version 15, but for those that name
// another.
func TestParseCommandErrors(t *testing.T) {
	const (
		sql    = "cannot execute SQL commands in WAL sender for physical replication (SQLSTATE 0A000)"
		syntax = "syntax error (SQLSTATE 42601)"
		option = "conflicting or redundant options (SQLSTATE 42601)"
	)
	tests := []struct {
		name, text, want string
	}{
		{"an empty query is SQL", "", sql},
		{"as is a semicolon", ";", sql},
		{"and a comment", "-- ping", sql},
		{"keywords are upper case", "identify_system", sql},
		{"all of them", "Identify_System", sql},
		{"SQL", "SELECT pg_catalog.pg_is_in_recovery()", sql},
		{"a keyword that begins no command", "SLOT", sql},
		{"or a number, of any size", "99999999999999999999", sql},
		{"a first word that has no end", `"abc`, "unterminated quoted string (SQLSTATE 42601)"},
		{"two semicolons", "IDENTIFY_SYSTEM ; ;", syntax},
		{"more than a command", "IDENTIFY_SYSTEM x", syntax},
		{"half a position", "START_REPLICATION 0/x", syntax},
		{"a position beyond 64 bits", "START_REPLICATION 123456789/0", "invalid streaming start location (SQLSTATE 42601)"}, // stricter than the server
		{"no position", "START_REPLICATION", syntax},
		{"a name without an end", `CREATE_REPLICATION_SLOT "a`, "unterminated quoted string (SQLSTATE 42601)"},
		{"a string for a name", "CREATE_REPLICATION_SLOT 'a' PHYSICAL", syntax},
		{"a keyword for a name", "CREATE_REPLICATION_SLOT PHYSICAL PHYSICAL", syntax},
		{"neither kind", "CREATE_REPLICATION_SLOT a", syntax},
		{"a name twice", "CREATE_REPLICATION_SLOT a b PHYSICAL", syntax},
		{"an unknown option", "CREATE_REPLICATION_SLOT a PHYSICAL (foo)", "unrecognized option: foo (SQLSTATE XX000)"},
		{"a logical slot's option", "CREATE_REPLICATION_SLOT a PHYSICAL (two_phase)", option},
		{"in the old form", "CREATE_REPLICATION_SLOT a PHYSICAL TWO_PHASE", option},
		{"an option twice", "CREATE_REPLICATION_SLOT a PHYSICAL (reserve_wal false, reserve_wal)", option},
		{"not a Boolean", "CREATE_REPLICATION_SLOT a PHYSICAL (reserve_wal 'x')", "reserve_wal requires a Boolean value (SQLSTATE 42601)"},
		{"timeline zero", "TIMELINE_HISTORY 0", "invalid timeline 0 (SQLSTATE 42601)"},
		{"timeline zero of a stream", "START_REPLICATION 0/1 TIMELINE 0", "invalid timeline 0 (SQLSTATE 42601)"},
		{"a timeline beyond 32 bits", "TIMELINE_HISTORY 4294967297", syntax}, // stricter than the server
		{"no timeline", "TIMELINE_HISTORY", syntax},
		{"empty options", "BASE_BACKUP ()", syntax},
		{"options without an end", "BASE_BACKUP (PROGRESS", syntax},
		{"an option of no version", "BASE_BACKUP SIDEWAYS", syntax},
		{"an option in small letters", "BASE_BACKUP label 'x'", syntax},
		{"logical needs a slot", "START_REPLICATION LOGICAL 0/0", syntax},
		{"logical has no timeline", "START_REPLICATION SLOT s LOGICAL 0/0 TIMELINE 1", syntax},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cmd, err := parseCommand(tt.text)
			if err == nil {
				t.Fatalf("parseCommand(%q) = %+v, want %s", tt.text, cmd, tt.want)
			}
			if err.Error() != tt.want {
				t.Errorf("parseCommand(%q): %v, want %s", tt.text, err, tt.want)
			}
		})
	}
}

func TestCheckSlotName(t *testing.T) {
	for name, want := range map[string]string{
		"standby_1":             "",
		strings.Repeat("a", 63): "",
		"":                      `replication slot name "" is too short (SQLSTATE 42602)`,
		strings.Repeat("a", 64): `replication slot name "` + strings.Repeat("a", 64) + `" is too long (SQLSTATE 42622)`,
		"A b":                   `replication slot name "A b" contains invalid character (SQLSTATE 42602)`,
	} {
		err := CheckSlotName(name)
		if got := ""; err != nil {
			got = err.Error()
			if got != want {
				t.Errorf("CheckSlotName(%q) = %v, want %s", name, err, want)
			}
		} else if want != "" {
			t.Errorf("CheckSlotName(%q) = nil, want %s", name, want)
		}
	}
}

// Whatever a client writes, the answer is a command with that text or an
// error with an SQLSTATE.
func FuzzParseCommand(f *testing.F) {
	for _, s := range []string{
		`START_REPLICATION SLOT "standby1" 0/3000000 TIMELINE 1`,
		`START_REPLICATION SLOT "s" LOGICAL 0/0 (proto_version '4', publication_names '"p"')`,
		`BASE_BACKUP ( LABEL 'pg_basebackup base backup',  PROGRESS,  CHECKPOINT 'fast',  WAIT 0)`,
		`BASE_BACKUP LABEL 'x' FAST MAX_RATE 1`,
		`CREATE_REPLICATION_SLOT "a""b" TEMPORARY PHYSICAL ( RESERVE_WAL)`,
		`DROP_REPLICATION_SLOT s WAIT;`, `SHOW a.b`, `TIMELINE_HISTORY 4`, `'`, `"`, "\xff", "0/",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		cmd, err := parseCommand(s)
		var e *Error
		switch {
		case err == nil && cmd.Text() != s:
			t.Errorf("parseCommand(%q).Text() = %q", s, cmd.Text())
		case err != nil && (!errors.As(err, &e) || len(e.code()) != 5):
			t.Errorf("parseCommand(%q): %v, which has no SQLSTATE", s, err)
		}
	})
}
