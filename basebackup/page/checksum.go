package page

import "encoding/binary"

// The page is taken for rows of 32 words, and each column of words is hashed on
// its own (FNV-1a with a shift more), from a seed of its own: checksum_impl.h.
const (
	lanes  = 32
	row    = lanes * 4
	prime  = 16777619
	spread = 17
)

// seeds are checksumBaseOffsets.
var seeds = [lanes]uint32{
	0x5B1F36E9, 0xB8525960, 0x02AB50AA, 0x1DE66D2A, 0x79FF467A, 0x9BB9F8A3, 0x217E7CD2, 0x83E13D2C,
	0xF8D4474F, 0xE39EB970, 0x42C6AE16, 0x993216FA, 0x7B093B5D, 0x98DAFF3C, 0xF718902A, 0x0B1C9CDB,
	0xE58F764B, 0x187636BC, 0x5D7B3BB1, 0xE73DE7DE, 0x92BEC979, 0xCCA6C0B2, 0x304A0979, 0x85AA43D4,
	0x783125BB, 0x6CA8EAA2, 0xE407EAC6, 0x4B5CFC3E, 0x9FBF8C76, 0x15CA20BE, 0xF2CA9FD3, 0x959BD756,
}

// Checksum is what pd_checksum should be in page p, which has at least Size
// bytes, if it is the block of that number in its fork (pg_checksum_page). The
// server computes none for a page that is new.
//
// The server leaves it to the C compiler to do all columns at a time in vectors.
// Go's compiler has none to offer, and 32 sums do not fit into registers; eight
// do, with what they need. So the page, which the first pass brings close, is
// gone through four times. Eight is also enough to keep the multiplier busy, which
// takes one word a cycle and is then the limit.
func Checksum(p []byte, block uint32) uint16 {
	b := (*[Size]byte)(p)
	// The checksum itself counts as zero: to have it in the seed of its column
	// (the third word's low half) takes it out of the first round.
	own := uint32(binary.LittleEndian.Uint16(b[offChecksum:]))
	h := columns(b, 0, own) ^ columns(b, 8, 0) ^ columns(b, 16, 0) ^ columns(b, 24, 0)
	return uint16((h^block)%65535 + 1)
}

// columns hashes eight columns of words from first on, with two rounds of zeros
// at the end, and folds them. Third goes into the seed of the third.
//
// The race detector is told of the page by Checksum, which reads its header: to
// tell it of each word makes this ten times slower, and tests of backups by a fifth.
//
//go:norace
func columns(b *[Size]byte, first int, third uint32) uint32 {
	s := (*[8]uint32)(seeds[first:])
	h0, h1, h2, h3, h4, h5, h6, h7 := s[0], s[1], s[2]^third, s[3], s[4], s[5], s[6], s[7]
	// Four rows at a time: with one, the compiler spends as much on moving the
	// sums about between rows as on the rows. Row by row: column by column each
	// word would wait for the one above.
	const window = 3*row + 8*4
	for i := first * 4; i <= Size-window; i += 4 * row {
		w := (*[window]byte)(b[i:])
		h0, h1, h2, h3 = round(h0^word(w[0:])), round(h1^word(w[4:])), round(h2^word(w[8:])), round(h3^word(w[12:]))
		h4, h5, h6, h7 = round(h4^word(w[16:])), round(h5^word(w[20:])), round(h6^word(w[24:])), round(h7^word(w[28:]))

		h0, h1, h2, h3 = round(h0^word(w[row+0:])), round(h1^word(w[row+4:])), round(h2^word(w[row+8:])), round(h3^word(w[row+12:]))
		h4, h5, h6, h7 = round(h4^word(w[row+16:])), round(h5^word(w[row+20:])), round(h6^word(w[row+24:])), round(h7^word(w[row+28:]))

		h0, h1, h2, h3 = round(h0^word(w[2*row+0:])), round(h1^word(w[2*row+4:])), round(h2^word(w[2*row+8:])), round(h3^word(w[2*row+12:]))
		h4, h5, h6, h7 = round(h4^word(w[2*row+16:])), round(h5^word(w[2*row+20:])), round(h6^word(w[2*row+24:])), round(h7^word(w[2*row+28:]))

		h0, h1, h2, h3 = round(h0^word(w[3*row+0:])), round(h1^word(w[3*row+4:])), round(h2^word(w[3*row+8:])), round(h3^word(w[3*row+12:]))
		h4, h5, h6, h7 = round(h4^word(w[3*row+16:])), round(h5^word(w[3*row+20:])), round(h6^word(w[3*row+24:])), round(h7^word(w[3*row+28:]))
	}
	return last(h0) ^ last(h1) ^ last(h2) ^ last(h3) ^ last(h4) ^ last(h5) ^ last(h6) ^ last(h7)
}

// round is CHECKSUM_COMP, after the word has been taken in.
func round(t uint32) uint32 { return t*prime ^ t>>spread }

func word(b []byte) uint32 { return binary.LittleEndian.Uint32(b) }

func last(h uint32) uint32 { return round(round(h)) }
