package compress

import (
	"encoding/binary"
	"fmt"
)

// The answer is a byte and what it says, for each 8 kB of the chunk; what is left
// at the end of the chunk, if it is no multiple, comes last and as it is.
//
//	0  8192 zeros, which are not sent
//	1  a page without the bytes from its pd_lower up to its pd_upper, all zero
//	2  8192 bytes as they are
const (
	holesZero = iota
	holesHole
	holesWhole

	pageSize   = 8192
	pageHeader = 24 // SizeOfPageHeaderData of src/include/storage/bufpage.h
	pdLower    = 12 // two bytes, little-endian; pd_upper follows
)

// holesExpr looks at every 8 kB, of a relation or not: what it takes for a hole
// it has compared with zeros, so that it need not be right about where one is.
// The rows of generate_series are in order and nothing in between is asked to
// change that: string_agg without ORDER BY saves the server a sort.
func holesExpr(arg string) string {
	return fmt.Sprintf(`(SELECT CASE WHEN c IS NULL OR length(c) = 0 THEN c ELSE coalesce((
 SELECT string_agg(CASE WHEN hi = 0 AND substr(c, i*8192+1, 8192) = z THEN decode('00', 'hex')
  WHEN lo >= 24 AND hi > lo AND hi <= 8192 AND substr(c, i*8192+1+lo, hi-lo) = substr(z, 1, hi-lo)
  THEN decode('01', 'hex') || substr(c, i*8192+1, lo) || substr(c, i*8192+1+hi, 8192-hi)
  ELSE decode('02', 'hex') || substr(c, i*8192+1, 8192) END, ''::bytea)
 FROM (SELECT i, get_byte(c, i*8192+12) + 256*get_byte(c, i*8192+13) AS lo, get_byte(c, i*8192+14) + 256*get_byte(c, i*8192+15) AS hi
  FROM generate_series(0, length(c)/8192-1) i OFFSET 0) p), ''::bytea) || substr(c, length(c)/8192*8192+1) END
 FROM (SELECT %s AS c, decode(repeat('00', 8192), 'hex') AS z OFFSET 0) x)`, arg)
}

type holesDecoder struct{}

func holesError(reason string) error { return &FormatError{Method: "holes", Reason: reason} }

var zeroPage [pageSize]byte

// Decode needs rawLen to be right, not merely enough: where the pages end and the
// rest begins is nowhere else. Less than there is, is an error.
func (holesDecoder) Decode(dst, src []byte, rawLen int) ([]byte, error) {
	if len(src) == 0 {
		return dst, nil
	}
	was := len(dst)
	for range rawLen / pageSize {
		if len(src) == 0 {
			return dst[:was], holesError("it ends before the last page")
		}
		what := src[0]
		src = src[1:]
		switch what {
		case holesZero:
			dst = append(dst, zeroPage[:]...)
		case holesHole:
			if len(src) < pageHeader {
				return dst[:was], holesError("it ends in the header of a page")
			}
			lower := int(binary.LittleEndian.Uint16(src[pdLower:]))
			upper := int(binary.LittleEndian.Uint16(src[pdLower+2:]))
			if lower < pageHeader || upper <= lower || upper > pageSize {
				return dst[:was], holesError("a page has no hole where one was left out")
			}
			if len(src) < lower+pageSize-upper {
				return dst[:was], holesError("it ends in the middle of a page")
			}
			dst = append(dst, src[:lower]...)
			dst = append(dst, zeroPage[lower:upper]...)
			dst = append(dst, src[lower:lower+pageSize-upper]...)
			src = src[lower+pageSize-upper:]
		case holesWhole:
			if len(src) < pageSize {
				return dst[:was], holesError("it ends in the middle of a page")
			}
			dst = append(dst, src[:pageSize]...)
			src = src[pageSize:]
		default:
			return dst[:was], holesError(fmt.Sprintf("a page is of unknown kind %d", what))
		}
	}
	if len(src) != rawLen%pageSize {
		return dst[:was], holesError(fmt.Sprintf("%d bytes follow the last page, not %d", len(src), rawLen%pageSize))
	}
	return append(dst, src...), nil
}
