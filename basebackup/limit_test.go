package basebackup

import (
	"testing"
	"testing/synctest"
	"time"
)

// Files pass at the rate; what WAL takes of it they wait for, but for no more than
// half: there may be more WAL than the rate, and the copy must end.
func TestLimiter(t *testing.T) {
	const rate = 1000
	for _, test := range []struct {
		why string
		wal int64 // for each 100 bytes of files
		// how long 100 times 100 bytes of files take at most and at least
		least, most time.Duration
	}{
		{"no WAL", 0, 9900 * time.Millisecond, 10100 * time.Millisecond},
		{"half as much WAL", 50, 14800 * time.Millisecond, 15200 * time.Millisecond},
		{"more WAL than the rate", 5000, 19700 * time.Millisecond, 20300 * time.Millisecond},
	} {
		t.Run(test.why, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newLimiter(rate)
				began := time.Now()
				for range 100 {
					if err := l.take(t.Context(), 100); err != nil {
						t.Fatal(err)
					}
					l.wal(test.wal)
				}
				if took := time.Since(began); took < test.least || took > test.most {
					t.Errorf("took %v, want %v to %v", took, test.least, test.most)
				}
			})
		})
	}
	none := newLimiter(0)
	none.wal(1 << 40)
	if err := none.take(t.Context(), 1<<40); err != nil {
		t.Error(err)
	}
}
