package main

import (
	"cmp"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"regexp"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"rideau/archive"
	"rideau/basebackup"
	"rideau/basebackup/manifest"
	"rideau/basebackup/walsave"
	"rideau/demo"
	"rideau/internal/durable"
	"rideau/internal/pgserver"
	"rideau/pgrepl"
	"rideau/relay"
	"rideau/wal"
)

// An explanation is an error in PostgreSQL's three parts: the message says what
// happened, the detail what lies behind it, the hint what to do about it.
type explanation struct {
	message, detail, hint string
}

// explain turns an error into words. Types hold the facts, and the hints that
// follow from them are all here. The first case that fits decides, so what says
// more comes first.
func explain(err error) explanation {
	e := explainCause(err)
	e.message = plainPaths(err, e.message)
	return e
}

func explainCause(err error) explanation {
	var usage *usageError
	if errors.As(err, &usage) {
		return explanation{message: err.Error(), hint: usage.hint}
	}
	var unfinished *unfinishedError
	if errors.As(err, &unfinished) && !unfinished.stopped {
		e := explainCause(unfinished.err)
		if noRoom(unfinished.err) {
			e.hint = "Make room." // of the rest, relays do not matter here
		}
		if !strings.Contains(e.hint, "goes on from there") {
			e.hint = strings.TrimSpace(e.hint + fmt.Sprintf(" What was copied is kept in %q: the same command goes on from there.", unfinished.dir))
		}
		return e
	}
	if e, ok := explainOwn(err); ok {
		return e
	}
	if e, ok := explainBackup(err); ok {
		return e
	}
	if e, ok := explainExtension(err); ok {
		return e
	}
	if failed := connectErrors(err); len(failed) > 0 {
		return explainConnect(failed)
	}
	var server *pgconn.PgError
	if errors.As(err, &server) {
		return explanation{
			message: strings.TrimSuffix(err.Error(), ": "+server.Error()),
			detail:  serverSaid(server),
			hint:    serverHint(server, "USER"),
		}
	}
	if err.Error() == io.ErrUnexpectedEOF.Error() { // of a connection: of a file, somebody says which
		return explanation{
			message: "the server ended the session without a word (unexpected EOF)",
			hint:    "Its log says why: a crash is one reason, a full disk one of a crash. When it is up again: the same command.",
		}
	}
	return explanation{message: message(err), hint: systemHint(err)}
}

// explainOwn explains the errors of our own packages.
func explainOwn(err error) (explanation, bool) {
	e := explanation{message: err.Error()}
	var (
		parse       *pgconn.ParseConfigError
		unfinished  *unfinishedError
		refused     *pgrepl.Error
		locked      *durable.LockedError
		serverDir   *relay.ServerDirError
		state       *relay.StateError
		system      *relay.SystemError
		segmentSize *relay.SegmentSizeError
		history     *relay.HistoryError
		diverged    *relay.DivergedError
		behind      *relay.BehindError
		gap         *relay.GapError
		slot        *relay.SlotError
		full        *relay.DiskFullError
		corrupt     *wal.CorruptError
		damage      *archive.DamageError
		unreachable *archive.UnreachableError
		noPostgres  *demo.NotInstalledError
		demoDir     *demo.DirError
		reach       *pgserver.ReachError
		stuck       *demo.StuckError
		lost        *demo.LostError
		server      *pgconn.PgError
	)
	switch {
	case errors.As(err, &parse):
		// Without the connection string, which its author knows.
		_, cause, _ := strings.Cut(parse.Error(), "`: ")
		e.message = "invalid connection string: " + cause
		e.hint = "It is read as psql reads it: 'host=db1 user=replicator' or postgresql://replicator@db1."
	case errors.As(err, &refused): // the words of a server, said by us
		e.message, e.detail, e.hint = refused.Message, refused.Detail, refused.Hint
	case errors.As(err, &locked):
		e.hint = "Another relay keeps its WAL there. Each needs a directory of its own, and so does each base backup."
	case errors.As(err, &serverDir):
		e.hint = "Give the relay a directory of its own. If this is a copy of a server's pg_wal, remove archive_status from it."
	case errors.As(err, &state) && state.Slots:
		e.hint = "Restore the file, or remove it: WAL stays, but the slots of standbys are forgotten and must be made again."
	case errors.As(err, &state):
		e.hint = "Remove the file: the relay makes it again from its WAL and from the server."
	case errors.As(err, &system):
		e.detail = "The system identifier is made by initdb and shared by a primary, its standbys and its base backups. WAL of two systems does not fit together."
		e.hint = "Correct the connection string, or keep the WAL of this server in another directory."
	case errors.As(err, &segmentSize):
		e.hint = "The size was changed with pg_resetwal --wal-segsize. Keep the WAL from here on in another directory, and begin with a new base backup."
	case errors.As(err, &history):
		e.detail = "Two servers were promoted to the same timeline, each without the other. Nothing was overwritten."
		e.hint = "Follow one of them. The other's WAL needs a relay and a directory of its own; to come back it needs pg_rewind or a new base backup."
	case errors.As(err, &diverged):
		e.detail = "The relay holds WAL, and may have acknowledged commits, that the server never had. Nothing was overwritten."
		e.hint = "If those commits matter, promote a standby that has all the relay has. To follow this server without them, give the relay an empty directory, and rewind the standbys that are past the fork (pg_rewind)."
	case errors.As(err, &behind):
		e.detail = "A server that comes back from a backup or as an old primary is behind, and so is a standby that lags."
		e.hint = "Point the relay to the server that is ahead, or let this one catch up. To follow it without what the relay has beyond it, give the relay an empty directory."
	case errors.As(err, &gap):
		if errors.As(gap.Err, &server) {
			e.detail = serverSaid(server)
		}
		e.hint = "Copy the missing segments into the relay's directory from another archive, or begin again with an empty directory and a new base backup. A replication slot (--slot NAME) keeps this from happening again."
	case errors.As(err, &slot):
		e.hint = "Give a name that no slot has (--slot NAME): the relay makes a physical one."
	case errors.As(err, &full):
		e.detail = "Nothing more was acknowledged to the server, and nothing was lost."
		e.hint = "Make room, or keep less WAL with --keep SIZE."
	case errors.As(err, &unfinished) && unfinished.stopped:
		e.message = "interrupted"
		e.hint = fmt.Sprintf("What was copied is kept in %q: the same command goes on from there.", unfinished.dir)
	case errors.As(err, &corrupt):
		e.hint = "If pg_waldump finds the same on the server, it is the server's disk. If not, it happened on the way here, or on this disk."
	case errors.As(err, &damage):
		e.hint = "Fetch the file from another archive, or from the server if it is still in its pg_wal."
	case errors.As(err, &unreachable):
		e.hint = "Is it running, and can it be reached from here? For a relay this is the address of its --http."
	case errors.As(err, &noPostgres):
		major := cmp.Or(noPostgres.Major, 15)
		e.hint = fmt.Sprintf("In Rideau's source, make servers installs 13 to 18 for the demo; or install it as usual (on Debian: apt-get install postgresql-%d).", major)
		if len(noPostgres.Installed) > 0 {
			e.hint += fmt.Sprintf(" With what is there: rideau demo --major %d.", noPostgres.Installed[len(noPostgres.Installed)-1])
		}
	case errors.As(err, &demoDir):
		e.hint = "Name an empty directory, or one to be made, below one that is there; or leave out --dir for one in the temporary folder."
	case errors.As(err, &reach):
		e.hint = fmt.Sprintf("Choose another place, or let others pass through: chmod o+x %q.", reach.Dir)
	case errors.As(err, &stuck):
		e.message = message(stuck.Err)
		e.detail = "What was said last:\n" + stuck.Logs
		if stuck.Kept != "" {
			e.hint = fmt.Sprintf("All files are kept in %q.", stuck.Kept)
		}
	case errors.As(err, &lost):
		e.message = "what must not happen did: " + err.Error()
		e.hint = "This is a bug in Rideau, or a disk that lies about what it has written. Please report it, with the files: " + lost.Kept
	case errors.Is(err, context.Canceled):
		e.message = "interrupted"
	default:
		return e, false
	}
	return e, true
}

// explainBackup explains the errors of base backups.
func explainBackup(err error) (explanation, bool) {
	e := explanation{message: err.Error()}
	var (
		connect    *basebackup.ConnectError
		privilege  *basebackup.PrivilegeError
		pooler     *basebackup.PoolerError
		session    *basebackup.ControlError
		promoted   *basebackup.PromotedError
		setting    *basebackup.SettingError
		tablespace *basebackup.TablespaceError
		mapping    *basebackup.MappingError
		file       *basebackup.FileError
		damaged    *basebackup.CorruptError
		running    *basebackup.RunningError
		foreign    *basebackup.ForeignError
		live       *basebackup.LiveError
		mismatch   *basebackup.MismatchError
		recycled   *walsave.RecycledError
		listing    *manifest.ParseError
		server     *pgconn.PgError
	)
	if errors.As(err, &server) {
		e.detail = serverSaid(server)
	}
	switch {
	case errors.As(err, &session):
		e.message = fmt.Sprintf("lost the session of the backup on server %q", session.Server)
		if server == nil {
			e.message = fmt.Sprintf("%s: %s", e.message, message(session.Err))
		}
		e.hint = "What was copied is kept: the same command goes on from there."
	case errors.As(err, &connect):
		return explainBackupConnect(connect)
	case errors.As(err, &privilege):
		e.hint = "On the server, as a superuser, in the database of the connection string:\n    " +
			strings.Join(basebackup.Grants(privilege.Role, privilege.Functions), "\n    ") +
			"\nrideau doctor CONNINFO says what else matters."
	case errors.As(err, &pooler):
		e.hint = "Connect to the server itself."
	case errors.As(err, &promoted):
		e.hint = "The same command takes a backup of the new primary, and goes on with what was copied."
	case errors.As(err, &setting):
		e.hint = settingHint(setting.Name)
	case errors.As(err, &tablespace):
		e.hint = fmt.Sprintf("Name another place for it: --tablespace-mapping %s=NEW. NEW must be empty, or not be there yet.", tablespace.Location)
	case errors.As(err, &mapping):
		e.hint = "rideau doctor CONNINFO lists the tablespaces and where they are."
	case errors.As(err, &damaged):
		e.detail = "They were the same, and wrong, each time they were read. All else is whole and on disk."
		e.hint = "Do not throw away older backups. What the pages belong to: SELECT pg_filenode_relation(TABLESPACE, FILENODE), on the server."
	case errors.As(err, &running):
		e.hint = fmt.Sprintf("Stop it first: pg_ctl -D %s stop. If process %d is no server of PostgreSQL, remove postmaster.pid.", shellQuote(running.Dir), running.PID)
	case errors.As(err, &foreign):
		e.hint = "Nothing was touched. Name an empty directory, or one to be made."
	case errors.As(err, &live):
		e.hint = "Nothing was touched. Name another directory, or map the tablespace elsewhere (--tablespace-mapping OLD=NEW)."
	case errors.As(err, &mismatch):
		e.detail = "Only the data directory of the same system, made by the same initdb and of the same major version, can be refreshed. Nothing was touched."
		e.hint = "Correct the connection string, or name an empty directory."
	case errors.As(err, &recycled):
		e.hint = "Raise wal_keep_size on the server, or take the WAL from a relay, an archive, or a server whose slot keeps it (--wal-from). What was copied is kept: the same command goes on from there."
	case errors.As(err, &listing):
		e.hint = "A backup whose manifest is damaged cannot be verified. Take another: the same directory can be refreshed."
	case errors.As(err, &file):
		e.message = fmt.Sprintf("could not copy %q from server %q", file.Path, file.Server)
		if server == nil {
			e.message = fmt.Sprintf("%s: %s", e.message, message(file.Err))
		}
		e.hint = "What was copied is kept: the same command goes on from there."
	default:
		return explanation{}, false
	}
	return e, true
}

// explainBackupConnect is explainConnect for connections that are not for
// replication: what they need on the server is another line of pg_hba.conf and
// another role.
func explainBackupConnect(err *basebackup.ConnectError) (explanation, bool) {
	failed := connectErrors(err.Err)
	if len(failed) == 0 {
		return explanation{}, false
	}
	e := explainConnect(failed)
	_, server := connectCause(failed[0])
	if server == nil || server.Code != "28000" { // invalid_authorization_specification
		return e, true
	}
	role, database := quoteIdentifier(failed[0].Config.User), quoteIdentifier(failed[0].Config.Database)
	if failed[0].Config.Database == "" {
		database = role // as libpq does
	}
	if strings.Contains(server.Message, "pg_hba.conf") {
		e.hint = fmt.Sprintf("Add this line to the server's pg_hba.conf, before any that rejects, and reload it (SELECT pg_reload_conf()): hostssl %s %s %s scram-sha-256", database, role, addressIn(server.Message))
	} else {
		e.hint = fmt.Sprintf("On the server: CREATE ROLE %s LOGIN PASSWORD '...'. Then rideau doctor CONNINFO says what to grant.", role)
	}
	return e, true
}

// settingHint says how to make a server's setting what a backup needs.
func settingHint(name string) string {
	switch name {
	case "wal_level":
		return "ALTER SYSTEM SET wal_level = 'replica', and restart the server."
	case "full_page_writes":
		return "On the primary: ALTER SYSTEM SET full_page_writes = on; SELECT pg_reload_conf(). Then CHECKPOINT there, and on the standby. Or back up the primary."
	case "server_version":
		return "Servers of 13 to 18 can be backed up."
	}
	return "This can only be chosen when the server is built."
}

// connectErrors finds in err the failures to connect, one a server.
func connectErrors(err error) []*pgconn.ConnectError {
	switch x := err.(type) {
	case *pgconn.ConnectError:
		return []*pgconn.ConnectError{x}
	case interface{ Unwrap() []error }:
		var all []*pgconn.ConnectError
		for _, e := range x.Unwrap() {
			all = append(all, connectErrors(e)...)
		}
		return all
	case interface{ Unwrap() error }:
		return connectErrors(x.Unwrap())
	}
	return nil
}

// explainConnect says why no server could be connected to. Of several, each has
// its line in the detail, and the first that answered at all gives the hint.
func explainConnect(failed []*pgconn.ConnectError) explanation {
	var lines []string
	var e explanation
	answered := false
	for _, f := range failed {
		_, address := pgconn.NetworkAddress(f.Config.Host, f.Config.Port)
		cause, server := connectCause(f)
		lines = append(lines, fmt.Sprintf("%s: %s", address, cause))
		if e.message == "" || server != nil && !answered {
			e = explanation{
				message: fmt.Sprintf("could not connect to server %q as user %q: %s", address, f.Config.User, cause),
				hint:    systemHint(f),
			}
			if server != nil {
				e.message = strings.TrimSuffix(e.message, ": "+cause)
				e.detail = serverSaid(server)
				e.hint = serverHint(server, f.Config.User)
			}
			answered = server != nil
		}
	}
	if len(failed) > 1 {
		e.message = fmt.Sprintf("could not connect to any of %d servers", len(failed))
		e.detail = strings.Join(lines, "\n        ")
	}
	return e
}

// connectCause finds the reason why a connection failed. pgconn tries every
// address of a host, and where sslmode allows it both with and without TLS;
// what a server said counts for more than that another address was silent.
func connectCause(f *pgconn.ConnectError) (string, *pgconn.PgError) {
	var server *pgconn.PgError
	if errors.As(f, &server) {
		return strings.TrimSuffix(serverSaid(server)[len("The server said: "):], "."), server
	}
	return message(f.Unwrap()), nil
}

// message is what an error says, without the names of system calls and the
// repetitions that Go's network errors come with.
func message(err error) string {
	var (
		dns   *net.DNSError
		op    *net.OpError
		errno syscall.Errno
	)
	switch {
	case errors.As(err, &dns) && dns.IsNotFound:
		return fmt.Sprintf("there is no host %q", dns.Name)
	case errors.As(err, &dns):
		return fmt.Sprintf("could not look up host %q: %s", dns.Name, dns.Err)
	case errors.As(err, &op) && op.Op == "listen" && op.Addr != nil && errors.As(err, &errno):
		return fmt.Sprintf("could not listen on %q: %s", op.Addr, errno)
	case errors.As(err, &op) && op.Op == "dial" && errors.As(err, &errno):
		return errno.Error()
	case pgconn.Timeout(err):
		return "no answer in time"
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// plainPaths says "could not open file" in text where Go's package os named a
// system call, "open", or leaves the call out where err says already what could
// not be done.
func plainPaths(err error, text string) string {
	var path *fs.PathError
	if !errors.As(err, &path) {
		return text
	}
	words := fmt.Sprintf("%q: %s", path.Path, path.Err)
	if !strings.Contains(err.Error(), "could not") {
		call := path.Op
		switch path.Op {
		case "open":
			call = "open file"
		case "mkdir":
			call = "create directory"
		case "stat", "lstat":
			call = "find"
		case "write":
			call = "write to"
		}
		words = fmt.Sprintf("could not %s %s", call, words)
	}
	return strings.Replace(text, path.Error(), words, 1)
}

func serverSaid(e *pgconn.PgError) string {
	said := fmt.Sprintf("The server said: %s (SQLSTATE %s).", e.Message, e.Code)
	if e.Detail != "" {
		said += " " + e.Detail
	}
	return said
}

// addressIn finds the first IP address in what a server said, as the network of
// that address alone. The words may be in any language; addresses are not
// translated, and SQLSTATEs neither.
func addressIn(text string) string {
	for _, word := range strings.FieldsFunc(text, func(r rune) bool {
		return !strings.ContainsRune("0123456789abcdefABCDEF.:", r)
	}) {
		if ip, err := netip.ParseAddr(word); err == nil {
			return fmt.Sprintf("%s/%d", ip, ip.BitLen())
		}
	}
	return "ADDRESS/32"
}

// serverHint says what to do about what a server said to user. What the server
// itself suggests comes first: it knows best.
func serverHint(e *pgconn.PgError, user string) string {
	role := quoteIdentifier(user)
	switch {
	case e.Code == "28P01": // invalid_password
		return "Give the password in a password file (~/.pgpass), in PGPASSWORD, or in the connection string."
	case e.Code == "28000" && strings.Contains(e.Message, "pg_hba.conf"): // invalid_authorization_specification
		// no pg_hba.conf entry for replication connection from host "10.0.0.7", user "replicator", no encryption
		return fmt.Sprintf("Add this line to the server's pg_hba.conf, before any that rejects, and reload it (SELECT pg_reload_conf()): host replication %s %s scram-sha-256", role, addressIn(e.Message))
	case e.Code == "28000": // no such role, or it may not log in
		return fmt.Sprintf("On the server: CREATE ROLE %s LOGIN REPLICATION PASSWORD '...'. If the role is there: ALTER ROLE %[1]s LOGIN REPLICATION.", role)
	case e.Code == "42501" && e.Routine == "aclcheck_error": // permission denied for function
		return "rideau doctor CONNINFO says what is missing, and prints the GRANT."
	case e.Code == "42501": // insufficient_privilege: permission denied to start WAL sender
		return fmt.Sprintf("On the server: ALTER ROLE %s REPLICATION.", role)
	case e.Code == "53300" && strings.Contains(e.Message, "max_wal_senders"): // too_many_connections
		return "Raise max_wal_senders on the server (0 is off, 10 the default; it needs wal_level replica or logical) and restart it."
	case e.Code == "53300":
		return "The server has no connection left: raise max_connections, or end some."
	case e.Code == "53100": // disk_full
		return "Make room on the server's disk; then the same command again."
	case e.Code == "53400": // configuration_limit_exceeded: all replication slots are in use
		return "Drop a slot that nobody uses (see pg_replication_slots), or raise max_replication_slots on the server and restart it."
	case e.Code == "55006": // object_in_use
		return "Another relay or standby uses the slot. Give this one another with --slot NAME, or wait: a server can take wal_sender_timeout to notice that a connection is dead."
	case e.Code == "55000" && strings.Contains(e.Message, "wal_level"): // object_not_in_prerequisite_state
		return "Set wal_level to replica or logical on the server and restart it."
	case e.Code == "55000" && strings.Contains(e.Message, "slot"):
		return "The slot cannot be used any more, or not for physical replication. Drop it on the server (SELECT pg_drop_replication_slot('NAME')), or use another with --slot NAME."
	case e.Code == "57P03": // cannot_connect_now
		return "Try again when the server has started; a relay that runs does so by itself."
	case e.Hint != "":
		return e.Hint
	}
	return ""
}

// systemHint says what to do about errors of the network and of the disk.
func systemHint(err error) string {
	var (
		dns       *net.DNSError
		op        *net.OpError
		authority x509.UnknownAuthorityError
		hostname  x509.HostnameError
	)
	listening := errors.As(err, &op) && op.Op == "listen"
	switch {
	case errors.As(err, &dns):
		return "Check host= in the connection string, and PGHOST."
	case errors.Is(err, syscall.EADDRINUSE):
		return "Choose another address (--listen for standbys, --http for the console), or stop what is there; ss -ltnp names it."
	case errors.Is(err, syscall.EADDRNOTAVAIL) && listening:
		return "The address must be one of this machine's; :PORT is all of them."
	case errors.Is(err, fs.ErrPermission) && listening:
		return "Ports below 1024 are for root. A socket's directory must be writable for the user that runs rideau."
	case errors.Is(err, syscall.ECONNREFUSED):
		return "Is the server running there, and accepting TCP connections (listen_addresses, port)?"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), pgconn.Timeout(err):
		return "Is the host up, and does a firewall let us through?"
	case errors.As(err, &authority):
		return "Name the certificate authority with sslrootcert=FILE in the connection string."
	case errors.As(err, &hostname):
		return "The certificate is for another host. Connect by the name that is in it, or use sslmode=verify-ca."
	case noRoom(err):
		return "Make room. A relay then goes on by itself (it can keep less WAL: --keep SIZE); all else does with the same command."
	case errors.Is(err, syscall.EROFS):
		return "The file system is mounted read-only; the kernel's log may say why."
	case errors.Is(err, syscall.ENOTDIR), errors.Is(err, fs.ErrExist):
		return "Give a directory, one that is there or one to be made."
	case errors.Is(err, fs.ErrPermission):
		return "The user that runs rideau must own the directory and be able to write to it."
	}
	return ""
}

// noRoom says whether a disk of this machine is full.
func noRoom(err error) bool { return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) }

// quoteIdentifier quotes a name for SQL and pg_hba.conf, where it needs it.
func quoteIdentifier(name string) string {
	if plainIdentifier.MatchString(name) {
		return name
	}
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

var plainIdentifier = regexp.MustCompile(`^[a-z_][a-z0-9_]*$|^USER$`)
