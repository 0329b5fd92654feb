package control

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/bits"
	"time"

	"rideau/wal"
)

// Size is the length of the file, PG_CONTROL_FILE_SIZE of pg_control.h.
const Size = 8192

// A State is how a data directory was left, DBState of pg_control.h.
type State uint32

// The states, in the order of DBState.
const (
	Startup            State = iota // made by initdb, or being started
	ShutDown                        // stopped cleanly as a primary
	ShutDownInRecovery              // stopped cleanly as a standby
	ShuttingDown                    // died while it stopped
	InCrashRecovery                 // died while it recovered as a primary
	InArchiveRecovery               // a standby, or one that died
	InProduction                    // a primary, or one that died
)

// String is what pg_controldata prints.
func (s State) String() string {
	switch s {
	case Startup:
		return "starting up"
	case ShutDown:
		return "shut down"
	case ShutDownInRecovery:
		return "shut down in recovery"
	case ShuttingDown:
		return "shutting down"
	case InCrashRecovery:
		return "in crash recovery"
	case InArchiveRecovery:
		return "in archive recovery"
	case InProduction:
		return "in production"
	}
	return "unrecognized status code"
}

// A WALLevel is the wal_level a server ran with.
type WALLevel uint32

// The levels, in the order of WalLevel of xlog.h.
const (
	Minimal WALLevel = iota
	Replica
	Logical
)

// String is the setting's value.
func (l WALLevel) String() string {
	switch l {
	case Minimal:
		return "minimal"
	case Replica:
		return "replica"
	case Logical:
		return "logical"
	}
	return "unrecognized wal_level"
}

// A Control is what a pg_control says, as far as it is of use here.
type Control struct {
	Version        uint32 // of the format: 1300, 1700, 1800
	CatalogVersion uint32 // of the system catalogs: no two major versions share one
	SystemID       uint64

	State State
	Time  time.Time // when the file was last written

	// The last checkpoint, or restartpoint on a standby.
	Checkpoint     wal.LSN // where its record is
	Redo           wal.LSN // where replay would begin
	TLI            wal.TLI // of Redo
	PrevTLI        wal.TLI // TLI, unless the checkpoint began it
	FullPageWrites bool    // as it was then
	CheckpointTime time.Time

	// MinRecovery is how far replay must come before the data is consistent:
	// what is on disk may be as new as that. Zero when the server did not
	// replay for others, as a primary and in crash recovery.
	MinRecovery    wal.LSN
	MinRecoveryTLI wal.TLI

	// Zero unless a backup was being recovered from and its end was not reached.
	BackupStart       wal.LSN
	BackupEnd         wal.LSN // of a backup from a standby only
	BackupEndRequired bool

	// Settings of the primary that a hot standby's must not be below.
	WALLevel             WALLevel
	WALLogHints          bool
	MaxConnections       int
	MaxWorkerProcesses   int
	MaxWALSenders        int
	MaxPreparedXacts     int
	MaxLocksPerXact      int
	TrackCommitTimestamp bool

	// How the server that owns the files was built.
	BlockSize       uint32 // bytes
	SegmentBlocks   uint32 // blocks in each file of a relation (relseg_size)
	WALBlockSize    uint32
	WALSegmentSize  wal.SegmentSize
	ChecksumVersion uint32 // zero: pages have no checksums
}

// A CRCError says that the bytes do not have the CRC they name. While a server
// runs that can be a torn read, which reading again cures.
type CRCError struct {
	Want, Got uint32 // what the file says, what the bytes have
}

func (e *CRCError) Error() string {
	return fmt.Sprintf("pg_control has CRC %08X, but its bytes have %08X", e.Want, e.Got)
}

// A VersionError says that the format is not one that this package knows.
type VersionError struct {
	Version   uint32
	BigEndian bool // it would be known if read the other way round
}

func (e *VersionError) Error() string {
	if e.BigEndian {
		return fmt.Sprintf("pg_control of version %d was written by a big-endian server", bits.ReverseBytes32(e.Version))
	}
	return fmt.Sprintf("pg_control has version %d, which is not one of PostgreSQL 13 to 18", e.Version)
}

// Where fields are: offsetof in ControlFileData of pg_control.h on a machine
// with 8-byte alignment. 17 put wal_level into what had been padding of
// CheckPoint (60), so that nothing moved; 18 put default_char_signedness before
// the nonce, which moved only the nonce and the CRC.
const (
	offSystemID       = 0
	offVersion        = 8
	offCatalogVersion = 12
	offState          = 16
	offTime           = 24
	offCheckpoint     = 32
	offRedo           = 40 // checkPointCopy begins here
	offTLI            = 48
	offPrevTLI        = 52
	offFullPageWrites = 56
	offCheckpointTime = 104
	offMinRecovery    = 136
	offMinRecoveryTLI = 144
	offBackupStart    = 152
	offBackupEnd      = 160
	offBackupRequired = 168
	offWALLevel       = 172
	offWALLogHints    = 176
	offMaxConnections = 180
	offMaxWorkers     = 184
	offMaxWALSenders  = 188
	offMaxPrepared    = 192
	offMaxLocks       = 196
	offTrackCommit    = 200
	offFloatFormat    = 208
	offBlockSize      = 216
	offSegmentBlocks  = 220
	offWALBlockSize   = 224
	offWALSegmentSize = 228
	offChecksums      = 252
)

// floatFormat is the double 1234567.0 as FLOATFORMAT_VALUE is stored: a file
// that has it where it belongs has the layout above.
var floatFormat = []byte{0, 0, 0, 0, 0x87, 0xd6, 0x32, 0x41}

// offCRC is where the CRC of all before it is, by version of the format.
var offCRC = map[uint32]int{1300: 288, 1700: 288, 1800: 292}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Parse reads the bytes of a pg_control, of which at least the first 512 must
// be there (PG_CONTROL_MAX_SAFE_SIZE). The error is a [*CRCError] for bytes that
// do not verify, a [*VersionError] for a format that is not known.
func Parse(b []byte) (*Control, error) {
	if len(b) < 512 {
		return nil, fmt.Errorf("pg_control has only %d bytes of %d", len(b), Size)
	}
	u32 := func(off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }
	u64 := func(off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
	lsn := func(off int) wal.LSN { return wal.LSN(u64(off)) }
	num := func(off int) int { return int(int32(u32(off))) }
	at := func(off int) time.Time { return time.Unix(int64(u64(off)), 0) }

	version := u32(offVersion)
	end, known := offCRC[version]
	if !known {
		_, swapped := offCRC[bits.ReverseBytes32(version)]
		return nil, &VersionError{Version: version, BigEndian: swapped}
	}
	if got := crc32.Checksum(b[:end], castagnoli); got != u32(end) {
		return nil, &CRCError{Want: u32(end), Got: got}
	}
	if !bytes.Equal(b[offFloatFormat:offFloatFormat+8], floatFormat) {
		return nil, fmt.Errorf("pg_control of version %d has an unknown layout: it was not written on a machine with 8-byte alignment", version)
	}
	c := &Control{
		Version:              version,
		CatalogVersion:       u32(offCatalogVersion),
		SystemID:             u64(offSystemID),
		State:                State(u32(offState)),
		Time:                 at(offTime),
		Checkpoint:           lsn(offCheckpoint),
		Redo:                 lsn(offRedo),
		TLI:                  wal.TLI(u32(offTLI)),
		PrevTLI:              wal.TLI(u32(offPrevTLI)),
		FullPageWrites:       b[offFullPageWrites] != 0,
		CheckpointTime:       at(offCheckpointTime),
		MinRecovery:          lsn(offMinRecovery),
		MinRecoveryTLI:       wal.TLI(u32(offMinRecoveryTLI)),
		BackupStart:          lsn(offBackupStart),
		BackupEnd:            lsn(offBackupEnd),
		BackupEndRequired:    b[offBackupRequired] != 0,
		WALLevel:             WALLevel(u32(offWALLevel)),
		WALLogHints:          b[offWALLogHints] != 0,
		MaxConnections:       num(offMaxConnections),
		MaxWorkerProcesses:   num(offMaxWorkers),
		MaxWALSenders:        num(offMaxWALSenders),
		MaxPreparedXacts:     num(offMaxPrepared),
		MaxLocksPerXact:      num(offMaxLocks),
		TrackCommitTimestamp: b[offTrackCommit] != 0,
		BlockSize:            u32(offBlockSize),
		SegmentBlocks:        u32(offSegmentBlocks),
		WALBlockSize:         u32(offWALBlockSize),
		WALSegmentSize:       wal.SegmentSize(u32(offWALSegmentSize)),
		ChecksumVersion:      u32(offChecksums),
	}
	return c, nil
}
