// Package walsave keeps the WAL of a base backup: it fetches the segments from
// the backup's start to its stop while the copy runs, proves that every record
// between the two is there, and leaves them in the copy's pg_wal as
// pg_basebackup would.
//
//	           SQL          replication        archive
//	    pg_read_binary_file  a relay, a server  a directory, a URL
//	            └────────────────┼────────────────┘
//	                          [Source]
//	                             │ segments, oldest first
//	start ──▶ .tmp ──▶ wal.Checker ──▶ NAME, archive_status/NAME.done ──▶ stop
//
// A copy of a running server is worth nothing without this WAL: it is what
// makes pages that were copied at different times agree. A server that is asked
// over SQL holds nothing back for us, so segments are taken as soon as they are
// complete, and one that is gone ends the backup at once ([RecycledError]).
//
// # Where it ends
//
// Where the backup stops is known only when it has stopped: until then complete
// segments are taken, one after the other. On a primary pg_backup_stop answers
// the end of its XLOG_BACKUP_END record, and switches to another segment. On a
// standby it answers the minimum recovery point: the end of a record that was
// replayed, in a segment that may stay incomplete for long; or, on a standby
// that has not yet replayed anything, a checkpoint's redo pointer, which is
// where a record begins and so may be behind a page's header. Of an incomplete
// segment we keep what is before the stop, and zeros.
//
// # Timelines
//
// The timeline may change under a backup from a standby, when what it follows
// is promoted. The history of the stop's timeline decides which files are
// needed; what was fetched on the way and is not among them is removed. Where
// timelines change inside a segment, recovery reads the newest timeline's file
// of it, and pg_verifybackup each timeline's own. Both are kept: the older
// timelines' are made from the newest's, which begins with their bytes.
//
// # Invariants
//
//   - A file has its name only when it is whole, synced, and proven: it
//     continues what was saved before, page by page and record by record.
//   - Nothing that was in pg_wal before is trusted. It may be of a server that
//     failed, and went its own way under the same names.
//   - Nothing is claimed before it is on disk: what [Save] answers is.
//
// # What it does not do
//
// It makes no slot and starts no backup; it writes neither backup_label nor
// manifest. It never gives up waiting: that is the caller's context to end.
package walsave
