package manifest

import (
	"encoding/binary"
	"fmt"
	"hash"
	"hash/crc32"
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// CRCBytes is a CRC-32C as a manifest has it: the server prints the number's
// bytes as they are in its memory, the lowest first.
func CRCBytes(crc uint32) []byte { return binary.LittleEndian.AppendUint32(nil, crc) }

// crc is a CRC-32C whose sum is in the manifest's order.
type crc struct{ hash.Hash32 }

func (c crc) Sum(b []byte) []byte { return binary.LittleEndian.AppendUint32(b, c.Sum32()) }

// CombineCRC is the CRC-32C of two parts in a row, from that of each and the
// length of the second, in bytes. It takes some hundred nanoseconds, whatever the
// length.
func CombineCRC(a, b uint32, lenB int64) uint32 { return NewShift(lenB).Combine(a, b) }

// A Shift is CombineCRC for second parts of one length.
//
// A CRC is the remainder of a polynomial over GF(2); n bytes more behind it
// multiply it by x^8n, which is itself taken modulo the CRC's polynomial. What
// CRC-32C adds to that, the ones before and after, cancels out.
type Shift struct{ factor uint32 }

// NewShift makes the Shift of n bytes. It panics if n is negative.
func NewShift(n int64) *Shift {
	if n < 0 {
		panic(fmt.Sprintf("manifest: a part of %d bytes", n))
	}
	factor := uint32(1 << 31) // x^0: the lowest power is the highest bit
	for i := 3; n > 0; n, i = n>>1, i+1 {
		if n&1 != 0 {
			factor = multiply(powers[i%len(powers)], factor)
		}
	}
	return &Shift{factor}
}

// Combine is the CRC-32C of a part with CRC a and then one of the Shift's length
// with CRC b.
func (s *Shift) Combine(a, b uint32) uint32 { return multiply(s.factor, a) ^ b }

// powers has x^(2^i). The next is x again: CRC-32C's polynomial is x+1 times a
// primitive one of degree 31, so x has the order 2^31-1.
var powers = func() (p [31]uint32) {
	p[0] = 1 << 30 // x^1
	for i := range len(p) - 1 {
		p[i+1] = multiply(p[i], p[i])
	}
	return p
}()

// multiply is a times b modulo the polynomial of CRC-32C, bits reflected.
func multiply(a, b uint32) (product uint32) {
	for bit := uint32(1 << 31); bit != 0; bit >>= 1 {
		if a&bit != 0 {
			product ^= b
		}
		b = b>>1 ^ crc32.Castagnoli&-(b&1)
	}
	return product
}
