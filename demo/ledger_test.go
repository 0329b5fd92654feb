package demo

import (
	"reflect"
	"testing"
	"time"
)

// testLedger has rows 1 to 4 acknowledged in transactions 701 to 704, and row 5
// in doubt.
func testLedger() *ledger {
	l := newLedger()
	for range 4 {
		id := l.begin()
		l.ack(attempt{id: id, xid: 700 + uint64(id)})
	}
	l.begin()
	return l
}

// The comparison is what the demo's word stands on, so it must see whatever is
// not as it should be.
func TestCompareRows(t *testing.T) {
	tests := []struct {
		name  string
		ids   []int64
		want  Tally
		whole bool
	}{
		{"all there; the one in doubt was not committed", []int64{1, 2, 3, 4}, Tally{Found: 4}, true},
		{"the one in doubt was committed", []int64{5, 4, 3, 2, 1}, Tally{Found: 4, InDoubt: 1}, true},
		{"an acknowledged row is lost", []int64{1, 2, 4}, Tally{Found: 3, Missing: 1, MissingIDs: []int64{3}}, false},
		{"the row in doubt does not make up for it", []int64{1, 2, 4, 5}, Tally{Found: 3, InDoubt: 1, Missing: 1, MissingIDs: []int64{3}}, false},
		{"nothing is there", nil, Tally{Missing: 4, MissingIDs: []int64{1, 2, 3, 4}}, false},
		{"a row twice", []int64{1, 2, 2, 3, 4}, Tally{Found: 4, Duplicates: 1}, false},
		{"the row in doubt twice", []int64{1, 2, 3, 4, 5, 5}, Tally{Found: 4, InDoubt: 1, Duplicates: 1}, false},
		{"a row that nobody wrote", []int64{1, 2, 3, 4, 99}, Tally{Found: 4, Foreign: 1}, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := testLedger().compareRows(tt.ids)
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
			if got.Whole() != tt.whole {
				t.Errorf("whole: %v, want %v", got.Whole(), tt.whole)
			}
		})
	}
}

func TestCompareCommits(t *testing.T) {
	tests := []struct {
		name    string
		commits map[uint64]int
		want    Tally
	}{
		{"all there, and what others committed", map[uint64]int{690: 1, 701: 1, 702: 1, 703: 1, 704: 1, 705: 1}, Tally{Found: 4}},
		{"a commit is not in WAL", map[uint64]int{701: 1, 702: 1, 704: 1}, Tally{Found: 3, Missing: 1, MissingIDs: []int64{3}}},
		{"a commit is there twice", map[uint64]int{701: 2, 702: 1, 703: 1, 704: 1}, Tally{Found: 4, Duplicates: 1}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := testLedger().compareCommits(tt.commits); !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}

	t.Run("a lost transaction's id was given out again", func(t *testing.T) {
		l := testLedger()
		l.ack(attempt{id: l.begin(), xid: 704})
		got := l.compareCommits(map[uint64]int{701: 1, 702: 1, 703: 1, 704: 1})
		if got.Found != 4 || got.Missing != 1 {
			t.Errorf("got %+v, want 4 found and 1 missing", got)
		}
	})
}

func TestGap(t *testing.T) {
	l := newLedger()
	at := time.Unix(1000, 0)
	for _, a := range []attempt{{port: 1, acked: at}, {port: 2, acked: at.Add(5 * time.Second)}, {port: 1, acked: at.Add(2 * time.Second)}, {port: 2, acked: at.Add(4 * time.Second)}} {
		a.id = l.begin()
		l.ack(a)
	}
	if got := l.gap(1, 2); got != 2*time.Second {
		t.Errorf("the gap is %v, want 2s: from the last of one server to the first of the other", got)
	}
	if got := l.gap(1, 3); got != 0 {
		t.Errorf("the gap to a server that never answered is %v, want none", got)
	}
}
