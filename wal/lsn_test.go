package wal_test

import (
	"encoding/json"
	"testing"

	"rideau/wal"
)

func TestParseLSN(t *testing.T) {
	tests := []struct {
		name string
		text string
		want wal.LSN
		ok   bool
	}{
		{"as servers of 13 to 18 print it", "16/B374D848", 0x16B374D848, true},
		{"as 19 does", "16/0374D848", 0x160374D848, true},
		{"in lower case", "16/b374d848", 0x16B374D848, true},
		{"the invalid LSN can be read", "0/0", wal.InvalidLSN, true},
		{"the last one", "FFFFFFFF/FFFFFFFF", 1<<64 - 1, true},
		{"no slash", "16B374D848", 0, false},
		{"two", "1/2/3", 0, false},
		{"nothing on a side", "1/", 0, false},
		{"nothing on the other", "/1", 0, false},
		{"nine digits", "0/123456789", 0, false},
		{"a prefix", "0x1/2", 0, false},
		{"a sign", "-1/0", 0, false},
		{"a space", "0/1 ", 0, false},
		{"not hexadecimal", "0/G", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := wal.ParseLSN(tt.text)
			if got != tt.want || (err == nil) != tt.ok {
				t.Errorf("ParseLSN(%q) = %s, %v", tt.text, got, err)
			}
		})
	}
}

func TestLSNInJSON(t *testing.T) {
	text, err := json.Marshal(map[string]wal.LSN{"lsn": 0x16B374D848})
	if err != nil || string(text) != `{"lsn":"16/B374D848"}` {
		t.Errorf("%s, %v", text, err)
	}
	var back struct{ LSN wal.LSN }
	if err := json.Unmarshal(text, &back); err != nil || back.LSN != 0x16B374D848 {
		t.Errorf("%s, %v", back.LSN, err)
	}
}

func FuzzParseLSN(f *testing.F) {
	for _, s := range []string{"0/0", "16/B374D848", "FFFFFFFF/FFFFFFFF", "1/2/3", "/", "-1/0", "0/1 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		lsn, err := wal.ParseLSN(s)
		if err != nil {
			return
		}
		again, err := wal.ParseLSN(lsn.String())
		if err != nil || again != lsn {
			t.Errorf("ParseLSN(%q) = %s, which parses as %s, %v", s, lsn, again, err)
		}
	})
}

func TestFileName(t *testing.T) {
	tests := []struct {
		name string
		size wal.SegmentSize
		tli  wal.TLI
		lsn  wal.LSN
		want string
	}{
		{"16 MB: 256 segments to the 4 GB", 16 << 20, 1, 0x16B374D848, "0000000100000016000000B3"},
		{"the first byte of a segment is in it", 16 << 20, 1, 0x16B4000000, "0000000100000016000000B4"},
		{"the last of 4 GB", 16 << 20, 3, 0x16FFFFFFFF, "0000000300000016000000FF"},
		{"1 MB: 4096", 1 << 20, 1, 0x16B374D848, "000000010000001600000B37"},
		{"1 GB: 4", 1 << 30, 0xA, 0x16B374D848, "0000000A0000001600000002"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.size.FileName(tt.tli, tt.lsn); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
			tli, lsn, err := tt.size.ParseFileName(tt.want)
			if err != nil || tli != tt.tli || lsn != tt.size.Start(tt.lsn) {
				t.Errorf("ParseFileName(%q) = %d, %s, %v", tt.want, tli, lsn, err)
			}
		})
	}
	for reason, name := range map[string]string{
		"a history file":                  "00000002.history",
		"what is not complete":            "000000010000001600000000.partial",
		"a backup's label":                "000000010000001600000000.00000028.backup",
		"lower case":                      "0000000a0000001600000000",
		"timeline 0":                      "000000000000001600000000",
		"a segment beyond 4 GB":           "000000010000001600000100",
		"not hexadecimal":                 "00000001000000160000000G",
		"a sign where digits must be":     "00000001000000160000000+",
		"bytes that only seem 24 letters": "0000000100000016000000é",
	} {
		if tli, lsn, err := wal.SegmentSize(16 << 20).ParseFileName(name); err == nil {
			t.Errorf("%s: %q is the segment of %d at %s", reason, name, tli, lsn)
		}
	}
}

func FuzzFileName(f *testing.F) {
	f.Add(uint8(4), uint32(1), uint64(0x16B374D848), "0000000100000016000000B3")
	f.Add(uint8(0), uint32(0xFFFFFFFF), uint64(1)<<63, "00000001.history")
	f.Fuzz(func(t *testing.T, shift uint8, tli uint32, lsn uint64, name string) {
		size := wal.MinSegmentSize << (shift % 11)
		if !size.Valid() {
			t.Fatalf("%d is not valid", size)
		}
		if got, err := wal.ParseSegmentSize(size.String()); err != nil || got != size {
			t.Fatalf("%s is %d, %v", size, got, err)
		}
		if tli != 0 {
			made := size.FileName(wal.TLI(tli), wal.LSN(lsn))
			gotTLI, gotLSN, err := size.ParseFileName(made)
			if err != nil || gotTLI != wal.TLI(tli) || gotLSN != size.Start(wal.LSN(lsn)) {
				t.Fatalf("%q of %d, %s is %d, %s, %v", made, tli, wal.LSN(lsn), gotTLI, gotLSN, err)
			}
		}
		if gotTLI, gotLSN, err := size.ParseFileName(name); err == nil && size.FileName(gotTLI, gotLSN) != name {
			t.Fatalf("%q is %d, %s, whose name is %s", name, gotTLI, gotLSN, size.FileName(gotTLI, gotLSN))
		}
	})
}

func TestParseSegmentSize(t *testing.T) {
	for text, want := range map[string]wal.SegmentSize{
		"1MB": 1 << 20, "16MB": 16 << 20, "512MB": 512 << 20, "1GB": 1 << 30,
		"0MB": 0, "3MB": 0, "2GB": 0, "4096GB": 0, "16": 0, "16kB": 0, "-16MB": 0, "": 0,
	} {
		got, err := wal.ParseSegmentSize(text)
		if got != want || (err == nil) != (want != 0) {
			t.Errorf("ParseSegmentSize(%q) = %d, %v", text, got, err)
		}
	}
}
