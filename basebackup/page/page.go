package page

import (
	"encoding/binary"
	"fmt"

	"rideau/wal"
)

// Size is the size of a page, BLCKSZ as nearly everybody builds it. Ask the
// server (SHOW block_size); one that has another size is not for this package.
const Size = 8192

// Where things are in the header, PageHeaderData of bufpage.h.
const (
	offLSN      = 0
	offChecksum = 8
	offFlags    = 10
	offLower    = 12
	offUpper    = 14
	offSpecial  = 16
	offVersion  = 18
)

const (
	validFlags  = 0x0007   // PD_VALID_FLAG_BITS
	sizeVersion = Size | 4 // PG_PAGE_LAYOUT_VERSION
	maxAlign    = 8        // MAXIMUM_ALIGNOF of all 64-bit machines
)

var zeros [Size]byte

// LSN is the end of the last WAL record that changed the page (pd_lsn). Changes
// to hints alone do not move it. It means nothing in a page that is new.
func LSN(p []byte) wal.LSN {
	return wal.LSN(binary.LittleEndian.Uint32(p[offLSN:]))<<32 | wal.LSN(binary.LittleEndian.Uint32(p[offLSN+4:]))
}

// IsNew reports whether the page was never initialized, by the server's own
// test: pd_upper is zero. That says nothing of the bytes around it.
func IsNew(p []byte) bool { return field(p, offUpper) == 0 }

// IsZero reports whether there is nothing in the page at all.
func IsZero(p []byte) bool { return [Size]byte(p) == zeros }

// Stored is the checksum that the page carries (pd_checksum).
func Stored(p []byte) uint16 { return field(p, offChecksum) }

// Check reports whether a server would take p for the block of that number of a
// relation's fork: it is all zero, or its header can be right and, if the cluster
// has checksums, its checksum is. A p that is not Size bytes is not a page.
func Check(p []byte, block uint32, checksums bool) (ok bool) {
	if len(p) != Size {
		return false
	}
	if headerFault(p) != None {
		return IsZero(p)
	}
	return !checksums || Checksum(p, block) == Stored(p)
}

// A Kind is what is wrong with a page.
type Kind uint8

// None, and what Check has against a page, in the order in which it looks.
const (
	None         Kind = iota
	Short             // it is not Size bytes: the file ends in the middle of a block
	NewNotZero        // pd_upper is zero as in a new page, and other bytes are not
	BadFlags          // pd_flags has bits that no server sets
	BadBounds         // not pd_lower <= pd_upper <= pd_special <= Size, pd_special aligned
	BadVersion        // pd_pagesize_version is not that of 8 kB and layout 4
	BadChecksum       // pd_checksum is not what the page and its number yield
	kindsInTotal      // how many there are
)

var kindNames = [kindsInTotal]string{"none", "short", "new but not zero", "flags", "bounds", "version", "checksum"}

// String names the kind in a word or two.
func (k Kind) String() string {
	if k < kindsInTotal {
		return kindNames[k]
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// A Fault says what is wrong with a page.
type Fault struct {
	Block            uint32 // within the relation's fork
	Kind             Kind
	Stored, Computed uint16 // the checksums, if Kind is BadChecksum
	Detail           string // for people; it does not name the block
}

// String is the fault with its block.
func (f Fault) String() string { return fmt.Sprintf("block %d: %s", f.Block, f.Detail) }

// Explain says why Check, asked the same, refuses p. Its Kind is None, and its
// Detail empty, if Check does not.
func Explain(p []byte, block uint32, checksums bool) Fault {
	f := Fault{Block: block}
	if Check(p, block, checksums) {
		return f
	}
	if len(p) != Size {
		f.Kind = Short
		f.Detail = fmt.Sprintf("has only %d of %d bytes", len(p), Size)
		if len(p) > Size {
			f.Detail = fmt.Sprintf("has %d bytes, not %d", len(p), Size)
		}
		return f
	}
	switch f.Kind = headerFault(p); f.Kind {
	case NewNotZero:
		f.Detail = "is a new page by its header, but is not all zero"
	case BadFlags:
		f.Detail = fmt.Sprintf("page header has flags %04x, of which %04x do not exist", field(p, offFlags), field(p, offFlags)&^validFlags)
	case BadBounds:
		f.Detail = fmt.Sprintf("page header is not sane: lower %d, upper %d, special %d", field(p, offLower), field(p, offUpper), field(p, offSpecial))
	case BadVersion:
		version := field(p, offVersion)
		f.Detail = fmt.Sprintf("page header says size %d and layout version %d, not %d and %d", version&^0xFF, version&0xFF, Size, sizeVersion&0xFF)
	default:
		f.Kind, f.Stored, f.Computed = BadChecksum, Stored(p), Checksum(p, block)
		f.Detail = fmt.Sprintf("calculated checksum %X but block contains %X", f.Computed, f.Stored)
	}
	return f
}

// headerFault is what PageIsVerified (bufpage.c) has against a page that is not
// all zero, which a new one here is taken to be not, and the layout version.
func headerFault(p []byte) Kind {
	lower, upper, special := field(p, offLower), field(p, offUpper), field(p, offSpecial)
	switch {
	case upper == 0:
		return NewNotZero
	case field(p, offFlags)&^validFlags != 0:
		return BadFlags
	case lower > upper || upper > special || special > Size || special%maxAlign != 0:
		return BadBounds
	case field(p, offVersion) != sizeVersion:
		return BadVersion
	}
	return None
}

func field(p []byte, offset int) uint16 { return binary.LittleEndian.Uint16(p[offset:]) }
