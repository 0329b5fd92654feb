// Package script reads the SQL scripts of extensions: it cuts them into
// statements, fills in what CREATE EXTENSION would fill in, and refuses what
// CREATE EXTENSION would refuse, so that a script can be run over an ordinary
// connection, statement by statement, with errors that point into its file.
//
//	file ──▶ Substitute ──▶ Split ──▶ []Statement ──▶ CheckTransaction ──▶ run
//	         \echo lines      quotes, comments,    │
//	         @extschema@      BEGIN ATOMIC         └─▶ Lint: findings for people
//	         MODULE_PATHNAME  psql commands refused
//
// The server reads a script whole before it runs any of it, and so does Split:
// a script that ends in the middle of a string is refused before its first
// statement has done anything.
//
// # How a script is read
//
// Exactly as the server's own scanner does with standard_conforming_strings on:
// 'strings' with doubled quotes, E'strings' with backslashes (also where they
// continue on the next line), U&, B, X and N strings, "identifiers",
// $dollar$quotes$dollar$, -- comments that end at a newline or a carriage
// return, nested /* comments */. A semicolon ends a statement outside of
// parentheses and outside of the body of a function that begins with BEGIN
// ATOMIC; that body ends at an END that begins a statement in it, so CASE … END
// and columns called "end" do not disturb.
//
// What would change how the rest of the script is read while it runs is
// refused: SET standard_conforming_strings to anything but on, SET
// client_encoding (and SET NAMES) to anything but UTF8. CREATE EXTENSION would
// not heed them either, because by then it has read the whole script. A script
// can still do it where no reader sees it, in set_config or in a DO block: who
// runs statements one by one should look at the two parameters that the server
// reports, and stop if they move.
//
// # Positions
//
// Lines and columns count from 1, columns in characters of UTF-8 (a byte that is
// none counts as one). Substitute keeps every line where it was, so a line of
// the statement that failed is a line of the file. Columns behind a substituted
// value on its line are those of the text that ran.
//
// # Invariants
//
//   - Statements are in the order of the text and do not overlap; what is
//     between them is white space, comments and semicolons.
//   - A Statement's SQL is the text at its Offset, without the semicolon, except
//     that a line that begins with \echo inside of it is blanked.
//   - Splitting the SQL of a Statement gives that one statement again.
//
// The package knows nothing of files, servers and packages. It is no parser: a
// statement may still be nonsense, which the server will say. It imports only
// the standard library.
package script
