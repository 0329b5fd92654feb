package control_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"rideau/basebackup/control"
	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
)

// Each version's own pg_controldata must read the same from the file of a
// server in every state that a server leaves behind.
func TestAgainstControlData(t *testing.T) {
	for _, major := range pgtest.Majors {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.New(t, pgtest.Options{Major: major, Settings: map[string]string{
				// Values that no two fields share, so that none can stand in for another.
				"max_connections": "71", "max_worker_processes": "13", "max_wal_senders": "9",
				"max_prepared_transactions": "17", "max_locks_per_transaction": "83",
				"wal_level": "logical", "wal_log_hints": "on", "track_commit_timestamp": "on",
			}})
			compare(t, primary, control.ShutDown)
			primary.Start()
			primary.Exec("CREATE TABLE t AS SELECT generate_series(1, 1000)")
			primary.Exec("CHECKPOINT")
			compare(t, primary, control.InProduction)

			standby := primary.Standby(pgtest.Options{Name: "s"}, primary.Conninfo(""))
			standby.Start()
			primary.Exec("INSERT INTO t SELECT generate_series(1, 1000)")
			standby.WaitLSN(primary.LSN())
			c := compare(t, standby, control.InArchiveRecovery)
			if c.MinRecovery == 0 || c.MinRecoveryTLI != 1 {
				t.Errorf("the standby's minimum recovery point is %s on timeline %s, want one", c.MinRecovery, c.MinRecoveryTLI)
			}
			standby.Stop(pgserver.Fast)
			compare(t, standby, control.ShutDownInRecovery)
			standby.Start()
			standby.Promote()
			standby.WaitQuery("2", "CHECKPOINT; SELECT timeline_id FROM pg_control_checkpoint()")
			if c := compare(t, standby, control.InProduction); c.TLI != 2 {
				t.Errorf("after the promotion the timeline is %s, want 2", c.TLI)
			}

			primary.Kill()
			compare(t, primary, control.InProduction)
			primary.Start()
			primary.Stop(pgserver.Fast)
			compare(t, primary, control.ShutDown)
		})
	}
}

// compare holds what Parse answers for s against what pg_controldata prints.
// A server that runs may write the file between the two: then both are read
// again.
func compare(t *testing.T, s *pgtest.Server, state control.State) *control.Control {
	t.Helper()
	path := filepath.Join(s.Dir, "global", "pg_control")
	var c *control.Control
	var printed map[string]string
	pgtest.Wait(t, "a pg_control that nobody writes", func() (bool, string) {
		before := read(t, path)
		printed = controlData(t, s)
		var err error
		if c, err = control.Parse(before); err != nil {
			return false, err.Error()
		}
		return string(read(t, path)) == string(before), "it changed while it was read"
	})
	if c.State != state {
		t.Errorf("state is %q, want %q", c.State, state)
	}
	onOff := func(b bool) string {
		if b {
			return "on"
		}
		return "off"
	}
	yesNo := map[bool]string{false: "no", true: "yes"}
	for label, got := range map[string]string{
		"pg_control version number":            fmt.Sprint(c.Version),
		"Catalog version number":               fmt.Sprint(c.CatalogVersion),
		"Database system identifier":           fmt.Sprint(c.SystemID),
		"Database cluster state":               c.State.String(),
		"pg_control last modified":             c.Time.UTC().Format(time.ANSIC),
		"Latest checkpoint location":           c.Checkpoint.String(),
		"Latest checkpoint's REDO location":    c.Redo.String(),
		"Latest checkpoint's TimeLineID":       c.TLI.String(),
		"Latest checkpoint's PrevTimeLineID":   c.PrevTLI.String(),
		"Latest checkpoint's full_page_writes": onOff(c.FullPageWrites),
		"Time of latest checkpoint":            c.CheckpointTime.UTC().Format(time.ANSIC),
		"Minimum recovery ending location":     c.MinRecovery.String(),
		"Min recovery ending loc's timeline":   c.MinRecoveryTLI.String(),
		"Backup start location":                c.BackupStart.String(),
		"Backup end location":                  c.BackupEnd.String(),
		"End-of-backup record required":        yesNo[c.BackupEndRequired],
		"wal_level setting":                    c.WALLevel.String(),
		"wal_log_hints setting":                onOff(c.WALLogHints),
		"max_connections setting":              fmt.Sprint(c.MaxConnections),
		"max_worker_processes setting":         fmt.Sprint(c.MaxWorkerProcesses),
		"max_wal_senders setting":              fmt.Sprint(c.MaxWALSenders),
		"max_prepared_xacts setting":           fmt.Sprint(c.MaxPreparedXacts),
		"max_locks_per_xact setting":           fmt.Sprint(c.MaxLocksPerXact),
		"track_commit_timestamp setting":       onOff(c.TrackCommitTimestamp),
		"Database block size":                  fmt.Sprint(c.BlockSize),
		"Blocks per segment of large relation": fmt.Sprint(c.SegmentBlocks),
		"WAL block size":                       fmt.Sprint(c.WALBlockSize),
		"Bytes per WAL segment":                strconv.Itoa(int(c.WALSegmentSize)),
		"Data page checksum version":           fmt.Sprint(c.ChecksumVersion),
	} {
		want, ok := printed[label]
		if !ok {
			t.Errorf("pg_controldata does not print %q", label)
		} else if got != want {
			t.Errorf("%s: got %q, pg_controldata prints %q", label, got, want)
		}
	}
	return c
}

func controlData(t *testing.T, s *pgtest.Server) map[string]string {
	t.Helper()
	cmd := pgtest.Command(t, controlDataFor(s.Major), "pg_controldata", "-D", s.Dir)
	cmd.Env = append(cmd.Env, "TZ=UTC")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("%v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	printed := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if label, value, ok := strings.Cut(line, ":"); ok {
			printed[label] = strings.TrimSpace(value)
		}
	}
	return printed
}

// controlDataFor is the version whose pg_controldata reads major's files: its
// own, or where that is not installed one with the same format, which was 1300
// from 13 to 16.
func controlDataFor(major int) int {
	for _, m := range []int{major, 13, 15} {
		if _, err := pgserver.Tool(m, "pg_controldata"); err == nil && (m == major || major <= 16) {
			return m
		}
	}
	return major
}

func read(t testing.TB, path string) []byte {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// No bit of what the CRC covers, and none of the CRC, can flip unnoticed.
func TestFlippedBits(t *testing.T) {
	for _, major := range []int{13, 17, 18} {
		whole := fresh(t, major)
		c, err := control.Parse(whole)
		if err != nil {
			t.Fatal(err)
		}
		end := 292
		if c.Version == 1800 {
			end = 296
		}
		for bit := range end * 8 {
			b := append([]byte(nil), whole...)
			b[bit/8] ^= 1 << (bit % 8)
			_, err := control.Parse(b)
			var crc *control.CRCError
			var version *control.VersionError
			inVersion := bit/8 >= 8 && bit/8 < 12
			if inVersion && !errors.As(err, &version) && !errors.As(err, &crc) || !inVersion && !errors.As(err, &crc) {
				t.Fatalf("%d: with bit %d of byte %d flipped Parse answers %v", major, bit%8, bit/8, err)
			}
		}
	}
}

func TestRefused(t *testing.T) {
	whole := fresh(t, 18)
	if _, err := control.Parse(whole[:511]); err == nil || !strings.Contains(err.Error(), "only 511 bytes") {
		t.Errorf("a short file: %v", err)
	}
	for _, tt := range []struct {
		name    string
		version uint32
		want    string
	}{
		{"PostgreSQL 12", 1201, "version 1201, which is not one of PostgreSQL 13 to 18"},
		{"the other byte order", 0x14050000, "version 1300 was written by a big-endian server"},
		{"zeros", 0, "version 0, which"},
	} {
		b := append([]byte(nil), whole...)
		binary.LittleEndian.PutUint32(b[8:], tt.version)
		if _, err := control.Parse(b); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got error %v, want %q in it", tt.name, err, tt.want)
		}
	}
}

func fresh(t testing.TB, major int) []byte {
	t.Helper()
	s := pgtest.New(t, pgtest.Options{Major: major})
	return read(t, filepath.Join(s.Dir, "global", "pg_control"))
}

func FuzzParse(f *testing.F) {
	for _, major := range []int{13, 17, 18} {
		f.Add(fresh(f, major)[:512])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// With a CRC that is right, or nothing would ever get past it.
		if end := map[uint32]int{1300: 288, 1700: 288, 1800: 292}; len(b) >= 512 {
			if at := end[binary.LittleEndian.Uint32(b[8:])]; at > 0 {
				b = append([]byte(nil), b...)
				binary.LittleEndian.PutUint32(b[at:], crc32.Checksum(b[:at], crc32.MakeTable(crc32.Castagnoli)))
			}
		}
		c, err := control.Parse(b)
		if (c == nil) == (err == nil) {
			t.Fatalf("Parse answers both or neither: %v, %v", c, err)
		}
		if c != nil {
			_ = c.State.String() + c.WALLevel.String()
		}
	})
}
