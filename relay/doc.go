// Package relay receives WAL from one server and serves it to many.
//
// To the server it is a standby that never replays; to standbys it is a
// primary that never writes. One goroutine receives and writes the spool, or has
// another write it while the server is far ahead; one syncs it; one for each
// standby sends, and reads only what has been flushed:
//
//	           receive ── sync                    ┌──▶ send ──▶ standby 1
//	server ──▶  check     fdatasync ──▶ position ─┤
//	  ▲         write        │                    └──▶ send ──▶ standby 2
//	  └──────── report ◀─────┘                            from memory, else
//	                                                      from the segments
//
// The directory is an archive under PostgreSQL's own names (pg_receivewal
// could go on in it, and we in its), with a few files of ours beside:
// rideau.json (whose WAL it is), rideau-slots.json, a lock, and at times
// rideau-next, the next segment's file before it has a name.
//
// # Positions
//
//	reported ≤ complete ≤ flushed ≤ written ≤ taken   of the stream in progress
//	sent(standby) ≤ flushed                           for every standby
//
// Flushed moves only after fdatasync. Complete is the end of the last whole
// record below it; that is what we report as write and flush, since nobody
// waits for less than a record. Applied is what our standbys say: the least of
// those that apply at all, and zero if none does.
//
// Every page and record is verified as it arrives ([wal.Checker]). After a
// crash the end of WAL is found the same way, never by looking for zeros.
//
// # When the timeline ends
//
// The server closes the stream and names the next timeline and where it
// begins. We mirror history files first, then receive the new timeline's own
// copy of the segment that holds the switch point, from its byte 0. The
// position that others see stays at the end of the old timeline until the new
// one has passed the switch, so it never goes back; then standbys are told the
// same way, on the connections they have.
//
// A server whose history leaves ours below complete was promoted without
// records that we hold and may have acknowledged: it is refused, and nothing
// is overwritten ([DivergedError]). planStart is the only judge.
//
// # Stopping
//
// When Run's context is done we stop receiving, sync, and let senders drain:
// standbys get all that there is and confirm it. What was reported is on disk
// however we stop.
//
// # What it does not do
//
// It does not replay, so it cannot answer queries: connections that are not
// for physical replication are passed on to the server. It does not decide who
// is the primary: it follows the one on the highest timeline that has all that
// the relay has.
package relay
