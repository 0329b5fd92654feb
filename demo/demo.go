package demo

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"rideau/internal/pgserver"
	"rideau/relay"
	"rideau/wal"
)

// A Config says how to give the demo. Program is needed.
type Config struct {
	// Program is the rideau to run the relay with.
	Program string

	// Major is the version of PostgreSQL. Zero: 15 if it is installed, else
	// the newest that is.
	Major int

	// Dir is the directory for all files, made if it is not there; it must be
	// empty. Empty: a new one in the system's temporary folder.
	Dir string

	// Write is how long clients write before the primary is killed, and again
	// after the failover. Zero: 3 s.
	Write time.Duration

	// Step hears what has been done, a line each time; Doing what is being
	// waited for, several times a second. Nil: nobody.
	Step, Doing func(text string)

	// Show is given the report while everything still runs. When it returns
	// everything ends. Nil: at once.
	Show func(ctx context.Context, r *Report) error
}

const (
	defaultWrite = 3 * time.Second
	numClients   = 8

	// minCommits is how many commits there must be, however slow the disk,
	// before the primary is killed.
	minCommits = 50

	// patience is for what takes moments, on a machine that may be slow.
	patience = 60 * time.Second

	lookEvery = 20 * time.Millisecond
)

// A NotInstalledError says that there is no PostgreSQL to give the demo with.
type NotInstalledError struct {
	Major     int   // the one asked for; 0: any
	Installed []int // what there is
}

func (e *NotInstalledError) Error() string {
	if e.Major == 0 {
		return "PostgreSQL is not installed"
	}
	msg := fmt.Sprintf("PostgreSQL %d is not installed", e.Major)
	for i, major := range e.Installed {
		switch {
		case i == 0:
			msg += fmt.Sprintf("; there is %d", major)
		case i == len(e.Installed)-1:
			msg += fmt.Sprintf(" and %d", major)
		default:
			msg += fmt.Sprintf(", %d", major)
		}
	}
	return msg
}

// A DirError says that a directory cannot be used for the demo.
type DirError struct {
	Dir string
	Err error
}

func (e *DirError) Error() string { return fmt.Sprintf("cannot use directory %q: %v", e.Dir, e.Err) }
func (e *DirError) Unwrap() error { return e.Err }

// A StuckError says that something did not happen, and what the relay and the
// servers said last.
type StuckError struct {
	Err  error
	Logs string
	Kept string // the directory, kept for looking into; empty if it is gone
}

func (e *StuckError) Error() string { return e.Err.Error() }
func (e *StuckError) Unwrap() error { return e.Err }

// A LostError says that the demo went through, and that what it is to show is
// not so.
type LostError struct {
	Problems []string
	Kept     string // the directory, kept for looking into
}

func (e *LostError) Error() string { return strings.Join(e.Problems, "; ") }

// scene is a demo in progress.
type scene struct {
	cfg   Config
	dir   string
	begun time.Time

	ports   map[string]int // by name: primary, a, b, relay, http
	servers []*pgserver.Server
	relay   *relayProcess
	ledger  *ledger
	clients *clients
	report  Report
	shown   bool     // Show has had the report, so an interrupt comes too late
	undo    []func() // last first
}

// Run gives the demo. Whatever it returns, nothing that it started is alive.
// The report is nil if there is nothing to report; a *LostError comes with one.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if cfg.Step == nil {
		cfg.Step = func(string) {}
	}
	if cfg.Doing == nil {
		cfg.Doing = func(string) {}
	}
	if cfg.Show == nil {
		cfg.Show = func(context.Context, *Report) error { return nil }
	}
	cfg.Write = cmp.Or(cfg.Write, defaultWrite)
	major, err := chooseMajor(cfg.Major)
	if err != nil {
		return nil, err
	}
	cfg.Major = major
	s := &scene{cfg: cfg, begun: time.Now(), report: Report{Problems: []string{}}, ports: map[string]int{}, ledger: newLedger()}
	removeDir, err := s.makeDir()
	if err != nil {
		return nil, err
	}

	// Should the relay die, whatever is being waited for will not come.
	running, cancel := context.WithCancelCause(ctx)
	report, err := s.run(running, cancel)
	interrupted := ctx.Err() != nil
	switch {
	case interrupted && !s.shown:
		err = ctx.Err()
	case !interrupted && running.Err() != nil:
		err = context.Cause(running)
	}
	cancel(nil)

	kept := ""
	if err != nil && !interrupted {
		kept = s.keep()
		err = s.explain(err, kept)
	}
	cleanErr := s.clean(kept != "")
	if kept == "" {
		cleanErr = errors.Join(cleanErr, removeDir())
	}
	if report != nil {
		report.Kept = kept
	}
	if err == nil && cleanErr != nil {
		err = fmt.Errorf("could not clean up: %w", cleanErr)
	}
	return report, err
}

// chooseMajor is the version asked for, if it is installed, or one that is.
func chooseMajor(asked int) (int, error) {
	var installed []int
	for _, major := range pgserver.Majors {
		if _, err := pgserver.Find(major); err == nil {
			installed = append(installed, major)
		}
	}
	const usual = 15
	switch {
	case asked != 0 && slices.Contains(installed, asked):
		return asked, nil
	case asked != 0 || len(installed) == 0:
		return 0, &NotInstalledError{Major: asked, Installed: installed}
	case slices.Contains(installed, usual):
		return usual, nil
	}
	return installed[len(installed)-1], nil
}

// makeDir makes the directory for everything.
func (s *scene) makeDir() (remove func() error, err error) {
	if s.cfg.Dir == "" {
		s.dir, remove, err = pgserver.TempDir()
		return remove, err
	}
	if s.dir, err = filepath.Abs(s.cfg.Dir); err != nil {
		return nil, err
	}
	made := false
	entries, err := os.ReadDir(s.dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// The servers run as another user if we are root, and must get in.
		if err := os.Mkdir(s.dir, 0o755); err != nil {
			return nil, &DirError{s.cfg.Dir, reason(err)}
		}
		made = true
	case err != nil:
		return nil, &DirError{s.cfg.Dir, reason(err)}
	case len(entries) > 0:
		return nil, &DirError{s.cfg.Dir, errors.New("it is not empty")}
	}
	return func() error {
		if made {
			return os.RemoveAll(s.dir)
		}
		entries, err := os.ReadDir(s.dir)
		for _, e := range entries {
			err = errors.Join(err, os.RemoveAll(filepath.Join(s.dir, e.Name())))
		}
		return err
	}, nil
}

// reason is err without the name of the file, which has been said.
func reason(err error) error {
	var path *fs.PathError
	if errors.As(err, &path) {
		return path.Err
	}
	return err
}

// keep puts files out of the reach of those that clean up, and says where.
func (s *scene) keep() string {
	if len(s.servers) == 0 {
		return "" // nothing has happened that could be looked into
	}
	for _, server := range s.servers {
		server.Kill()
		if text, err := os.ReadFile(server.LogFile); err == nil {
			os.WriteFile(filepath.Join(s.dir, server.Name+".log"), text, 0o600)
		}
	}
	if s.relay != nil {
		s.relay.stop()
	}
	if s.cfg.Dir != "" {
		return s.dir
	}
	kept := filepath.Join(filepath.Dir(s.dir), "rideau-demo-failed-"+strconv.Itoa(os.Getpid()))
	if err := os.Rename(s.dir, kept); err != nil {
		return ""
	}
	return kept
}

// explain adds to an error what the servers said.
func (s *scene) explain(err error, kept string) error {
	var lost *LostError
	if errors.As(err, &lost) {
		lost.Kept = kept
		return err
	}
	var logs strings.Builder
	if s.relay != nil && kept != "" {
		fmt.Fprintf(&logs, "relay:\n%s\n", lastLines(filepath.Join(kept, "relay.log"), 6))
	}
	for _, server := range s.servers {
		fmt.Fprintf(&logs, "%s:\n%s\n", server.Name, server.Log(4))
	}
	if logs.Len() == 0 {
		return err
	}
	return &StuckError{Err: err, Logs: strings.TrimSpace(logs.String()), Kept: kept}
}

// clean ends all processes, at once, and removes all files; or, if they are to
// be kept, not those.
func (s *scene) clean(keepFiles bool) (err error) {
	if s.clients != nil {
		s.clients.stop(context.Background()) // their context is done
	}
	// The primary first: what it still sends would only wait.
	for _, server := range s.servers {
		if keepFiles {
			err = errors.Join(err, server.Kill())
		} else {
			err = errors.Join(err, server.Remove())
		}
	}
	if s.relay != nil {
		s.relay.stop()
	}
	for _, undo := range slices.Backward(s.undo) {
		undo()
	}
	return err
}

// run is the story.
func (s *scene) run(ctx context.Context, cancel context.CancelCauseFunc) (*Report, error) {
	for _, name := range []string{"primary", "a", "b", "relay", "http"} {
		port, release, err := pgserver.FreePort()
		if err != nil {
			return nil, err
		}
		s.ports[name], s.undo = port, append(s.undo, release)
	}
	primary, err := s.startPrimary(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.startRelay(ctx, primary, cancel); err != nil {
		return nil, err
	}
	a, b, err := s.startStandbys(ctx, primary)
	if err != nil {
		return nil, err
	}

	// Clients end with their own context: an interrupt need not wait for the
	// commits under way.
	s.clients = startClients(ctx, numClients, []int{s.ports["primary"], s.ports["a"], s.ports["b"]}, s.ledger)
	if err := s.writeFor(ctx, primary.Port); err != nil {
		return nil, err
	}
	promoted, other, err := s.failOver(ctx, primary, a, b)
	if err != nil {
		return nil, err
	}
	if err := s.writeFor(ctx, promoted.Port); err != nil {
		return nil, err
	}
	if err := s.stopClients(ctx); err != nil {
		return nil, err
	}
	if err := s.prove(ctx, primary, promoted, other); err != nil {
		return nil, err
	}
	report := &s.report
	if err := s.cfg.Show(ctx, report); err != nil {
		return report, err
	}
	s.shown = true
	if len(report.Problems) > 0 {
		return report, &LostError{Problems: report.Problems}
	}
	return report, nil
}

func (s *scene) step(format string, args ...any)  { s.cfg.Step(fmt.Sprintf(format, args...)) }
func (s *scene) doing(format string, args ...any) { s.cfg.Doing(fmt.Sprintf(format, args...)) }

// wait looks until done says so. state is how things stand, for people.
func (s *scene) wait(ctx context.Context, what string, done func() (ok bool, state string)) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	s.doing("waiting for %s", what)
	for {
		ok, state := done()
		if ok {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waited %s for %s: %s", patience, what, cmp.Or(state, ctx.Err().Error()))
		case <-tick.C:
		}
	}
}

// waitRelay is wait for something about the relay.
func (s *scene) waitRelay(ctx context.Context, what string, done func(relay.Status) bool) (relay.Status, error) {
	var last relay.Status
	err := s.wait(ctx, what, func() (bool, string) {
		st, err := s.relay.status(ctx)
		if err != nil {
			return false, err.Error()
		}
		last = st
		return done(st), fmt.Sprintf("it is at %s on timeline %d, %s %s", st.Position.Complete, st.Position.TLI, st.Upstream.State, st.Upstream.Error)
	})
	return last, err
}

func (s *scene) serverOptions(name string) pgserver.Options {
	return pgserver.Options{
		Major: s.cfg.Major, Name: name, Port: s.ports[name], Dir: filepath.Join(s.dir, name),
		Settings: map[string]string{
			"fsync": "on",
			// Also for the standbys: whoever of them is promoted is as careful.
			"synchronous_standby_names": "rideau",
			"max_slot_wal_keep_size":    "1GB",
		},
	}
}

func (s *scene) startPrimary(ctx context.Context) (*pgserver.Server, error) {
	s.doing("making the primary")
	o := s.serverOptions("primary")
	primary, err := pgserver.New(ctx, o)
	if err != nil {
		return nil, err
	}
	s.servers = append(s.servers, primary)
	if err := primary.Start(ctx); err != nil {
		return nil, err
	}
	version, err := primary.QueryValue(ctx, "SELECT split_part(current_setting('server_version'), ' ', 1)")
	if err != nil {
		return nil, err
	}
	s.report.Version, s.report.Dir, s.report.Clients = version, s.dir, numClients
	s.step("primary: PostgreSQL %s, port %d, fsync on, synchronous_standby_names = 'rideau'", version, primary.Port)
	return primary, nil
}

func (s *scene) startRelay(ctx context.Context, primary *pgserver.Server, cancel context.CancelCauseFunc) error {
	// It need not know now who will be the primary, as its clients need not.
	listen := fmt.Sprintf("127.0.0.1:%d", s.ports["relay"])
	console := fmt.Sprintf("127.0.0.1:%d", s.ports["http"])
	var err error
	s.relay, err = startRelay(s.cfg.Program, "http://"+console, filepath.Join(s.dir, "relay.log"), []string{
		"relay", hosts(s.ports["primary"], s.ports["a"], s.ports["b"]) + " user=postgres", filepath.Join(s.dir, "relay"),
		"--listen", listen, "--http", console,
	})
	if err != nil {
		return err
	}
	go func() {
		<-s.relay.done
		cancel(fmt.Errorf("the relay ended: %w", cmp.Or(s.relay.err, errors.New("exit status 0"))))
	}()
	s.report.Relay = RelayReport{PID: s.relay.pid, Command: s.relay.command(), Listen: listen, URL: s.relay.http}
	if _, err := s.waitRelay(ctx, "the relay to receive WAL", func(st relay.Status) bool {
		return st.Upstream.State == "streaming" && st.Position.TLI != 0
	}); err != nil {
		return err
	}
	if err := s.wait(ctx, "the relay to be the synchronous member", func() (bool, string) {
		got, err := primary.QueryValue(ctx, "SELECT coalesce(string_agg(application_name || ' ' || sync_state, ','), 'nobody') FROM pg_stat_replication")
		if err != nil {
			return false, err.Error()
		}
		return got == "rideau sync", "there is " + got
	}); err != nil {
		return err
	}
	s.step("relay: port %d, process %d, console %s", s.ports["relay"], s.relay.pid, s.relay.http)
	s.step("$ %s", s.relay.command())
	// The first commit that waits for the relay.
	if _, err := primary.Query(ctx, "CREATE TABLE ledger (id bigint NOT NULL, written timestamptz NOT NULL DEFAULT clock_timestamp())"); err != nil {
		return err
	}
	return nil
}

func (s *scene) startStandbys(ctx context.Context, primary *pgserver.Server) (a, b *pgserver.Server, err error) {
	conninfo := fmt.Sprintf("host=127.0.0.1 port=%d user=postgres", s.ports["relay"])
	for _, name := range []string{"a", "b"} {
		s.doing("taking a base backup for standby %s", name)
		standby, err := primary.Standby(ctx, s.serverOptions(name), conninfo)
		if err != nil {
			return nil, nil, err
		}
		s.servers = append(s.servers, standby)
		if err := standby.Start(ctx); err != nil {
			return nil, nil, err
		}
	}
	a, b = s.servers[1], s.servers[2]
	if _, err := s.waitRelay(ctx, "the standbys to stream from the relay", func(st relay.Status) bool {
		n := 0
		for _, sb := range st.Standbys {
			if sb.State == "streaming" && sb.Apply != 0 {
				n++
			}
		}
		return n == 2
	}); err != nil {
		return nil, nil, err
	}
	s.step("standbys: a (port %d) and b (port %d), by base backup; primary_conninfo = '%s', the relay", a.Port, b.Port, conninfo)
	return a, b, nil
}

// writeFor lets clients write to the server on port for a while.
func (s *scene) writeFor(ctx context.Context, port int) error {
	if err := s.wait(ctx, "the first acknowledged commit", func() (bool, string) {
		return s.ledger.countBy(port) > 0, "no client has had one"
	}); err != nil {
		return err
	}
	if port != s.ports["primary"] {
		s.report.Downtime = s.ledger.gap(s.ports["primary"], port).Seconds()
		s.step("clients: found it by themselves; no commit was acknowledged for %.2f s", s.report.Downtime)
	}
	begun := time.Now()
	return s.wait(ctx, fmt.Sprintf("%d acknowledged commits", minCommits), func() (bool, string) {
		n := s.ledger.count()
		s.doing("%d clients write: %s commits acknowledged", numClients, Thousands(n))
		by := s.ledger.countBy(port)
		return by >= minCommits && time.Since(begun) >= s.cfg.Write, fmt.Sprintf("there are %d", by)
	})
}

func (s *scene) stopClients(ctx context.Context) error {
	s.doing("waiting for clients to finish their commits")
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.clients.stop(ctx)
}

// failOver kills the primary and makes one of a and b the next.
func (s *scene) failOver(ctx context.Context, primary, a, b *pgserver.Server) (promoted, other *pgserver.Server, err error) {
	f := &s.report.Failover
	pid := primary.PID()
	if err := primary.Kill(); err != nil {
		return nil, nil, err
	}
	f.AckedBefore = s.ledger.countBy(primary.Port)
	s.step("SIGKILL to the primary (process %d and all below it), %d clients writing, %s commits acknowledged", pid, numClients, Thousands(f.AckedBefore))

	// Once the relay has noticed, it has synced all that it got, and nothing
	// can come any more.
	st, err := s.waitRelay(ctx, "the relay to have nothing more to receive", func(st relay.Status) bool {
		return st.Upstream.State != "streaming"
	})
	if err != nil {
		return nil, nil, err
	}
	f.Held = st.Position
	if f.Held.Complete < st.Reported {
		s.problem("the relay reported %s to the primary but holds WAL up to %s only", st.Reported, f.Held.Complete)
	}
	s.step("relay: has all there was to receive on disk, up to %s on timeline %d", f.Held.Complete, f.Held.TLI)

	for _, standby := range []*pgserver.Server{a, b} {
		s.doing("standby %s replays up to %s", standby.Name, f.Held.Complete)
		if err := standby.WaitLSN(ctx, f.Held.Complete); err != nil {
			return nil, nil, err
		}
	}
	positions := [2]wal.LSN{}
	for i, standby := range []*pgserver.Server{a, b} {
		text, err := standby.QueryValue(ctx, "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())")
		if err != nil {
			return nil, nil, err
		}
		if positions[i], err = wal.ParseLSN(text); err != nil {
			return nil, nil, err
		}
	}
	promoted, other = a, b
	if positions[1] > positions[0] {
		promoted, other = b, a
	}
	s.step("standbys: have replayed the relay's last byte (a has %s, b has %s); %s is promoted", positions[0], positions[1], promoted.Name)
	s.report.Untouched.Name = other.Name
	before, err := fingerprint(ctx, other)
	if err != nil {
		return nil, nil, err
	}
	s.doing("promoting %s", promoted.Name)
	if err := promoted.Promote(ctx); err != nil {
		return nil, nil, err
	}
	f.Promoted = promoted.Name
	s.step("%s: is the primary; its commits wait for the relay, as before", promoted.Name)

	st, err = s.waitRelay(ctx, "the relay to follow the new primary", func(st relay.Status) bool {
		return st.Upstream.State == "streaming" && st.Position.TLI > f.Held.TLI
	})
	if err != nil {
		return nil, nil, err
	}
	s.step("relay: fed by %s, on timeline %d", promoted.Name, st.Position.TLI)
	u := &s.report.Untouched
	if err := s.wait(ctx, fmt.Sprintf("standby %s to receive the new timeline", other.Name), func() (bool, string) {
		text, err := other.QueryValue(ctx, "SELECT coalesce((SELECT received_tli FROM pg_stat_wal_receiver), 0)")
		if err != nil {
			return false, err.Error()
		}
		u.ReceivedTLI, _ = strconv.Atoi(text)
		return u.ReceivedTLI == int(st.Position.TLI), "it receives timeline " + text
	}); err != nil {
		return nil, nil, err
	}
	after, err := fingerprint(ctx, other)
	if err != nil {
		return nil, nil, err
	}
	u.PID, u.SameProcess, u.SameConfiguration, u.SameWalReceiver = after.pid,
		before.pid == after.pid, before.conf == after.conf, before.receiver == after.receiver
	if !u.SameProcess || !u.SameConfiguration {
		s.problem("standby %s was restarted or configured anew", other.Name)
	}
	s.step("standby %s: follows timeline %d through the relay, untouched (still process %d, same configuration)", other.Name, u.ReceivedTLI, u.PID)
	return promoted, other, nil
}

// A serverFingerprint changes when somebody touches a server.
type serverFingerprint struct {
	pid      int
	conf     [sha256.Size]byte
	receiver string // the walreceiver's process id
}

func fingerprint(ctx context.Context, server *pgserver.Server) (f serverFingerprint, err error) {
	f.pid = server.PID()
	sum := sha256.New()
	names, err := filepath.Glob(filepath.Join(server.Dir, "*.conf"))
	if err != nil {
		return f, err
	}
	for _, name := range append(names, filepath.Join(server.Dir, "standby.signal")) {
		text, err := os.ReadFile(name)
		if err != nil {
			return f, err
		}
		fmt.Fprintf(sum, "%s %d\n%s", name, len(text), text)
	}
	sum.Sum(f.conf[:0])
	f.receiver, err = server.QueryValue(ctx, "SELECT coalesce((SELECT pid FROM pg_stat_wal_receiver), 0)")
	return f, err
}

func (s *scene) problem(format string, args ...any) {
	s.report.Problems = append(s.report.Problems, fmt.Sprintf(format, args...))
}

// prove asks every place what it has. Clients have stopped.
func (s *scene) prove(ctx context.Context, primary, promoted, other *pgserver.Server) error {
	r := &s.report
	r.Acknowledged = s.ledger.count()
	r.Failover.AckedBefore = s.ledger.countBy(primary.Port)
	r.InDoubt = len(s.ledger.doubt)
	s.step("clients: have stopped; %s commits were acknowledged in all", Thousands(r.Acknowledged))

	s.doing("asking every place for what it has")
	first, err := s.askServer(ctx, promoted)
	if err != nil {
		return err
	}
	// To read rows for the first time writes WAL as well (hint bits, of pages
	// with checksums); a commit after it puts an end to that.
	if _, err := promoted.Query(ctx, "COMMENT ON TABLE ledger IS 'written by clients of the demo'"); err != nil {
		return err
	}
	end, err := promoted.LSN(ctx)
	if err != nil {
		return err
	}
	first.LSN = end
	if err := other.WaitLSN(ctx, end); err != nil {
		return err
	}
	st, err := s.waitRelay(ctx, "the relay to have all of it", func(st relay.Status) bool { return st.Position.Complete >= end })
	if err != nil {
		return err
	}
	second, err := s.askServer(ctx, other)
	if err != nil {
		return err
	}
	first.Role, second.Role = "new primary", "standby"
	held, err := readHeld(ctx, filepath.Join(s.dir, "relay"))
	if err != nil {
		return fmt.Errorf("could not read the relay's WAL: %w", err)
	}
	third := Place{Name: "relay", Role: "WAL", TLI: held.tli, LSN: held.end, Tally: s.ledger.compareCommits(held.commits)}
	r.Places = []Place{first, second, third}
	if held.end < end {
		s.problem("the relay's directory has WAL up to %s only, where /status says %s", held.end, st.Position.Complete)
	}
	f := &r.Failover
	if fork, next, ok := held.path.SwitchPoint(f.Held.TLI); ok {
		f.Fork, f.TLI = fork, next
		if fork < f.Held.Complete {
			s.problem("timeline %d begins at %s, before %s, the last byte that the relay had acknowledged", next, fork, f.Held.Complete)
		}
	} else {
		s.problem("the relay has no history of timeline %d", held.tli)
	}
	s.judge()
	for _, server := range []*pgserver.Server{promoted, other} {
		r.Servers = append(r.Servers, ServerReport{Name: server.Name, PID: server.PID(), Conninfo: server.Conninfo(""), Log: server.LogFile})
	}
	r.Servers[0].Role, r.Servers[1].Role = "new primary", "standby"
	r.Seconds = time.Since(s.begun).Seconds()
	return nil
}

// judge says in words what the places lack.
func (s *scene) judge() {
	r := &s.report
	for _, p := range r.Places {
		where := strings.TrimSpace(p.Role + " " + p.Name)
		if p.Name == "relay" {
			where = "relay's WAL"
		}
		if p.Missing > 0 {
			s.problem("%s of %s acknowledged commits are missing on the %s (ids %s)", Thousands(p.Missing), Thousands(r.Acknowledged), where, someIDs(p.Tally))
		}
		if p.Duplicates > 0 {
			s.problem("%s rows are there more than once on the %s", Thousands(p.Duplicates), where)
		}
		if p.Foreign > 0 {
			s.problem("%s rows that no client wrote are on the %s", Thousands(p.Foreign), where)
		}
	}
	if a, b := r.Places[0], r.Places[1]; a.InDoubt != b.InDoubt {
		s.problem("the servers differ: %d of the commits in doubt are on %s, %d on %s", a.InDoubt, a.Name, b.InDoubt, b.Name)
	}
}

func someIDs(t Tally) string {
	var b strings.Builder
	for i, id := range t.MissingIDs {
		if i > 0 {
			b.WriteString(", ")
		}
		fmt.Fprint(&b, id)
	}
	if t.Missing > len(t.MissingIDs) {
		b.WriteString(", ...")
	}
	return b.String()
}

// askServer compares the ledger with the rows of a server.
func (s *scene) askServer(ctx context.Context, server *pgserver.Server) (p Place, err error) {
	p.Name = server.Name
	rows, err := server.Query(ctx, "SELECT id FROM ledger")
	if err != nil {
		return p, err
	}
	ids := make([]int64, len(rows))
	for i, row := range rows {
		if ids[i], err = strconv.ParseInt(row[0], 10, 64); err != nil {
			return p, err
		}
	}
	p.Rows, p.Tally = len(ids), s.ledger.compareRows(ids)
	if p.LSN, err = server.LSN(ctx); err != nil {
		return p, err
	}
	// A primary's own timeline is in its WAL file names only; a standby's
	// control file may be behind what it replays.
	tli, err := server.QueryValue(ctx, `SELECT CASE WHEN pg_is_in_recovery()
		THEN (SELECT received_tli FROM pg_stat_wal_receiver)
		ELSE ('x' || left(pg_walfile_name(pg_current_wal_lsn()), 8))::bit(32)::int END`)
	if err != nil {
		return p, err
	}
	n, err := strconv.ParseUint(tli, 10, 32)
	p.TLI = wal.TLI(n)
	return p, err
}
