// Package extension installs extensions over SQL: with everything that they
// depend on, in versions that fit together, in one transaction a database, or
// not at all and with the reason.
//
//	         names, or extensions.toml
//	                   │
//	server ─ Observe ─▶│◀─ shelves: signed registries, directories
//	                   ▼
//	                resolve ──▶ which versions        (package resolve, pure)
//	                   │
//	                   ▼
//	                 plan ──▶ steps, modes, notes     (pure: Decide)
//	                   │
//	                   ▼
//	                 Apply ──▶ nodes' files first, then one transaction on the
//	                           primary, then settings, then every standby probed,
//	                           then files removed that no database needs any more
//
// # Modes
//
// How an extension gets into a database depends on what the server allows. The
// choice is a function of what was observed ([Observed]) and is shown by the
// plan with its reason:
//
//	native   its files are on the server: CREATE EXTENSION
//	path     PostgreSQL 18, superuser: our files are brought to the server over
//	         SQL, extension_control_path leads there, then CREATE EXTENSION
//	module   plain owner: the script is executed as pg_execute_from_file would
//	         have, and its objects are recorded (package ledger). pg_dump dumps
//	         them as ordinary objects
//	graft    superuser, when asked for: as module, then pg_extension and
//	         pg_depend rows are written by hand. PostgreSQL does not support that
//
// # What is promised
//
//   - A database is changed in one transaction, or not changed. What cannot be in
//     a transaction (files on nodes, ALTER SYSTEM) comes before or after it, is
//     idempotent, and is in the plan. What comes before is undone if the
//     transaction fails ([LeftError] if that fails, too); what comes after and
//     fails is done by the same command again ([UnfinishedError]).
//   - A file that was brought to a node is listed there before it is written, and
//     only what is listed is ever removed ([Store]): when no database of the server
//     has the extension, and each could be asked.
//   - A script that we execute runs with the rules that core has learned the hard
//     way, see rules.go: a pinned search_path, no open schema, nothing replaced
//     that was not its own, no transaction control, no substituted quotes.
//   - What an apply does is what the plan said: it carries a fingerprint of what
//     was observed, and is refused when that has moved.
//   - Nothing is dropped because a version changes.
//   - Two of us do not work on one database at once (an advisory lock), nor on
//     the files and settings of one server (a lock on a shared catalog).
//
// # What it does not do
//
// It does not build anything, and it does not install operating-system packages:
// where a library is missing and cannot be brought there over SQL, it says which
// file belongs where.
package extension
