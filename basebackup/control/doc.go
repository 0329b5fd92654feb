// Package control reads pg_control, the file by which a data directory says
// what it is: whose (the system identifier), of which version, how it was left,
// and from where its WAL must be replayed.
//
//	global/pg_control, 8192 bytes
//	├──────────── ControlFileData ────────────┼── zeros ──┤
//	│ system │ version │ state │ ... │ CRC-32C │           │
//	0        8         16            │
//	                                 └ 288 in 13 to 17, 292 in 18
//
// The server writes the file in one piece of less than a disk sector, but a
// reader beside it may still see half of the old and half of the new. The CRC
// says so, and [Parse] answers a [*CRCError]: read it again. A file that stays
// wrong is damaged.
//
// # Invariants
//
//   - [Parse] answers fields only of a format it knows, 1300 (PostgreSQL 13 to
//     16), 1700 (17) and 1800 (18), and only after the CRC has been verified.
//   - What it answers does not refer to the bytes it was given.
//
// # Limits
//
// Files of servers whose integers are big-endian are refused by name, as the
// data pages they belong to would be. The package does no I/O and changes
// nothing: pg_control is copied, never composed.
package control
