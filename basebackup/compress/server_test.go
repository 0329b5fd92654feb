package compress_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"rideau/basebackup/compress"
	"rideau/internal/pgtest"
)

const chunk = 256 << 10

// plainRole is one that can take a backup and nothing else.
const plainRole = `CREATE ROLE bk LOGIN;
GRANT EXECUTE ON FUNCTION pg_read_binary_file(text, bigint, bigint, boolean) TO bk`

// connect is as the plain role, unless conninfo says otherwise.
func connect(t testing.TB, conninfo string) *pgx.Conn {
	t.Helper()
	c, err := pgx.ParseConfig(conninfo)
	if err != nil {
		t.Fatal(err)
	}
	c.User = "bk"
	conn, err := pgx.ConnectConfig(context.Background(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close(context.Background()) })
	return conn
}

func detect(t testing.TB, conn *pgx.Conn) []compress.Method {
	t.Helper()
	rows, err := conn.Query(context.Background(), compress.FactsSQL)
	if err != nil {
		t.Fatal(err)
	}
	facts, err := pgx.CollectRows(rows, pgx.RowToStructByPos[compress.Fact])
	if err != nil {
		t.Fatal(err)
	}
	return compress.Detect(facts)
}

func names(methods []compress.Method) string {
	var s []string
	for _, m := range methods {
		s = append(s, m.Name)
	}
	return strings.Join(s, " ")
}

func bytesOf(t testing.TB, conn *pgx.Conn, sql string, args ...any) []byte {
	t.Helper()
	var b []byte
	if err := conn.QueryRow(context.Background(), sql, args...).Scan(&b); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return b
}

// paths of files of all kinds: tables, an index, a map of free space, of noise, of
// what is already compressed, and files that are not made of pages.
func paths(t testing.TB, s *pgtest.Server) []string {
	s.Exec(`CREATE TABLE noise AS SELECT i, sha512(i::text::bytea) || sha512((i+1)::text::bytea) AS b FROM generate_series(1, 20000) i`)
	s.Exec(`CREATE TABLE hollow (i int, filler text) WITH (fillfactor = 20)`)
	s.Exec(`INSERT INTO hollow SELECT i, repeat('x', i%200) FROM generate_series(1, 20000) i`)
	s.Exec(`CREATE INDEX ON hollow USING gin ((ARRAY[i, i%7]))`)
	s.Exec(`DELETE FROM hollow WHERE i % 3 = 0`)
	s.Exec(`VACUUM hollow, noise`)
	s.Exec(`CHECKPOINT`)
	var list []string
	for _, row := range s.Query(`SELECT pg_relation_filepath(oid) || fork FROM pg_class, (VALUES (''), ('_fsm')) f(fork)
 WHERE relname ~ '^(pgbench_accounts|noise|hollow|pg_proc|pg_statistic)' AND relkind IN ('r', 'i')
 AND (pg_stat_file(pg_relation_filepath(oid) || fork, true)).size IS NOT NULL`) {
		list = append(list, row[0])
	}
	if len(list) < 10 {
		t.Fatalf("only %q are there to compress", list)
	}
	return append(list, "PG_VERSION", "postgresql.conf", "global/pg_control", "pg_xact/0000", "global/pg_filenode.map")
}

// compare reads every file in chunks, plain and compressed, and returns how many
// bytes it was each way.
func compare(t *testing.T, conn *pgx.Conn, dir string, m compress.Method, paths []string) (raw, packed int) {
	t.Helper()
	d := m.NewDecoder()
	const read = "pg_read_binary_file($1, $2, $3, true)"
	for _, path := range paths {
		st, err := os.Stat(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		for off := int64(0); off <= st.Size(); off += chunk { // once more than there is: empty
			// Twice in one row, so that it is the same at both.
			var want, sent []byte
			err := conn.QueryRow(context.Background(),
				"SELECT c, "+m.Expr("c")+" FROM (SELECT "+read+" AS c OFFSET 0) s", path, off, int64(chunk)).Scan(&want, &sent)
			if err != nil {
				t.Fatal(err)
			}
			raw, packed = raw+len(want), packed+len(sent)
			got, err := d.Decode(nil, sent, len(want))
			if err != nil || !bytes.Equal(got, want) {
				t.Fatalf("%s: %s at %d: %d bytes became %d: %v", m.Name, path, off, len(want), len(got), err)
			}
			if (len(want) == 0) != (len(sent) == 0) {
				t.Errorf("%s: empty is sent as %d bytes", m.Name, len(sent))
			}
		}
	}
	if b := bytesOf(t, conn, "SELECT "+m.Expr("pg_read_binary_file('base/none', 0, 1, true)")); b != nil {
		t.Errorf("%s: of no file it makes %q", m.Name, b)
	}
	return raw, packed
}

// madeElsewhere stands for a compressor in a language that is not installed here:
// a function that knows the gzip of what it will be asked for, by its digest.
//
// PL/Python's would be: return zlib.compress(raw, 1).
func madeElsewhere(t *testing.T, s *pgtest.Server, paths []string) {
	s.Exec(`CREATE SCHEMA rideau`)
	s.Exec(`CREATE TABLE rideau.made (digest bytea PRIMARY KEY, packed bytea NOT NULL)`)
	s.Exec(`CREATE FUNCTION rideau.compress(raw bytea) RETURNS bytea LANGUAGE sql STABLE STRICT SECURITY DEFINER
 SET search_path = pg_catalog, pg_temp AS 'SELECT packed FROM rideau.made WHERE digest = sha256(raw)'`)
	s.Exec(`GRANT USAGE ON SCHEMA rideau TO bk`)
	for _, path := range paths {
		b, err := os.ReadFile(filepath.Join(s.Dir, path))
		if err != nil {
			t.Fatal(err)
		}
		for len(b) > 0 {
			n := min(len(b), chunk)
			raws := [][]byte{b[:n]}
			if n >= 64<<10 { // the sample that a large chunk is tried with
				raws = append(raws, b[n/2-1:n/2-1+8192])
			}
			for _, raw := range raws {
				var z bytes.Buffer
				w := gzip.NewWriter(&z)
				w.Write(raw)
				w.Close()
				s.Exec(`INSERT INTO rideau.made VALUES (sha256($1), $2) ON CONFLICT DO NOTHING`, raw, z.Bytes())
			}
			b = b[n:]
		}
	}
}

// Every method gives back every byte of files of every kind, for a role that can
// do nothing but read them, on a primary and on a standby.
func TestServers(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			primary := pgtest.Start(t, pgtest.Options{Major: major, Settings: map[string]string{"autovacuum": "off"}})
			primary.Exec(plainRole)
			primary.BenchInit(1)
			list := paths(t, primary)

			conn := connect(t, primary.Conninfo(""))
			if got := names(detect(t, conn)); got != "holes" {
				t.Errorf("a server with nothing has %s", got)
			}
			// The owner of a database installs it, who is no superuser; its functions
			// are a superuser's all the same.
			primary.Exec(`CREATE ROLE owner LOGIN; GRANT CREATE ON DATABASE postgres TO owner; SET ROLE owner; CREATE SCHEMA "odd ""name"; CREATE EXTENSION pgcrypto SCHEMA "odd ""name"; RESET ROLE`)
			if got := names(detect(t, conn)); got != "holes" {
				t.Errorf("in a schema that the role cannot use there is %s", got)
			}
			primary.Exec(`GRANT USAGE ON SCHEMA "odd ""name" TO bk`)
			// What others own is not called.
			primary.Exec(`CREATE FUNCTION public.gzip(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT $1'; ALTER FUNCTION public.gzip(bytea) OWNER TO owner`)
			if got := names(detect(t, conn)); got != "pgcrypto holes" {
				t.Errorf("a server with pgcrypto has %s", got)
			}
			small := list[len(list)-5:]
			for _, p := range list {
				if strings.HasSuffix(p, "_fsm") {
					small = append(small, p)
				}
			}
			standby := primary.Standby(pgtest.Options{Name: "s1"}, primary.Conninfo(""))
			standby.Start()
			standby.WaitLSN(primary.LSN())

			for _, s := range []*pgtest.Server{primary, standby} {
				conn := connect(t, s.Conninfo(""))
				for _, m := range detect(t, conn) {
					if err := m.Check(bytesOf(t, conn, m.CheckSQL())); err != nil {
						t.Errorf("%s: %v", m.Name, err)
					}
					raw, packed := compare(t, conn, s.Dir, m, list)
					t.Logf("%s, %s: %d bytes sent as %d", s, m.Name, raw, packed)
					if packed > raw+raw/1000 {
						t.Errorf("%s: %d bytes became more: %d", m.Name, raw, packed)
					}
					if m.Name == "pgcrypto" && packed*2 > raw {
						t.Errorf("%s: %d bytes became only %d", m.Name, raw, packed)
					}
				}
			}

			madeElsewhere(t, primary, small[4:])
			standby.WaitLSN(primary.LSN())
			for _, s := range []*pgtest.Server{primary, standby} {
				conn := connect(t, s.Conninfo(""))
				methods := detect(t, conn)
				if got := names(methods); got != "function pgcrypto holes" {
					t.Errorf("a server with a function has %s", got)
				}
				// It answers NULL to what it does not know, and so fails the check.
				if err := methods[0].Check(bytesOf(t, conn, methods[0].CheckSQL())); err == nil {
					t.Error("a function that does not work passes the check")
				}
				known := small[4:]
				if s == standby {
					known = known[:1] // maps of free space are not replayed to the byte
				}
				compare(t, conn, s.Dir, methods[0], known)
			}
		})
	}
}

// elapsed is how long jobs connections take for all chunks of the file, each time
// with a statement for 16 chunks, on a line of 20 MB/s shared by them.
func elapsed(t testing.TB, conns []*pgx.Conn, m *compress.Method, path string, size int64) time.Duration {
	t.Helper()
	const perStatement = 16
	begin := time.Now()
	var wg sync.WaitGroup
	for i, conn := range conns {
		wg.Go(func() {
			var d compress.Decoder
			expr := "c"
			if m != nil {
				d, expr = m.NewDecoder(), m.Expr("c")
			}
			var out []byte
			sql := "SELECT length(c), " + expr + ` FROM (SELECT pg_read_binary_file($1, o, 262144, true) AS c
 FROM generate_series($2::int8, $3::int8, 262144) o OFFSET 0) s`
			step := int64(perStatement * chunk)
			for off := int64(i) * step; off < size; off += int64(len(conns)) * step {
				rows, err := conn.Query(context.Background(), sql, path, off, min(off+step, size)-1)
				if err != nil {
					t.Error(err)
					return
				}
				for rows.Next() {
					var n int
					var b []byte
					if err := rows.Scan(&n, &b); err != nil {
						t.Error(err)
					}
					if d == nil {
						continue
					}
					if out, err = d.Decode(out[:0], b, n); err != nil || len(out) != n {
						t.Errorf("%d of %d bytes: %v", len(out), n, err)
					}
				}
				if err := rows.Err(); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	return time.Since(begin)
}

// Over a line of 20 MB/s, shared by four connections, a table takes less than a
// tenth of the bytes with pgcrypto. How much sooner it arrives is logged and not
// judged: where the tests of other packages have the processors, or the race
// detector slows the decoder, that is not the line's doing.
func TestSlowLine(t *testing.T) {
	s := pgtest.Start(t, pgtest.Options{Major: 18})
	s.Exec(plainRole)
	s.Exec(`CREATE EXTENSION pgcrypto`)
	s.BenchInit(5)
	s.Exec(`CHECKPOINT`)
	proxy := pgtest.NewProxy(t, s.Addr())
	var conns []*pgx.Conn
	for range 4 {
		conns = append(conns, connect(t, proxy.Conninfo(s)))
	}
	methods := detect(t, conns[0])
	path := s.QueryValue(`SELECT pg_relation_filepath('pgbench_accounts')`)
	st, err := os.Stat(filepath.Join(s.Dir, path))
	if err != nil {
		t.Fatal(err)
	}
	carried := func(m *compress.Method) (time.Duration, int64) {
		before := proxy.Carried(pgtest.Down)
		took := elapsed(t, conns, m, path, st.Size())
		return took, proxy.Carried(pgtest.Down) - before
	}
	proxy.Rate(20_000_000 / len(conns)) // the proxy's rate is a connection's
	plain, plainBytes := carried(nil)
	packed, packedBytes := carried(&methods[0])
	proxy.Rate(0)
	fast, _ := carried(nil)
	fastPacked, _ := carried(&methods[0])
	t.Logf("%d MB: at 20 MB/s %v plain, %v with %s; on loopback %v and %v", st.Size()/1e6, plain, packed, methods[0].Name, fast, fastPacked)
	if plainBytes < st.Size() || packedBytes*10 > plainBytes {
		t.Errorf("%d bytes with %s, %d without, of %d", packedBytes, methods[0].Name, plainBytes, st.Size())
	}
}
