// Package manifest writes, reads and verifies backup_manifest, the list of all
// files of a base backup that PostgreSQL's own tools make and check.
//
// It is JSON, and yet its exact text matters: the last line is a SHA-256 of all
// lines before it, and tools compare manifests. So [Writer] writes, byte for
// byte, what a server does (backup_manifest.c):
//
//	{ "PostgreSQL-Backup-Manifest-Version": 2,        1 before PostgreSQL 17,
//	"System-Identifier": 7711043225187851733,         and then without this line
//	"Files": [
//	{ "Path": "base/5/16390", "Size": 8192, "Last-Modified": "2026-11-22 17:07:12 GMT", "Checksum-Algorithm": "CRC32C", "Checksum": "8a744722" },
//	…
//	],
//	"WAL-Ranges": [
//	{ "Timeline": 1, "Start-LSN": "0/68000070", "End-LSN": "0/6B395A78" }
//	],
//	"Manifest-Checksum": "…64 hexadecimal digits…"}
//
// [Parse] reads this, and the same JSON with its white space elsewhere, as
// pg_verifybackup does, and refuses what that refuses. [Verify] holds a directory
// against its manifest: nothing missing, nothing more, every byte as it was. Of
// pg_verifybackup's work two things are left to the caller: that pg_control is
// that of the manifest's server, and that the WAL of the ranges is there.
//
// A CRC-32C of a whole can be had from those of its parts ([CombineCRC]), so a
// file may be copied in any order, by several workers, and is not read again.
//
// # Invariants
//
//   - A Manifest that Parse answers was not damaged: its own checksum is right,
//     no path is in it twice, and none leads out of the directory.
//   - What Writer wrote Parse reads, to the same Manifest.
//   - Verify changes nothing, and says of each path at most one thing.
//
// # Limits
//
// Backups in tar format are not verified. The files of a manifest are held in
// memory, some hundred bytes each.
package manifest
