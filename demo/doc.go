// Package demo kills a primary and shows that nothing was lost.
//
// It builds, on one machine and from real servers, what Rideau is for: a
// primary whose only synchronous member is a relay, and two standbys that know
// only the relay.
//
//	clients ──▶ primary ──▶ relay ──▶ standby a
//	   │          ✗           │  └──▶ standby b
//	   │                      ▼
//	   └──────────────▶ a, promoted ──▶ relay ──▶ b, untouched
//
// The relay is the program "rideau relay" in a process of its own, with a
// command line that a user could type; all that the demo knows of it is its
// /status. The servers are those of package pgserver, with fsync on. The
// clients use libpq's way to find a primary, several hosts in one connection
// string, and so does the relay.
//
// # The failover
//
//  1. The primary is killed with SIGKILL while every client is in a commit.
//  2. The relay's connection breaks. It syncs what it has received and is then
//     no longer streaming: its position is final, and covers whatever it has
//     ever reported to the primary.
//  3. Both standbys drain the relay up to that position. The one that is
//     further is promoted.
//  4. The relay finds it among its hosts, and goes on with timeline 2.
//  5. The other standby is told by the relay, on the connection that it has.
//
// That decision is the demo's own, and simple since the demo knows that the
// primary is dead. A pool that may decide it is another package's business.
//
// # The proof
//
// Each client writes rows with ids never used before and writes down, in a
// ledger in memory, every commit that was acknowledged, with its transaction
// id. A commit under way when the primary died is in doubt: it may be there or
// not, and is never tried again under the same id. In the end each place is
// asked for all it has, and compared with the ledger as a multiset: the
// promoted server and the other standby by SQL, the relay by reading the WAL
// it holds, record by record, for the commit of each transaction.
//
// # Beginning and end
//
// [Run] does all of it and returns when nothing that it started is alive and no
// file is left, however it ended; except that after a failure the files are
// kept, as evidence, and the error says where. If the process is killed,
// servers and relay die with it (on Linux), and the files go when another
// process makes some in the same place.
package demo
