package wal

import (
	"fmt"
	"strconv"
	"strings"
)

// An LSN is a position in WAL: a count of bytes since the server was made.
// Positions are half-open: a "flushed" LSN is the first byte that is not yet
// flushed.
type LSN uint64

// InvalidLSN is PostgreSQL's InvalidXLogRecPtr. Segment zero is never written,
// so no record begins there.
const InvalidLSN LSN = 0

// String formats lsn as the servers of 13 to 18 do: 16/B374D848.
func (lsn LSN) String() string {
	var buf [17]byte
	b := strconv.AppendUint(buf[:0], uint64(lsn)>>32, 16)
	b = append(b, '/')
	b = strconv.AppendUint(b, uint64(lsn)&0xFFFFFFFF, 16)
	for i, c := range b {
		if 'a' <= c && c <= 'f' {
			b[i] = c - 'a' + 'A'
		}
	}
	return string(b)
}

// MarshalText makes an LSN print as 16/B374D848 in JSON and in logs.
func (lsn LSN) MarshalText() ([]byte, error) { return []byte(lsn.String()), nil }

// UnmarshalText is [ParseLSN].
func (lsn *LSN) UnmarshalText(text []byte) (err error) {
	*lsn, err = ParseLSN(string(text))
	return err
}

// ParseLSN reads two hexadecimal numbers of at most 32 bits with a slash
// between them. Leading zeros are accepted: PostgreSQL 19 writes 16/0374D848.
func ParseLSN(s string) (LSN, error) {
	hi, lo, ok := strings.Cut(s, "/")
	if !ok {
		return 0, fmt.Errorf("invalid LSN %q: no slash", s)
	}
	h, err := parseHex32(hi)
	if err != nil {
		return 0, fmt.Errorf("invalid LSN %q: %w", s, err)
	}
	l, err := parseHex32(lo)
	if err != nil {
		return 0, fmt.Errorf("invalid LSN %q: %w", s, err)
	}
	return LSN(h)<<32 | LSN(l), nil
}

// parseHex32 is strconv.ParseUint without the signs, prefixes and underscores
// that an LSN never has, and no longer than the server's own %08X.
func parseHex32(s string) (uint32, error) {
	if s == "" || len(s) > 8 {
		return 0, fmt.Errorf("want 1 to 8 hexadecimal digits on each side of the slash")
	}
	var n uint32
	for i := range len(s) {
		var d byte
		switch c := s[i]; {
		case '0' <= c && c <= '9':
			d = c - '0'
		case 'a' <= c && c <= 'f':
			d = c - 'a' + 10
		case 'A' <= c && c <= 'F':
			d = c - 'A' + 10
		default:
			return 0, fmt.Errorf("%q is not a hexadecimal digit", c)
		}
		n = n<<4 | uint32(d)
	}
	return n, nil
}

// A TLI names a timeline: whose WAL, where an LSN only says where. The first
// timeline of a cluster is 1; zero is invalid. Numbers grow at each promotion
// and need not be consecutive.
type TLI uint32

// String formats tli in decimal, as the server's messages do.
func (tli TLI) String() string { return strconv.FormatUint(uint64(tli), 10) }

// HistoryName is the name of tli's history file: 0000000A.history.
func (tli TLI) HistoryName() string { return fmt.Sprintf("%08X.history", uint32(tli)) }
