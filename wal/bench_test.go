package wal_test

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rideau/internal/pgserver"
	"rideau/internal/pgtest"
	"rideau/wal"
)

// Benchmarks read WAL that pgbench made a real server write, in segments of
// 16 MB: a part in which most of it is images of pages, just after a
// checkpoint, and a part with hardly any. PostgreSQL's pg_waldump --stats reads
// the same files beside us.
//
//	go test ./wal -run '^$' -bench .
type benchWAL struct {
	name     string
	dir      string
	from, to wal.LSN // segments
}

const benchMajor = 15

func makeBenchWAL(b *testing.B) []benchWAL {
	b.Helper()
	s := pgtest.Start(b, pgtest.Options{Major: benchMajor, Settings: map[string]string{
		"autovacuum": "off", "checkpoint_timeout": "1h", "max_wal_size": "4GB", "shared_buffers": "256MB", "synchronous_commit": "off",
	}})
	pgbench := func(args ...string) {
		b.Helper()
		args = append([]string{"-h", "127.0.0.1", "-p", fmt.Sprint(s.Port), "-U", "postgres"}, args...)
		pgtest.Run(b, benchMajor, "pgbench", append(args, "postgres")...)
	}
	segment := func() wal.LSN {
		s.Exec("SELECT pg_switch_wal()")
		return lsn(b, s.QueryValue("SELECT pg_current_wal_insert_lsn()")) &^ (1<<24 - 1)
	}
	pgbench("-i", "-q", "-s", "15")
	s.Exec("CHECKPOINT")
	images := segment()
	pgbench("-n", "-N", "-c", "4", "-t", "6000")
	records := segment()
	pgbench("-n", "-N", "-c", "4", "-t", "30000")
	end := segment()
	s.Stop(pgserver.Fast)
	dir := filepath.Join(s.Dir, "pg_wal")
	return []benchWAL{{"images", dir, images, records}, {"records", dir, records, end}}
}

// load reads it all into memory, so that the disk is not measured.
func (w benchWAL) load(b *testing.B) memory {
	b.Helper()
	m := memory{w.from, make([]byte, w.to-w.from)}
	if _, err := (directory{w.dir, 16 << 20, 1}).ReadAt(m.b, int64(w.from)); err != nil {
		b.Fatal(err)
	}
	return m
}

func Benchmark(b *testing.B) {
	for _, w := range makeBenchWAL(b) {
		b.Run(w.name, func(b *testing.B) {
			m := w.load(b)
			records := 0
			b.Run("Reader", func(b *testing.B) {
				b.SetBytes(int64(len(m.b)))
				b.ReportAllocs()
				src := &files{directory: directory{w.dir, 16 << 20, 1}, to: w.to}
				defer src.Close()
				for b.Loop() {
					r := wal.NewReader(src, 16<<20, 0, 1, w.from)
					lsns := 0
					for {
						if _, err := r.Next(); err == wal.ErrEndOfWAL {
							break
						} else if err != nil {
							b.Fatal(err)
						}
						lsns++
					}
					records = lsns
				}
				b.ReportMetric(float64(len(m.b))/float64(records), "bytes/record")
			})
			b.Run("ReaderDecode", func(b *testing.B) {
				b.SetBytes(int64(len(m.b)))
				b.ReportAllocs()
				for b.Loop() {
					r := wal.NewReader(m, 16<<20, 0, 1, w.from)
					for {
						rec, err := r.Next()
						if err == wal.ErrEndOfWAL {
							break
						} else if err != nil {
							b.Fatal(err)
						}
						if _, err := rec.Decode(); err != nil {
							b.Fatal(err)
						}
					}
				}
			})
			for _, n := range []int{128 << 10, 8 << 10, 100} {
				b.Run(fmt.Sprintf("Checker/%d", n), func(b *testing.B) {
					b.SetBytes(int64(len(m.b)))
					b.ReportAllocs()
					for b.Loop() {
						c := wal.NewChecker(16<<20, 0, 1, w.from)
						if err := pieces(c, m.b, n); err != nil || c.End() != w.to {
							b.Fatal(c.End(), err)
						}
					}
				})
			}
			b.Run("pg_waldump", func(b *testing.B) {
				b.SetBytes(int64(len(m.b)))
				for b.Loop() {
					out := pgtest.Run(b, benchMajor, "pg_waldump", "--stats", "-p", w.dir, "-s", w.from.String(), "-e", w.to.String())
					if !strings.Contains(out, "Heap") {
						b.Fatal(out)
					}
				}
			})
		})
	}
}

// files are the segments of a directory up to an LSN, kept open.
type files struct {
	directory
	to   wal.LSN
	f    *os.File
	base wal.LSN
}

func (d *files) ReadAt(p []byte, off int64) (int, error) {
	at := wal.LSN(off)
	if at >= d.to {
		return 0, io.EOF
	}
	if d.f == nil || d.size.Start(at) != d.base {
		d.Close()
		var err error
		if d.f, err = os.Open(filepath.Join(d.dir, d.size.FileName(d.tli, at))); err != nil {
			return 0, err
		}
		d.base = d.size.Start(at)
	}
	return d.f.ReadAt(p, int64(d.size.Offset(at)))
}

func (d *files) Close() {
	if d.f != nil {
		d.f.Close()
		d.f = nil
	}
}
