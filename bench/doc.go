// Command bench measures rideau beside what it stands beside: pg_receivewal, a
// standby, pg_waldump, a primary that serves its receivers itself, pg_basebackup.
//
//	go run ./bench                          all of it, about an hour
//	go run ./bench -quick                   all of it, small, within two minutes
//	go run ./bench -run commit -rounds 9    one part, more often
//
// A number alone says more about the machine than about the program, so every
// figure has its peer in the same run, on the same disk, over the same kind of
// connection, with the same WAL; and they take turns:
//
//	round 1   relay     receivewal  standby  none
//	round 2   receivewal  standby   none     relay
//	round 3   standby     none      relay    receivewal
//
// What drifts (a noisy neighbour, a disk that fills) then hits all alike. A
// ratio is taken within a round; what is printed is the median of ratios, with
// the least and the greatest beside it. Where these lie far apart, the machine
// was busy, and nothing has been learnt: the load when we began is printed too.
//
// Servers run with fsync on, below the system's temporary folder, which must be
// on a disk: with TMPDIR it can be moved to one. Before each run the file system
// is synced, so that none pays for what another has written.
//
// Each part says in its own file what it measures, from when to when. Results go
// to standard output as tables and to bench/out as JSON. The exit status is 1 if
// something could not be measured; a goal that was missed is a result.
//
// Everything that is started here is ended here, each process by its own id, and
// dies with us should we be killed; what is left in the temporary folder by a
// killed bench, the next one removes.
package main
