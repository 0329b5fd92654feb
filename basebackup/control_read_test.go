package basebackup

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"rideau/basebackup/control"
	"rideau/internal/pgtest"
)

// The server writes its control file in place: who reads it may get the
// beginning of one and the end of another.
func TestReadControlTorn(t *testing.T) {
	s := pgtest.New(t, pgtest.Options{})
	whole, err := os.ReadFile(filepath.Join(s.Dir, "global", "pg_control"))
	if err != nil {
		t.Fatal(err)
	}
	torn := make([]byte, len(whole))
	copy(torn, whole)
	for i := 40; i < 120; i++ { // the checkpoint's copy
		torn[i] ^= 0xFF
	}
	gone := errors.New("connection lost")
	tests := []struct {
		name  string
		read  func(n int) ([]byte, error)
		reads int // that are made
		want  error
	}{
		{"whole at once", func(int) ([]byte, error) { return whole, nil }, 1, nil},
		{"torn twice", func(n int) ([]byte, error) {
			if n <= 2 {
				return torn, nil
			}
			return whole, nil
		}, 3, nil},
		{"an error is not a torn one", func(int) ([]byte, error) { return nil, gone }, 1, gone},
		{"not there", func(int) ([]byte, error) { return nil, fs.ErrNotExist }, 1, fs.ErrNotExist},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := 0
			b, parsed, err := readControl(t.Context(), func(context.Context) ([]byte, error) { n++; return tt.read(n) })
			if !errors.Is(err, tt.want) || n != tt.reads {
				t.Fatalf("after %d reads: %v", n, err)
			}
			if err == nil && (string(b) != string(whole) || parsed.SystemID == 0) {
				t.Errorf("what was read is another: %+v", parsed)
			}
		})
	}
	t.Run("torn for good", func(t *testing.T) {
		_, _, err := readControl(t.Context(), func(context.Context) ([]byte, error) { return torn, nil })
		if !errors.As(err, new(*control.CRCError)) {
			t.Errorf("the error is %v", err)
		}
	})
	t.Run("canceled meanwhile", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		_, _, err := readControl(ctx, func(context.Context) ([]byte, error) { cancel(); return torn, nil })
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the error is %v", err)
		}
	})
}
