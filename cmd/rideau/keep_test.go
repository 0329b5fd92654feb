package main

import (
	"testing"
	"time"

	"rideau/archive"
)

func TestParseKeep(t *testing.T) {
	const day = 24 * time.Hour
	tests := []struct {
		name string
		text string
		size int64
		age  time.Duration
		ok   bool
	}{
		{"nothing said keeps everything", "", 0, 0, true},
		{"and so does all", "all", 0, 0, true},
		{"a size", "20GB", 20 << 30, 0, true},
		{"case is not told apart", "20gb", 20 << 30, 0, true},
		{"without its B", "20G", 20 << 30, 0, true},
		{"with a space", "512 MB", 512 << 20, 0, true},
		{"a fraction, as postgresql.conf allows", "1.5GB", 3 << 29, 0, true},
		{"days", "7d", 0, 7 * day, true},
		{"hours", "36h", 0, 36 * time.Hour, true},
		{"minutes are min", "90min", 0, 90 * time.Minute, true},
		{"weeks", "2w", 0, 14 * day, true},
		{"m could be MB or minutes", "90m", 0, 0, false},
		{"a number of what?", "20", 0, 0, false},
		{"zero would remove what was just received", "0GB", 0, 0, false},
		{"as would next to nothing", "0.0000000001kB", 0, 0, false},
		{"less than nothing", "-1GB", 0, 0, false},
		{"no number", "GB", 0, 0, false},
		{"two points", "1.2.3GB", 0, 0, false},
		{"not a number", "NaN", 0, 0, false},
		{"beyond int64", "9999999999TB", 0, 0, false},
		{"beyond a Duration", "99999999999w", 0, 0, false},
		{"two units", "1h30min", 0, 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			keep, err := parseKeep(tt.text)
			if keep.Size != tt.size || keep.Age != tt.age || (err == nil) != tt.ok {
				t.Errorf("parseKeep(%q) = %d, %v, %v; want %d, %v, ok %v", tt.text, keep.Size, keep.Age, err, tt.size, tt.age, tt.ok)
			}
		})
	}
}

func FuzzParseKeep(f *testing.F) {
	for _, s := range []string{"", "all", "20GB", "7d", "1.5TB", "90m", "-1", "1e9GB", ".h"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		keep, err := parseKeep(s)
		if keep.Size < 0 || keep.Age < 0 || keep.Size > 0 && keep.Age > 0 || err != nil && keep != (archive.Keep{}) {
			t.Errorf("parseKeep(%q) = %+v, %v", s, keep, err)
		}
	})
}
