package wal_test

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/wal"
)

// Golden WAL is a little of each version, made by a real server: NN.wal.gz is
// what is in its segments, from the start of one up to where WAL ends, and
// NN.waldump what pg_waldump printed of it, for the versions of which it is to
// be had. Both are made anew by
//
//	go test ./wal -run TestGolden -update
type golden struct {
	memory
	major    int
	systemID uint64
	dump     []string // nil if there is none
}

func readGolden(t testing.TB) (all []golden) {
	t.Helper()
	files, err := filepath.Glob("testdata/*.wal.gz")
	if err != nil || len(files) != len(pgtest.Majors) {
		t.Fatalf("found golden WAL %v, %v; want it of %v", files, err, pgtest.Majors)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		z, err := gzip.NewReader(f)
		if err != nil {
			t.Fatal(err)
		}
		var g golden
		if g.b, err = io.ReadAll(z); err != nil {
			t.Fatal(err)
		}
		fmt.Sscan(filepath.Base(file)[:2], &g.major)
		g.base = wal.LSN(binary.LittleEndian.Uint64(g.b[8:]))
		g.systemID = binary.LittleEndian.Uint64(g.b[24:])
		dump, err := os.ReadFile(strings.TrimSuffix(file, ".wal.gz") + ".waldump")
		if err == nil {
			g.dump = strings.Split(strings.TrimSpace(string(dump)), "\n")
		} else if !slices.Contains(noWaldump, g.major) {
			t.Fatal(err)
		}
		all = append(all, g)
	}
	return all
}

func TestGolden(t *testing.T) {
	if *update {
		for _, major := range pgtest.Majors {
			makeGolden(t, major)
		}
	}
	for _, g := range readGolden(t) {
		t.Run(fmt.Sprint(g.major), func(t *testing.T) {
			r := wal.NewReader(g, megabyte, g.systemID, 1, g.base)
			var last *wal.Record
			n := 0
			for ; ; n++ {
				rec, err := r.Next()
				if err != nil {
					if err != wal.ErrEndOfWAL {
						t.Error(err)
					}
					break
				}
				if rec.Major() != g.major {
					t.Fatalf("the record at %s is said to be of %d", rec.LSN, rec.Major())
				}
				if g.dump != nil && n >= len(g.dump) {
					t.Fatalf("pg_waldump does not see %s", rec)
				}
				if g.dump != nil && comparable(rec.String()) != comparable(g.dump[n]) {
					t.Fatalf("record %d\n        is %s\npg_waldump %s", n, rec, g.dump[n])
				}
				if rec.RMgr == wal.RMgrLogicalMessage && strings.Contains(rec.String(), `prefix "the end"`) {
					last = rec
				}
			}
			if end := g.base + wal.LSN(len(g.b)); r.Pos() != end {
				t.Errorf("read up to %s of %s", r.Pos(), end)
			}
			if g.dump != nil && n != len(g.dump) {
				t.Errorf("read %d records, pg_waldump %d", n, len(g.dump))
			}
			if last == nil || n < 50 {
				t.Errorf("read %d records, but not what the server wrote at the end", n)
			}
		})
	}
}

// Some lines are worth reading whole.
func TestDescriptions(t *testing.T) {
	for _, g := range readGolden(t) {
		t.Run(fmt.Sprint(g.major), func(t *testing.T) {
			want := map[string]string{ // the operation, and what its description contains
				"XLOG CHECKPOINT_ONLINE":      fmt.Sprintf("; tli 1; prev tli 1; fpw true; %sxid 0:", map[bool]string{true: "wal_level logical; "}[g.major >= 17]),
				"XLOG SWITCH":                 "desc: SWITCH",
				"XLOG RESTORE_POINT":          "desc: RESTORE_POINT a point",
				"XLOG FPI_FOR_HINT":           " FPW",
				"LogicalMessage MESSAGE":      `transactional, prefix "a big one"; payload (20000 bytes)`,
				"Transaction COMMIT":          " UTC",
				"Transaction PREPARE":         "desc: PREPARE gid one: 20",
				"Transaction COMMIT_PREPARED": `; gid "one"`,
				"Standby RUNNING_XACTS":       "desc: RUNNING_XACTS nextXid ",
				"Heap INSERT":                 "desc: INSERT off: ",
				"Heap HOT_UPDATE":             ", new_off: ",
				"Heap DELETE":                 "desc: DELETE xmax: ",
				"Btree INSERT_LEAF":           "desc: INSERT_LEAF off: ",
				"Storage CREATE":              "fork main",
			}
			r := wal.NewReader(g, megabyte, g.systemID, 1, g.base)
			seen := map[string][]string{}
			for {
				rec, err := r.Next()
				if err != nil {
					break
				}
				op := rec.RMgr.String() + " " + rec.Operation()
				seen[op] = append(seen[op], rec.String())
			}
			for op, text := range want {
				if !slices.ContainsFunc(seen[op], func(line string) bool { return strings.Contains(line, text) }) {
					t.Errorf("no %s says %q:\n%s", op, text, strings.Join(seen[op], "\n"))
				}
			}
			// The subtransactions of a commit.
			if !slices.ContainsFunc(seen["Transaction COMMIT"], func(line string) bool {
				_, xids, ok := strings.Cut(line, "; subxacts: ")
				return ok && len(strings.Fields(xids)) >= 3
			}) {
				t.Errorf("no commit has subtransactions: %q", seen["Transaction COMMIT"])
			}
		})
	}
}

// makeGolden has a server of the version write a little of everything.
func makeGolden(t *testing.T, major int) {
	s := pgtest.Start(t, pgtest.Options{Major: major, InitdbArgs: []string{"--wal-segsize=1"}, Settings: map[string]string{
		"wal_level": "logical", "max_prepared_transactions": "5", "autovacuum": "off", "bgwriter_lru_maxpages": "0",
	}})
	exec(t, s, "CREATE TABLE t (i int PRIMARY KEY, v text); INSERT INTO t SELECT i, 'x' FROM generate_series(1, 20) i; CHECKPOINT")
	dir := filepath.Join(s.Dir, "pg_wal")
	exec(t, s, "SELECT pg_switch_wal()")
	from := megabyte.Start(lsn(t, s.QueryValue("SELECT pg_current_wal_insert_lsn()")))
	for _, sql := range []string{
		"INSERT INTO t VALUES (100, 'y'); UPDATE t SET v = 'z' WHERE i = 100; DELETE FROM t WHERE i = 1",
		"BEGIN; INSERT INTO t VALUES (101, ''); SAVEPOINT a; INSERT INTO t VALUES (102, ''); SAVEPOINT b; INSERT INTO t VALUES (103, ''); SAVEPOINT c; INSERT INTO t VALUES (104, ''); COMMIT",
		"BEGIN; INSERT INTO t VALUES (105, ''); ROLLBACK",
		"BEGIN; INSERT INTO t VALUES (106, ''); SAVEPOINT a; INSERT INTO t VALUES (107, ''); PREPARE TRANSACTION 'one'", "COMMIT PREPARED 'one'",
		"SELECT pg_logical_emit_message(true, 'a big one', repeat('x', 20000))",
		"SELECT pg_create_restore_point('a point')",
		"CHECKPOINT; SELECT count(*) FROM t; UPDATE t SET v = 'w' WHERE i = 2", // an image of the page
		"SELECT pg_switch_wal()",
		"SET wal_compression = on; CHECKPOINT; UPDATE t SET v = 'v' WHERE i = 3",
		"CREATE TABLE u (i int); DROP TABLE u",
		"SELECT pg_logical_emit_message(true, 'the end', 'x')",
	} {
		exec(t, s, sql)
	}
	s.Stop(pgserver.Immediate)

	src := directory{dir, megabyte, 1}
	c, why, err := wal.FindEnd(src, megabyte, 0, 1, from)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d: from %s to %s, where %v", major, from, c.End(), why)
	b := make([]byte, c.End()-from)
	if _, err := src.ReadAt(b, int64(from)); err != nil {
		t.Fatal(err)
	}
	var z bytes.Buffer
	w, _ := gzip.NewWriterLevel(&z, gzip.BestCompression)
	w.Write(b)
	w.Close()
	name := filepath.Join("testdata", fmt.Sprint(major))
	if err := os.MkdirAll("testdata", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name+".wal.gz", z.Bytes(), 0o644); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(noWaldump, major) {
		return
	}
	cmd := pgtest.Command(t, major, "pg_waldump", "-p", dir, "-s", from.String())
	out, _ := cmd.Output() // it ends with an error where WAL does
	var lines []string
	for line := range strings.Lines(string(out)) {
		if strings.HasPrefix(line, "rmgr: ") {
			line, _, _ = strings.Cut(strings.TrimSpace(line), " bytes): 78 78 ") // a message is shown in hexadecimal
			lines = append(lines, line+"\n")
		}
	}
	if err := os.WriteFile(name+".waldump", []byte(strings.Join(lines, "")), 0o644); err != nil {
		t.Fatal(err)
	}
}

// Whichever bit of a record is another, the record is refused, or it is not
// complete any more; in no case is its end good.
func TestFlippedBits(t *testing.T) {
	for _, g := range readGolden(t) {
		t.Run(fmt.Sprint(g.major), func(t *testing.T) {
			b := slices.Clone(g.b)
			r := wal.NewReader(g, megabyte, g.systemID, 1, g.base)
			flips := 0
			for {
				rec, err := r.Next()
				if err != nil {
					break
				}
				from, to := int(rec.LSN-g.base), int(rec.End-g.base)
				if rec.Operation() == "SWITCH" {
					to = from + 24
				}
				// All bits of small records, some of large ones.
				step := 1 + int(rec.Length)/100
				for bit := 0; bit < int(rec.Length)*8; bit += step {
					at := from + bit/8
					if header := inPageHeader(g, rec, at); header {
						continue
					}
					flips++
					b[at] ^= 1 << (bit % 8)
					c := wal.NewChecker(megabyte, g.systemID, 1, rec.LSN)
					if _, err := c.Write(b[from:to]); c.End() != rec.LSN {
						t.Fatalf("bit %d of %s was flipped: End is %s, error %v", bit, rec, c.End(), err)
					}
					b[at] ^= 1 << (bit % 8)
				}
				c := wal.NewChecker(megabyte, g.systemID, 1, rec.LSN)
				if _, err := c.Write(b[from:to]); err != nil || c.Prev() != rec.LSN {
					t.Fatalf("%s is refused as it is: %v", rec, err)
				}
			}
			if flips < 10000 {
				t.Errorf("only %d bits were flipped", flips)
			}
		})
	}
}

// inPageHeader reports whether the byte at an offset is of a page that the
// record continues on, and so none of its own.
func inPageHeader(g golden, rec *wal.Record, at int) bool {
	offset := wal.LSN(at) + g.base
	in := offset % pageSize
	first := rec.LSN-rec.LSN%pageSize == offset-in
	return !first && (in < 24 || megabyte.Offset(offset) < 40)
}
