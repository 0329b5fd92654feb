// Package wal names, orders and reads PostgreSQL write-ahead log.
//
// WAL is one stream of bytes per timeline. A position in the stream is an
// [LSN]; the server stores the stream as segment files of one fixed size, a
// power of two between 1 MB and 1 GB, 16 MB unless initdb was told otherwise.
//
//	timeline 1  ────────────────┬──────────▶  (left at 0/5000000)
//	                            │ promote
//	timeline 2                  └──────┬───▶  (left at 0/7A00028)
//	                                   │ promote
//	timeline 4                         └───▶  (current)
//
// A [History] is the path from timeline 1 to a given timeline. It answers the
// only question that matters after a failover: on which timeline does the WAL
// at this LSN live? Timeline numbers grow along the path but need not be
// consecutive: 3 above was a promotion that never finished. Never compute the
// next timeline; ask the server, or read the history file.
//
// # Pages and records
//
// Segments are made of pages of 8 kB, each with a header that says whose page
// it is and where it belongs. Records follow one another through the pages,
// each beginning at a multiple of 8, and where a record does not fit it goes on
// after the header of the next page:
//
//	├────────── page ──────────┼────────── page ──────────┼───
//	│ header │ A │ B   │ C ... │ header │ ... C │ D │ E   │
//	└────────┴───┴─────┴───────┴────────┴───────┴───┴─────┴───
//	               ▲     │ prev          n left of C
//	               └─────┘
//
// Each record has a CRC, its length, and the LSN of the record before. That is
// how the end of WAL is told from what a file held before it was used again:
// not by the end of a file, and not by zeros, but by the first record that does
// not verify and follow. Two things break the chain of records, by rule. After
// XLOG_SWITCH the rest of the segment is padding, without even page headers.
// And a server that crashed in the middle of a record leaves what there is of
// it; it goes on with the next page, which says so (contrecord overwritten),
// and with a record that names the one that is lost.
//
// # Reading
//
// A [Checker] is pushed: it verifies WAL as it arrives in pieces, remembers
// almost nothing of it, and knows up to where all is good ([Checker.End]). The
// relay has one for each stream. A [Reader] is pulled, and returns the records.
// Both follow one set of rules, those of xlogreader.c. [FindEnd] finds where
// WAL on disk ends after a crash, and makes a Checker that continues there.
//
// # Invariants
//
//   - An LSN says where, a timeline says whose. Two servers with the same LSN
//     on different timelines do not hold the same bytes. Code that compares
//     LSNs must already know that one timeline is an ancestor of the other,
//     see [History.Contains].
//   - The zero LSN is invalid: the server never writes WAL in segment zero.
//   - A Reader returns only records whose CRC it has verified, in order, and
//     never past a page it could not read whole. [ErrEndOfWAL] means "no
//     complete record yet": the caller may append to the source and try again.
//   - A Checker's End never passes its Pos: what has not arrived is not good.
//
// # Limits
//
// WAL of 13 to 18 is read, and of 19 as far as it is known, written by
// little-endian servers with 8-byte alignment (x86-64, arm64) that were built
// with pages of 8 kB. Pages of any other kind are refused by name.
//
// The package does no I/O of its own beyond reading from an [io.ReaderAt], and
// starts no goroutines. It imports only the standard library.
package wal
