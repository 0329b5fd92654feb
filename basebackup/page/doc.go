// Package page looks at PostgreSQL's data pages: whose LSN they carry, whether
// their header can be right, and whether their checksum is.
//
// Relations are files of blocks of 8 kB, and nearly every block is a page with
// the same header (bufpage.h), whatever the access method keeps in it:
//
//	 0  pd_lsn               two uint32, high half first: the end of the last WAL record that changed it
//	 8  pd_checksum          uint16
//	10  pd_flags             uint16, three bits are in use
//	12  pd_lower             uint16  ─┐ line pointers end, free space begins
//	14  pd_upper             uint16   │ free space ends, tuples begin
//	16  pd_special           uint16  ─┘ what the access method keeps at the end
//	18  pd_pagesize_version  uint16, 8192 | 4
//	20  pd_prune_xid         uint32
//
// [Check] is the one question most callers have, and the hot loop of a backup:
// it allocates nothing. [Explain] says in words what Check had against a page.
//
// # Invariants
//
//   - What the server would read without complaint, Check accepts: its rules are
//     those of PageIsVerified, and the layout version. A page of zeros is good,
//     since a crash may leave one where a relation has just grown.
//   - A page that was read while the server wrote it may be torn, and then fails
//     like a damaged one. Only the caller can tell: it reads the page again, or
//     knows that WAL replay will bring it anew (LSN at or after the backup's start).
//   - No page is ever changed. The server zeroes pd_checksum while it computes;
//     here the page may be shared, or mapped.
//
// # Limits
//
// Pages are of 8 kB, layout version 4 (PostgreSQL 8.3 on), of a little-endian
// server. A block's number counts from the beginning of the relation's fork, not
// of the file: the first block of 16384.2 is 262144. Not every file is made of
// pages: pg_xact and the other SLRUs, and pg_filenode.map are not. What is
// beyond the header, line pointers and tuples, is not looked at.
package page
