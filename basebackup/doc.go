// Package basebackup copies a running PostgreSQL server's data directory over
// ordinary SQL connections.
//
// It needs a role that may execute five functions, and nothing else: no
// superuser, no replication, nothing installed on the server. What it makes is
// a data directory that starts.
//
//	 server                                            DIR
//	┌───────────────────────┐   control    ┌───────────────────────────┐
//	│ pg_backup_start, stop │◀────────────▶│ rideau-basebackup/ (state)│
//	│ pg_ls_dir, pg_stat_…  │──── list ───▶│ what there is to copy     │
//	│                       │═══ worker ══▶│ base/ global/ pg_xact/ …  │
//	│ pg_read_binary_file   │═══ worker ══▶│        │ check, CRC       │
//	│                       │═══ worker ══▶│        ▼                  │
//	│ pg_wal/               │─── walsave ─▶│ pg_wal/  backup_manifest  │
//	└───────────────────────┘              │ global/pg_control, last   │
//	                                       └───────────────────────────┘
//
// The control session lives from start to stop, because the backup is void
// without it. Workers are ordinary connections, which may be lost and made
// again. They take extents, 16 MB of a file or many small files, from one
// queue; the server streams them in chunks, a COPY for an extent.
//
// The same copy refreshes a directory and finishes an interrupted one: of what
// DIR already has, only what changed travels. How that is found out is the
// ladder's choice (see choose): by WAL summaries, by the pages' LSNs, by their
// content, each where it is sound.
//
// # Invariants
//
//   - DIR cannot be started before it is whole: global/pg_control is the first
//     thing that goes, and the last that comes, after everything else is on
//     disk.
//   - What the journal says is copied was synced before it was said.
//   - Of relations only blocks of the main fork are ever spared; free space
//     maps, visibility maps, init forks and all other files are copied whole.
//     The visibility map is not in WAL summaries, and its LSN tells nothing.
//   - Every relation page is checked as it comes in; one that is wrong is read
//     again. What is damaged on the server is reported, never silently kept.
//   - Nothing is ever written on the server but what pg_backup_start and
//     pg_backup_stop write.
//
// It does not restore, and keeps no catalogue of backups: DIR is the backup.
package basebackup
