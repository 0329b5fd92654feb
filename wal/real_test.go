package wal_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/wal"
)

var update = flag.Bool("update", false, "make the golden WAL of testdata anew, with real servers")

// noWaldump are the versions of which only the server itself is to be had.
var noWaldump = []int{14, 16}

// TestRealWAL makes real servers write all kinds of WAL, spoils it as a crash
// would, and reads it beside pg_waldump: the same records, field by field.
func TestRealWAL(t *testing.T) {
	for _, major := range pgtest.Some {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := pgtest.Start(t, pgtest.Options{Major: major, InitdbArgs: []string{"--wal-segsize=1"}, Settings: map[string]string{
				"wal_level": "logical", "max_prepared_transactions": "5", "autovacuum": "off",
				"track_commit_timestamp": "on", "max_wal_size": "64MB",
			}})
			dir := filepath.Join(s.Dir, "pg_wal")
			load(t, s)
			if major == 15 || major == 16 {
				compareWithWalinspect(t, s, directory{dir, megabyte, 1})
			}

			// A record of which the server had written the beginning when it
			// crashed, and had not yet written the rest.
			lost := lsn(t, s.QueryValue("SELECT pg_current_wal_insert_lsn()"))
			s.Exec("SELECT pg_logical_emit_message(true, 'lost', repeat('x', 2500000))")
			s.Stop(pgserver.Immediate)
			for _, file := range segments(t, dir, 1) {
				if file > megabyte.FileName(1, lost) {
					if err := os.Remove(filepath.Join(dir, file)); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.Start()
			s.Exec("CREATE TABLE after_crash (i int)")
			s.Exec("INSERT INTO after_crash SELECT generate_series(1, 100)")
			end := s.LSN()
			s.Stop(pgserver.Immediate)
			operations := compare(t, s, directory{dir, megabyte, 1}, 1, end)
			for _, want := range []string{
				"Heap INSERT", "Heap HOT_UPDATE", "Heap DELETE", "Heap2 MULTI_INSERT+INIT", "Btree SPLIT_R", "Transaction COMMIT",
				"Transaction ABORT", "Transaction PREPARE", "Transaction COMMIT_PREPARED", "Standby RUNNING_XACTS", "XLOG SWITCH",
				"XLOG FPI", "XLOG CHECKPOINT_ONLINE", "XLOG OVERWRITE_CONTRECORD", "LogicalMessage MESSAGE", "Sequence LOG",
			} {
				if operations[want] == 0 {
					t.Errorf("there is no %s among the records; the test shows less than it says", want)
				}
			}

			// A promotion, in the middle of a segment.
			if err := os.WriteFile(filepath.Join(s.Dir, "standby.signal"), nil, 0o644); err != nil {
				t.Fatal(err)
			}
			s.Start()
			s.Promote()
			s.Exec("INSERT INTO after_crash SELECT generate_series(1, 10000)")
			end = s.LSN()
			s.Stop(pgserver.Immediate)
			text, err := os.ReadFile(filepath.Join(dir, wal.TLI(2).HistoryName()))
			if err != nil {
				t.Fatal(err)
			}
			h := parseHistory(t, 2, string(text))
			if h.Format() != string(text) {
				t.Errorf("the server wrote the history %q, we write %q", text, h.Format())
			}
			fork, next, _ := h.SwitchPoint(1)
			if next != 2 || megabyte.Offset(fork) == 0 {
				t.Fatalf("the switch is at %s to %d", fork, next)
			}
			operations = compare(t, s, directory{dir, megabyte, 2}, 2, end)
			if operations["XLOG END_OF_RECOVERY"]+operations["XLOG CHECKPOINT_SHUTDOWN"] == 0 {
				t.Error("the new timeline has no end of recovery")
			}

			// One stream of one path: both timelines, from the first byte on.
			r := wal.NewReader(path{dir, megabyte, h}, megabyte, 0, 2, first(t, dir, 1))
			lsns, got, err := readAll(r)
			if got < end || len(lsns) < 1000 {
				t.Errorf("read %d records along the path, up to %s of %s: %v", len(lsns), got, end, err)
			}
		})
	}
}

// load makes a server write WAL of many kinds.
func load(t testing.TB, s *pgtest.Server) {
	for _, sql := range []string{
		"CREATE TABLE t (i int PRIMARY KEY, v text)",
		"CREATE SEQUENCE q", "SELECT nextval('q')",
		"INSERT INTO t SELECT i, repeat(md5(i::text), 5) FROM generate_series(1, 8000) i",
		"CREATE INDEX ON t (v)", "CREATE INDEX ON t USING gin (to_tsvector('simple', v))", "CREATE INDEX ON t USING hash (v)",
		"CREATE INDEX ON t USING brin (i)", "CREATE INDEX ON t USING spgist (v)",
		"CREATE TABLE p (p point)", "CREATE INDEX ON p USING gist (p)",
		"INSERT INTO p SELECT point(i, i * 7 % 1000) FROM generate_series(1, 1000) i",
		"CHECKPOINT",
		"UPDATE t SET v = 'x' || v WHERE i % 50 = 0", // images of whole pages
		"SET wal_compression = on; UPDATE p SET p = point(1, 1) WHERE p[0] < 100; CHECKPOINT; UPDATE p SET p = point(2, 2) WHERE p[0] > 900",
		"CREATE TABLE small (i int); INSERT INTO small VALUES (1), (2); UPDATE small SET i = 3; DELETE FROM small WHERE i = 3",
		"DELETE FROM t WHERE i % 3 = 0", "VACUUM t", "VACUUM FREEZE p", "TRUNCATE p",
		"CREATE TABLE c (LIKE t)", "INSERT INTO c SELECT * FROM t", "ALTER TABLE c ADD UNIQUE (i)", "DROP TABLE c",
		"SELECT pg_switch_wal()",
		"BEGIN; INSERT INTO small VALUES (4); ROLLBACK",
		// A commit with more subtransactions than fit on a page.
		"DO $$ BEGIN FOR n IN 1..3000 LOOP BEGIN INSERT INTO small VALUES (n); EXCEPTION WHEN division_by_zero THEN NULL; END; END LOOP; END $$",
		"BEGIN; INSERT INTO small VALUES (5); SAVEPOINT s; INSERT INTO small VALUES (6); PREPARE TRANSACTION 'one'", "COMMIT PREPARED 'one'",
		"BEGIN; INSERT INTO small VALUES (7); CREATE TABLE gone (i int); PREPARE TRANSACTION 'it''s two'", "ROLLBACK PREPARED 'it''s two'",
		"BEGIN; LOCK TABLE small IN ACCESS EXCLUSIVE MODE; SELECT * FROM small LIMIT 1 FOR UPDATE; COMMIT",
		"SELECT pg_logical_emit_message(true, 'big', repeat('message', 500000))",
		"SELECT pg_logical_emit_message(false, 'small', 'now')",
		"SELECT pg_create_restore_point('before all')",
		"SELECT pg_switch_wal()", "CHECKPOINT", "BEGIN; CREATE TABLE l (i int); COPY l FROM PROGRAM 'seq 500'; COMMIT",
		"CREATE DATABASE other", "DROP DATABASE other",
		"INSERT INTO t SELECT i, i::text FROM generate_series(10000, 12000) i ON CONFLICT DO NOTHING",
	} {
		exec(t, s, sql)
	}
}

// compare reads the WAL of one timeline with us and with pg_waldump, and
// answers how often each operation was there. The server is not running.
func compare(t *testing.T, s *pgtest.Server, src directory, tli wal.TLI, atLeast wal.LSN) (operations map[string]int) {
	t.Helper()
	from := first(t, src.dir, tli)
	c, why, err := wal.FindEnd(src, megabyte, 0, tli, from)
	if err != nil {
		t.Fatal(err)
	}
	if c.End() < atLeast {
		t.Fatalf("WAL seems to end at %s because %v; the server had flushed it up to %s", c.End(), why, atLeast)
	}

	var ours []string
	operations = map[string]int{}
	r := wal.NewReader(src, megabyte, 0, tli, from)
	last := wal.LSN(0)
	for {
		rec, err := r.Next()
		if err != nil {
			if err != wal.ErrEndOfWAL {
				corrupt(t, err)
			}
			break
		}
		if _, err := rec.Decode(); err != nil {
			t.Fatal(err)
		}
		if rec.Major() != s.Major {
			t.Fatalf("the record at %s is said to be of %d", rec.LSN, rec.Major())
		}
		operations[rec.RMgr.String()+" "+rec.Operation()]++
		ours = append(ours, comparable(rec.String()))
		last = rec.LSN
	}
	if r.Pos() != c.End() || last != c.Prev() {
		t.Errorf("the Reader ended at %s after %s, the Checker at %s after %s", r.Pos(), last, c.End(), c.Prev())
	}
	if slices.Contains(noWaldump, s.Major) {
		return operations
	}

	theirs, said := waldump(t, s.Major, src.dir, tli, from)
	for i := range max(len(ours), len(theirs)) {
		switch {
		case i >= len(ours):
			t.Fatalf("record %d is only seen by pg_waldump: %s", i, theirs[i])
		case i >= len(theirs):
			t.Fatalf("record %d is not seen by pg_waldump: %s\nIt said: %s", i, ours[i], said)
		case ours[i] != theirs[i]:
			t.Fatalf("record %d\n        is %s\npg_waldump %s", i, ours[i], theirs[i])
		}
	}
	t.Logf("%d records of timeline %d from %s to %s are the same", len(ours), tli, from, c.End())
	return operations
}

// waldump is what pg_waldump prints of WAL from a segment's start on, as far as
// it can be compared, and what it said when it came to the end.
func waldump(t testing.TB, major int, dir string, tli wal.TLI, from wal.LSN) (lines []string, said string) {
	t.Helper()
	cmd := pgtest.Command(t, major, "pg_waldump", "-p", dir, "-t", fmt.Sprint(tli), "-s", from.String())
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err == nil {
		t.Fatal("pg_waldump found no end of WAL")
	}
	for line := range strings.Lines(stdout.String()) {
		if strings.HasPrefix(line, "rmgr: ") {
			lines = append(lines, comparable(strings.TrimSpace(line)))
		}
	}
	return lines, stderr.String()
}

// comparable is what we and pg_waldump say alike: all up to the operation, and
// the blocks. It prints more of what operations did than we, and differently
// from version to version.
func comparable(line string) string {
	head, rest, ok := strings.Cut(line, " desc: ")
	if !ok {
		return line
	}
	b := []byte(head + " desc: " + operationRE.FindString(rest))
	for _, block := range strings.Split(rest, ", blkref #")[1:] {
		b = append(b, ", blkref #"...)
		b = append(b, blockRE.FindString(block)...)
	}
	return string(b)
}

// Both are anchored, for the sake of the 200,000 lines that they see.
var (
	operationRE = regexp.MustCompile(`^(UNKNOWN \([0-9a-f]+\)|[A-Za-z0-9_+]+)`)
	blockRE     = regexp.MustCompile(`^\d+: rel \d+/\d+/\d+( fork \w+)? blk \d+( FPW( for WAL verification)?)?`)
)

// compareWithWalinspect asks a running server itself.
func compareWithWalinspect(t *testing.T, s *pgtest.Server, src directory) {
	s.Exec("CREATE EXTENSION pg_walinspect")
	r := wal.NewReader(src, megabyte, 0, 1, first(t, src.dir, 1))
	rec, err := r.Next()
	if err != nil {
		t.Fatal(err)
	}
	rows := s.Query(`SELECT start_lsn, end_lsn, prev_lsn, xid, resource_manager, record_type, record_length, main_data_length, fpi_length
		FROM pg_get_wal_records_info($1::pg_lsn, pg_current_wal_flush_lsn())`, rec.LSN.String())
	if len(rows) < 1000 {
		t.Fatalf("pg_walinspect has only %d records", len(rows))
	}
	for i, want := range rows {
		content, err := rec.Decode()
		if err != nil {
			t.Fatal(err)
		}
		images := 0
		for _, b := range content.Blocks {
			images += len(b.Image)
		}
		got := []string{rec.LSN.String(), rec.End.String(), rec.Prev.String(), fmt.Sprint(rec.XID), rec.RMgr.String(), rec.Operation(),
			fmt.Sprint(rec.Length), fmt.Sprint(len(content.Main)), fmt.Sprint(images)}
		if !slices.Equal(got, want) {
			t.Fatalf("record %d\n       is %v\nthe server says %v", i, got, want)
		}
		if rec, err = r.Next(); err != nil && i+1 < len(rows) {
			t.Fatal(err)
		}
	}
}

// exec runs statements one by one in one session.
func exec(t testing.TB, s *pgtest.Server, sql string) {
	t.Helper()
	conn, err := s.Connect(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(t.Context())
	statements := []string{sql}
	if !strings.HasPrefix(sql, "DO") {
		statements = strings.Split(sql, "; ")
	}
	for _, sql := range statements {
		if _, err := conn.Exec(t.Context(), sql); err != nil {
			t.Fatalf("%v\n%s", err, sql)
		}
	}
}

func lsn(t testing.TB, text string) wal.LSN {
	t.Helper()
	lsn, err := wal.ParseLSN(text)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// segments are the names of the segments of a timeline in dir, in order.
func segments(t testing.TB, dir string, tli wal.TLI) (names []string) {
	t.Helper()
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if got, _, err := megabyte.ParseFileName(file.Name()); err == nil && got == tli {
			names = append(names, file.Name())
		}
	}
	if len(names) == 0 {
		t.Fatalf("no segment of timeline %d in %q", tli, dir)
	}
	return names
}

// first is where the first segment of a timeline in dir begins.
func first(t testing.TB, dir string, tli wal.TLI) wal.LSN {
	t.Helper()
	_, lsn, _ := megabyte.ParseFileName(segments(t, dir, tli)[0])
	return lsn
}

// A directory is one timeline's segments as a source.
type directory struct {
	dir  string
	size wal.SegmentSize
	tli  wal.TLI
}

func (d directory) ReadAt(p []byte, off int64) (int, error) {
	return readSegments(p, wal.LSN(off), d.size, func(lsn wal.LSN) string {
		return filepath.Join(d.dir, d.size.FileName(d.tli, lsn))
	})
}

// A path is the segments of all timelines in a history. The segment in which
// one is left is read from the next, whose copy has both.
type path struct {
	dir     string
	size    wal.SegmentSize
	history *wal.History
}

func (d path) ReadAt(p []byte, off int64) (int, error) {
	return readSegments(p, wal.LSN(off), d.size, func(lsn wal.LSN) string {
		return filepath.Join(d.dir, d.size.FileName(d.history.TLIAt(d.size.Next(lsn)-1), lsn))
	})
}

func readSegments(p []byte, at wal.LSN, size wal.SegmentSize, file func(wal.LSN) string) (n int, err error) {
	for n < len(p) {
		f, err := os.Open(file(at))
		if errors.Is(err, os.ErrNotExist) {
			return n, io.EOF
		} else if err != nil {
			return n, err
		}
		want := min(len(p)-n, int(size.Next(at)-at))
		got, err := f.ReadAt(p[n:n+want], int64(size.Offset(at)))
		f.Close()
		n += got
		at += wal.LSN(got)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}
