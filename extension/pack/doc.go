// Package pack reads and writes packages: what one release of an extension
// consists of, in the layout of 2010 or in the one that servers have.
//
//	control       install.sql   upgrade/1.0--1.1.sql   uninstall.sql
//	foo.conf      objects.json  lib/  share/  doc/              ReadDir ──┐
//	                                                                      ▼
//	foo.control   foo--1.0.sql  foo--1.0--1.1.sql              ReadNative ▶ Package ─▶ WriteArchive
//	foo--1.1.control   META.json   Makefile   sql/foo.sql                 ▲      │         │
//	                                                                      │      └─▶ Native│
//	PGXN's zip files                                              ReadZip ┘   ReadArchive ◀┘
//
// # The control file
//
//	# comments begin like this
//	name      = foo                         required
//	version   = 1.0                         required
//	depends   = bar (>= 1.1), baz
//	conflicts = bla (< 0.8)
//	custom_variable_classes = 'foo'
//
// Values stand in quotes, as in postgresql.conf, or as they are, up to the end of
// the line or a comment. Lists go on in the next line behind a comma. The other
// keys: extversion, comment, license, kind (extension, module, library), schema,
// relocatable, superuser, trusted, encoding, postgres (">= 13, < 19"),
// recommends, suggests, breaks, replaces, provides, preload (none, session,
// shared), restart, os_depends, module_pathname, no_relocate. Relations are those
// of package depend.
//
// A native control file can say all of it too, in lines that are comments to the
// server: "#@depends bar (>= 1.1), baz". It must not be said in any other way:
// servers refuse a parameter that they do not know, and then show no extension
// at all.
//
// # Versions
//
// A release has a version, and its SQL has one: usually the same, see
// [Control.ExtVersion]. Scripts, paths and edges speak of the SQL's.
//
// # Invariants
//
//   - What is read from an archive has been checked as if it came from an enemy:
//     its size, its paths, its kinds of files. What is read from a directory is
//     the user's own, and is only bounded.
//   - [Package.Path] is the path that the server would take.
//   - A package that was read, written and read again is the same, and its
//     archive has the same bytes.
//   - Errors name file, line and column; all that is wrong with a control file is
//     said at once.
//
// The package executes nothing and connects to nothing.
package pack
