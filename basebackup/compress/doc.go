// Package compress has the server make chunks of files smaller before it sends
// them, inside the SELECT that reads them, with what the server already has.
//
//	server                                            here
//	pg_read_binary_file ──▶ Expr ──▶ row ═══════▶ Decoder ──▶ the same bytes
//	                        │
//	                        ├ pgcrypto   zlib in an OpenPGP message (trusted extension)
//	                        ├ function   gzip or zlib, by a function a DBA has made
//	                        └ holes      pages without their empty middle, plain SQL
//
// PostgreSQL has no compressor that SQL can call. [FactsSQL] asks the server
// what else it has, [Detect] makes methods of the answer, the best first, and
// [Choose] picks one by name. Before the first use the caller runs
// [Method.CheckSQL] and gives what comes to [Method.Check]: a method is used
// only after it has been seen to work. Compression costs the server's processors
// and saves the network; on a fast network it loses. A [Tuner] finds out which,
// and keeps asking.
//
// # What it costs and brings
//
// Measured on one core of PostgreSQL 13, 15 and 18, chunks of 256 kB, where
// reading alone runs at 4 to 7 GB/s. MB/s are of raw data a core of the server:
//
//	            pgbench_accounts  its index          random hex text  random bytea
//	pgcrypto    25x    340-460    5.8x   130-200     1.85x   50-80    1.2x   40-50
//	holes       1.01x  2400       1.11x  1000-1300   1.04x   2000     1.02x  1900
//
// So pgcrypto costs the server 2 to 20 ms of processor time a MB, and wins while
// the network brings less than the figure for each core that the server has to
// spare: below 40 MB/s for all of these, for tables like pgbench's up to 1 Gbit/s. On a
// line of 20 MB/s with four connections, pgbench_accounts came 18 times as soon
// as without; on loopback it took half as long again. Holes costs 0.5 to 1 ms a
// MB and brings little, except for tables with much free space and for files
// that are mostly zeros. What a function costs is its own affair, and was
// not measured. Undoing it costs a core here for every
// GB/s, at 30 bytes to one.
//
// # Invariants
//
//   - Bytes come back as they were, or there is an error. The hole of a page is
//     left out only where the server has compared it with zeros, since what a
//     server leaves there is covered by the page's checksum. Zlib's and gzip's
//     checksums are of the raw bytes, and are verified.
//   - A [Decoder] answers no more than it was told to expect, and uses memory of
//     that order, whatever it is given.
//   - A function is called only if a superuser owns it: whoever owns it does what
//     it likes with the rights of the role that takes the backup.
//
// # What it does not do
//
// It asks no server and opens no connection. It hides nothing: the key of
// pgcrypto's messages is a known one, encryption is merely what comes with its
// compression. Nothing is made on the server, so all of it works on a standby.
// TOAST's lz4 is not used: it needs a temporary table, which a standby refuses,
// and a plain role may not SELECT from the table's TOAST table. The session must
// have pg_catalog first in its search_path, as is the default.
package compress
