// Package summary reads WAL summaries, the files in which PostgreSQL 17 and
// later write down which blocks its WAL has changed (summarize_wal), and says
// whether those that exist cover all that happened since an LSN.
//
// A summary is of one timeline and of the WAL from one LSN to another, which
// its name says. Together they must follow the server's history without a gap:
//
//	            from                                      to
//	timeline 1   │ ├──────┤├──────┤├────┤                  │
//	             ▼        ├──────┤(of 1, after it was left) ▼
//	timeline 2           switch ──▶ ├───────┤├──────────┤├─────┤
//
// [Cover] chooses the files, a [Table] merges them:
//
//	names ──Cover──▶ files ──Add──▶ Table ──Lookup──▶ what changed in a fork
//
// # What a summary says, and what not
//
// Of a fork it says which blocks WAL records refer to, and the limit block, the
// fewest blocks it had in that time: 0 when it was created or dropped. What is
// at or past the limit may be of another life of the file, so all of it counts
// as changed. A database that was created by copying files has an entry of its
// own, with relation 0, and all of it counts as changed.
//
// A summary says nothing of what is not in WAL: free space maps, hint bits
// without checksums, unlogged relations. And it does not say that a page of a
// visibility map has changed when a record of the heap cleared its bits.
// Summaries are for main forks alone.
//
// # Invariants
//
//   - A [Table] never says less than its files do: merging takes the lowest
//     limit and all blocks, in whatever order files come.
//   - After a file that does not verify, everything counts as changed.
//   - A Table needs at most 8 kB for each 65,536 blocks (512 MB) of a fork that
//     changed and some 200 bytes for each fork; reading a file needs 150 kB
//     more, whatever the file claims.
//
// The format is that of src/common/blkreftable.c, which 17 and 18 share. The
// package does no I/O beyond the io.Reader it is given.
package summary
