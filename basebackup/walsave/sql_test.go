package walsave

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"rideau/internal/pgtest"
)

// What a file is on the server it is here, though zeros at the end of a piece are
// not sent, and whatever the server does to the rest.
func TestReadPieces(t *testing.T) {
	for _, major := range versions {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			s := server(t, major, nil)
			content := slices.Concat(bytes.Repeat([]byte("WAL"), 1000), make([]byte, 5000), []byte{1}, make([]byte, 200_000))
			if err := os.WriteFile(filepath.Join(s.Dir, "some"), content, 0o644); err != nil {
				t.Fatal(err)
			}
			pieces := []Piece{
				{0, int64(len(content)) + 10}, // more than there is
				{3000, 5001},                  // zeros at the beginning
				{100_000, 50_000},             // nothing but zeros
				{2990, 20},                    // zeros at the end
				{int64(len(content)), 10},     // behind the end
				{0, 40},
			}
			packed := 0
			for _, pack := range []func() (func(string) string, func(dst, src []byte, n int) ([]byte, error)){
				nil,
				func() (func(string) string, func(dst, src []byte, n int) ([]byte, error)) { return nil, nil },
				func() (func(string) string, func(dst, src []byte, n int) ([]byte, error)) {
					return func(sql string) string { return `('\x2a2a'::bytea || ` + sql + `)` },
						func(dst, src []byte, n int) ([]byte, error) {
							if packed++; string(src[:2]) != "**" || len(src)-2 != n {
								return nil, fmt.Errorf("%q and %d bytes, not %d", src[:2], len(src)-2, n)
							}
							return append(dst, src[2:]...), nil
						}
				},
			} {
				r := reader(s.Conninfo("user=bk dbname=postgres"))
				defer r.Close()
				var received, seen int64
				r.Pack, r.Received = pack, func(n int64) { received += n }
				err := r.ReadPieces(t.Context(), "some", pieces, func(i int, b []byte) error {
					p := pieces[i]
					if want := content[p.Off:min(p.Off+p.Len, int64(len(content)))]; int64(i) != seen || !bytes.Equal(b, want) {
						t.Errorf("piece %d of %d bytes is not the file's %d", i, len(b), len(want))
					}
					seen++
					return nil
				})
				if err != nil || seen != int64(len(pieces)) {
					t.Errorf("%d pieces, %v", seen, err)
				}
				if received < 13_000 || received > 14_000 {
					t.Errorf("received %d bytes", received)
				}
				no := errors.New("no")
				if err := r.ReadPieces(t.Context(), "some", pieces, func(int, []byte) error { return no }); err != no {
					t.Errorf("a caller's error: %v", err)
				}
				if err := r.ReadPieces(t.Context(), "none", pieces, func(int, []byte) error { return no }); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("a file that is not there: %v", err)
				}
				if _, err := r.Position(t.Context()); err != nil {
					t.Errorf("after errors: %v", err)
				}
			}
			if packed == 0 {
				t.Error("nothing was packed")
			}
		})
	}
}

// A segment that was switched away from is almost nothing on the wire.
func TestZerosDoNotTravel(t *testing.T) {
	t.Parallel()
	s := pgtest.Start(t, pgtest.Options{Major: 18})
	s.Exec(`CREATE ROLE bk LOGIN; GRANT EXECUTE ON FUNCTION pg_read_binary_file(text,bigint,bigint,boolean) TO bk`)
	s.Exec("SELECT pg_switch_wal()")
	name := s.QueryValue("SELECT pg_walfile_name(pg_current_wal_lsn())")
	s.Exec("CREATE TABLE t (); SELECT pg_switch_wal()")
	want, err := os.ReadFile(filepath.Join(s.Dir, "pg_wal", name))
	if err != nil {
		t.Fatal(err)
	}
	r := reader(s.Conninfo("user=bk dbname=postgres"))
	defer r.Close()
	var received int64
	r.Received = func(n int64) { received += n }
	var got []byte
	err = r.ReadPieces(t.Context(), "pg_wal/"+name, []Piece{{0, pieceLen}, {pieceLen, pieceLen}, {2 * pieceLen, pieceLen}, {3 * pieceLen, pieceLen}},
		func(_ int, b []byte) error {
			got = append(got, b...)
			return nil
		})
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes are not the segment's %d: %v", len(got), len(want), err)
	}
	if received > 1<<20 {
		t.Errorf("received %d bytes of a segment with little in it", received)
	}
}
