// Package pgrepl speaks PostgreSQL's streaming replication protocol, both ends:
// that of a walreceiver, and that of a walsender which stock walreceivers of 13
// to 18, pg_receivewal, pg_basebackup and psql take for a server's own.
//
//	 a server                    Rideau                        a standby
//	walsender ──▶ [Conn] · · policy and WAL, elsewhere · · [Session] ──▶ walreceiver
//	          'w' 'k'                                  'w' 'k'
//	          ◀── 'r' 'h'                                      ◀── 'r' 'h'
//
// Which WAL there is, which slots, and what follows a timeline is not decided
// here; how it is said is.
//
// # The client's end
//
// [Targets] reads a connection string, a [Target] connects, and a [Conn] asks
// and receives. It reports exactly what it is told to: written, flushed and
// applied are three numbers, and none is made up from another.
//
// # The server's end
//
// A connection goes through three stages:
//
//	[Accept]              encryption, startup packet, access rules, authentication
//	[Session.ReadCommand] the next command; what is none is answered inside
//	[Session.Stream]      START_REPLICATION, until the session takes commands again
//
// Accept authenticates physical replication only. Every other connection it
// returns as soon as the access rules let it pass, with its startup packet, to
// be forwarded to a server that authenticates it by its own rules. What that
// server cannot see is TLS: it ends here, and with it channel binding and
// client certificates.
//
// Access rules are lines of pg_hba.conf, and the first that matches decides;
// without rules this machine is trusted and nobody else. Texts and SQLSTATEs
// are those of PostgreSQL 14 and later, where they differ, since operators and
// tools look for them. That includes names: the rules are "pg_hba.conf" in
// messages, wherever they were read from.
//
// A client that has not been authenticated can cost a goroutine and about 20
// kilobytes (more with TLS) for AuthTimeout, and no more: lengths are checked
// before memory is taken. A user who does not exist is asked for a password
// like any other, with a salt that is the same each time.
//
// # A stream
//
// The goroutine that calls Stream writes; one of Stream's own reads reports, so
// they are heard also while a write waits for a slow standby. Messages go out as
// they are found, one system call each and nothing copied: the [Source] lends
// its bytes. With nothing to send the writer sleeps until the Source has more,
// a report asks for an answer, or half the timeout has passed in silence.
//
// A stream ends in one of four ways:
//
//	end of timeline  CopyDone both ways, then the next timeline as a row, two
//	                 CommandCompletes and ReadyForQuery: the standby goes on with
//	                 START_REPLICATION on the same connection
//	client's wish    the same, begun by the client; no row on a current timeline
//	an error         ErrorResponse and ReadyForQuery: the session takes commands
//	shutdown         all that there is, until the standby confirms it on its disk;
//	                 then CommandComplete "COPY 0", and the connection ends
//
// A walsender of PostgreSQL differs in two things, both to the standby's good:
// it refuses a start that is ahead of its own WAL, where Stream waits with
// keepalives until the Source is there; and at a start that is the end of a
// historic timeline it skips COPY mode, which pg_receivewal does not expect.
//
// # Invariants
//
//   - WAL is sent in order and without a gap, and never after CopyDone.
//   - Nothing is sent beyond what the Source gave; that it is on disk is the
//     Source's promise.
//   - A keepalive is 18 bytes, and says where WAL sent ends.
//   - When Accept or Stream fails, the connection is closed.
//   - When Stream returns, its goroutine and timers are gone, and the next byte
//     read is the first of a message.
package pgrepl
