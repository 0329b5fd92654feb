// Package archive keeps WAL: completed segments and timeline history files,
// under PostgreSQL's own names and with PostgreSQL's own bytes.
//
// An archive is a flat set of files. Any tool that knows PostgreSQL's names can
// read it, and what pg_receivewal writes beside us is the same, byte for byte:
//
//	000000010000000000000001            segment: timeline 1, from 0/1000000
//	000000010000000000000002.partial    segment that was not completed
//	00000002.history                    where timeline 2 left timeline 1
//	000000020000000000000002            timeline 2's own copy of segment 2
//
// The part of segment 2 before the switch point is in both timelines' files. To
// replay timeline 2 only the second is needed, which is why the first may stay
// partial for ever.
//
// # Who does what
//
// Users hold an [Archive]; where the bytes are is a [Store]'s business, four
// methods that say nothing of WAL. [Dir] is a directory. Whatever is promised
// about WAL is promised here, above the driver, and so for every driver: names
// that a server could have written, segments that are whole, no file replaced
// by another content. Compression and encryption are wrapping Stores.
//
//	Archive ── names, sizes, headers, never overwrite
//	   │
//	 Store ─── Open Put List Remove: a directory, a bucket, a wrapper
//
// # The three questions
//
// What is there: [Archive.Inventory] parses a listing, and reads the history
// files. The size of a segment is asked of a segment, never assumed.
//
// Is it whole: [Inventory.Check] is a pure function of the inventory. It
// follows the newest timeline back through its switch points and answers which
// ranges of LSNs can be replayed, what is missing between them, and what lies
// beside the path. [Archive.Verify] then reads the ranges, record by record.
//
// What may go: [PlanExpiry] is pure too. Nobody else decides about removal, and
// it never decides that a hole should be made: what it removes is always the
// oldest. [Archive.Remove] carries the plan out.
//
// # To and from PostgreSQL
//
// [Fetch] is restore_command: a file arrives under its name whole and synced,
// or not at all; and "it is not there" is an answer of its own,
// [fs.ErrNotExist], never given for a source that could not be asked. A server
// in recovery takes that answer for the end of WAL and promotes.
// A [Remote] asks a relay's console.
package archive
