package basebackup

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"strings"

	"rideau/wal"
)

// Grants are the statements that let role execute the functions, one each. They
// are for the database that the backup connects to: each has functions, and so
// privileges on them, of its own.
func Grants(role string, functions []string) []string {
	var list []string
	for _, f := range functions {
		list = append(list, fmt.Sprintf("GRANT EXECUTE ON FUNCTION %s TO %s;", f, quoteRole(role)))
	}
	return list
}

// quoteRole quotes always: which names are reserved depends on the version.
func quoteRole(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}

// An Examination is what a server is and allows, as far as it matters to a base
// backup of it, and what follows from that.
type Examination struct {
	Server   string  `json:"server"`
	Version  string  `json:"version"`
	Major    int     `json:"major"`
	SystemID uint64  `json:"system_identifier,string"`
	TLI      wal.TLI `json:"timeline"`
	Standby  bool    `json:"standby"`

	Role        string `json:"role"`
	Database    string `json:"database"`
	Superuser   bool   `json:"superuser"`
	Replication bool   `json:"replication"`

	// ConnectionLimit is the role's, -1 for none.
	ConnectionLimit int `json:"connection_limit"`

	// Missing are the functions that the role may not execute.
	Missing []string `json:"missing_functions"`

	// Provider is a role that only a managed service has, if there is one.
	Provider string `json:"managed_by,omitempty"`

	// Local is a connection that does not leave the machine. TLS is the version
	// of an encrypted one.
	Local bool   `json:"local"`
	TLS   string `json:"tls,omitempty"`

	// Pooler: something stands between us and the server that is no mere relay of
	// bytes.
	Pooler bool `json:"pooler"`

	// FullPageWrites is what the WAL since the last checkpoint was written with:
	// on a standby, the primary's setting and not its own.
	FullPageWrites bool `json:"full_page_writes"`

	// Settings are those that have a say, as SHOW prints them. One that the
	// version does not have is not there.
	Settings map[string]string `json:"settings"`

	Tablespaces []Tablespace `json:"tablespaces"`

	// Outside are configuration files that are not in the data directory. Nil: not
	// known, because the role may not look.
	Outside []string `json:"files_outside"`

	Findings []Finding `json:"findings"`
}

// A Tablespace is one that has a location of its own.
type Tablespace struct {
	OID      uint32 `json:"oid"`
	Name     string `json:"name"`
	Location string `json:"location"`
}

// A Finding is one thing that was looked at: OK, in the way of a backup (No), or
// worth knowing (Note). Fix is what to do, a line each, and SQL where SQL does
// it: such lines end in a semicolon, or are comments.
type Finding struct {
	Verdict Verdict  `json:"verdict"`
	What    string   `json:"what"`
	Fix     []string `json:"fix,omitempty"`
}

// A Verdict is the weight of a finding.
type Verdict string

// The verdicts.
const (
	OK   Verdict = "ok"
	No   Verdict = "no"
	Note Verdict = "note"
)

// Possible reports whether a base backup can be taken.
func (x *Examination) Possible() bool {
	for _, f := range x.Findings {
		if f.Verdict == No {
			return false
		}
	}
	return true
}

// Examine connects to the server at conninfo and finds out what stands in the
// way of a base backup of it. Nothing is changed there. The error says that it
// could not be asked, not that a backup is impossible: see Possible.
func Examine(ctx context.Context, conninfo string) (*Examination, error) {
	d, err := newDialer(conninfo)
	if err != nil {
		return nil, err
	}
	s, err := d.session(ctx)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	x := &Examination{Server: s.server}
	if err := x.ask(ctx, s); err != nil {
		return nil, fmt.Errorf("could not examine server %q: %w", x.Server, err)
	}
	x.Findings = x.judge()
	return x, nil
}

// ask gathers the facts.
func (x *Examination) ask(ctx context.Context, s *session) error {
	x.TLS, x.Local = overWhat(s.pc.Conn())
	if err := x.askRole(ctx, s); err != nil {
		return err
	}
	if x.Major < oldestMajor {
		return nil // its functions are others
	}
	f, err := s.facts(ctx)
	if err != nil {
		return err
	}
	x.SystemID, x.TLI, x.Standby, x.FullPageWrites = f.systemID, f.tli, f.recovery, f.fullPages
	x.Pooler = s.pc.PID() != 0 && s.pc.PID() != f.pid
	x.Tablespaces = []Tablespace{}
	for _, t := range f.spaces {
		if t.location != "" {
			x.Tablespaces = append(x.Tablespaces, Tablespace{t.oid, t.name, t.location})
		}
	}
	if x.Missing, err = s.privileges(ctx, x.Major); err != nil {
		return err
	}
	x.Missing = append([]string{}, x.Missing...) // never null in JSON
	if err := x.askSettings(ctx, s); err != nil {
		return err
	}
	return x.askOutside(ctx, s)
}

// overWhat tells how the server is reached.
func overWhat(conn net.Conn) (version string, local bool) {
	if t, ok := conn.(*tls.Conn); ok {
		version = tls.VersionName(t.ConnectionState().Version)
	}
	tcp, ok := conn.RemoteAddr().(*net.TCPAddr)
	return version, !ok || tcp.IP.IsLoopback()
}

// providers are roles that a managed service has and nobody else. There the
// owner of a database is no superuser, and cannot grant these functions.
const providers = `'rds_superuser', 'cloudsqlsuperuser', 'azure_pg_admin', 'alloydbsuperuser'`

func (x *Examination) askRole(ctx context.Context, s *session) error {
	r, err := s.row(ctx, `SELECT current_setting('server_version'), current_setting('server_version_num'),
 current_user, current_database(), rolsuper, rolreplication, rolconnlimit,
 (SELECT min(rolname) FROM pg_roles WHERE rolname IN (`+providers+`))
FROM pg_roles WHERE rolname = current_user`)
	if err != nil {
		return err
	}
	number, err := strconv.Atoi(r[1])
	if err != nil {
		return err
	}
	x.Version, x.Major = r[0], number/10000
	x.Role, x.Database, x.Superuser, x.Replication, x.Provider = r[2], r[3], r[4] == "t", r[5] == "t", r[7]
	if x.ConnectionLimit, err = strconv.Atoi(r[6]); x.Superuser {
		x.ConnectionLimit = -1 // it is not held to it
	}
	return err
}

func (x *Examination) askSettings(ctx context.Context, s *session) error {
	rows, err := s.rows(ctx, `SELECT name, current_setting(name) FROM pg_settings WHERE name IN
 ('full_page_writes', 'wal_level', 'wal_keep_size', 'max_slot_wal_keep_size', 'max_wal_senders', 'max_wal_size',
 'data_checksums', 'summarize_wal', 'wal_summary_keep_time', 'data_directory_mode', 'archive_mode',
 'wal_segment_size', 'block_size', 'max_connections', 'jit')`)
	x.Settings = map[string]string{}
	for _, r := range rows {
		x.Settings[r[0]] = r[1]
	}
	return err
}

// askOutside finds out whether the configuration is where initdb put it, which
// Debian's is not. Where it is instead the role need not be allowed to see.
func (x *Examination) askOutside(ctx context.Context, s *session) error {
	for _, f := range x.Missing {
		if strings.HasPrefix(f, "pg_ls_dir(") {
			return nil
		}
	}
	rows, err := s.rows(ctx, `SELECT f FROM unnest('{pg_hba.conf,pg_ident.conf,postgresql.conf}'::text[]) f
WHERE f NOT IN (SELECT pg_ls_dir('.', true, false)) ORDER BY f`)
	x.Outside = []string{}
	for _, r := range rows {
		x.Outside = append(x.Outside, r[0])
	}
	return err
}

// judge says what follows from the facts. It is pure; what is in the way of a
// backup comes before what is merely good to know.
func (x *Examination) judge() []Finding {
	f := &findings{}
	if !x.judgeServer(f) {
		return f.list
	}
	x.judgeRole(f)
	x.judgeConnection(f)
	x.judgeWAL(f)
	x.judgeFiles(f)
	x.judgeRelay(f)
	if len(x.Missing) == 0 {
		f.note("whoever has this role's password has the whole server; so has DIR, with the hashes of all passwords")
	}
	return f.list
}

type findings struct{ list []Finding }

func (f *findings) ok(what string, args ...any)   { f.add(OK, fmt.Sprintf(what, args...), nil) }
func (f *findings) no(what string, fix ...string) { f.add(No, what, fix) }
func (f *findings) note(what string, fix ...string) {
	f.add(Note, what, fix)
}
func (f *findings) add(v Verdict, what string, fix []string) {
	f.list = append(f.list, Finding{v, what, fix})
}

// judgeServer reports whether anything else about the server is known.
func (x *Examination) judgeServer(f *findings) bool {
	if x.Major < oldestMajor {
		f.no(fmt.Sprintf("PostgreSQL %s at %s", x.Version, x.Server),
			fmt.Sprintf("Servers of %d to %d can be backed up.", oldestMajor, newestMajor))
		return false
	}
	kind := "primary"
	if x.Standby {
		kind = "standby"
	}
	what := fmt.Sprintf("PostgreSQL %s at %s, a %s on timeline %d", x.Version, x.Server, kind, x.TLI)
	switch {
	case x.Major > newestMajor:
		f.no(what, fmt.Sprintf("Servers of %d to %d can be backed up.", oldestMajor, newestMajor))
	case x.Settings["block_size"] != "8192":
		f.no(fmt.Sprintf("%s, with blocks of %s bytes", what, x.Settings["block_size"]), "It must have been built with blocks of 8192.")
	default:
		f.ok("%s", what)
	}
	if x.Standby {
		f.note("a backup of a standby is void if the standby is promoted before it ends")
	}
	return true
}

func (x *Examination) judgeRole(f *findings) {
	switch {
	case x.Superuser:
		f.note(fmt.Sprintf("role %q is a superuser; one that may execute five functions is enough:", x.Role),
			append([]string{`CREATE ROLE "backup" LOGIN PASSWORD '...';`}, Grants("backup", functions(x.Major))...)...)
	case len(x.Missing) == 0:
		f.ok("role %q may execute the five functions of a backup in database %q", x.Role, x.Database)
	default:
		where := ""
		if x.Standby {
			where = ", on the primary"
		}
		fix := append([]string{fmt.Sprintf("-- As a superuser%s, in database %q:", where, x.Database)}, Grants(x.Role, x.Missing)...)
		if x.Provider != "" {
			fix = append(fix, fmt.Sprintf("-- This looks like a managed service (it has role %q): most have nobody who may do that.", x.Provider))
		}
		what := fmt.Sprintf("role %q may not execute %s that a backup needs", x.Role, counted(len(x.Missing), "function"))
		f.no(what, fix...)
	}
	// The session that holds the backup, the one for WAL, and the workers.
	if need := 2 + defaultJobs; x.ConnectionLimit >= 0 && x.ConnectionLimit < need {
		fix := fmt.Sprintf("ALTER ROLE %s CONNECTION LIMIT %d;", quoteRole(x.Role), need)
		if x.ConnectionLimit < 3 {
			f.no(fmt.Sprintf("role %q may have %s, and a backup needs 3", x.Role, counted(x.ConnectionLimit, "connection")), fix)
		} else {
			f.note(fmt.Sprintf("role %q may have %s: use --jobs %d, or", x.Role, counted(x.ConnectionLimit, "connection"), x.ConnectionLimit-2), fix)
		}
	}
}

func (x *Examination) judgeConnection(f *findings) {
	if x.Pooler {
		f.no("a connection pooler is in between, and a backup must begin and end in one session",
			"Connect to the server itself.")
	}
	switch {
	case x.TLS != "":
		f.ok("the connection is encrypted (%s)", x.TLS)
	case x.Local:
		f.ok("the connection does not leave this machine")
	default:
		f.note("the connection is not encrypted, and all of the data will pass through it",
			"Add sslmode=verify-full (or require) to the connection string.")
	}
}

func (x *Examination) judgeWAL(f *findings) {
	set := x.Settings
	switch level := set["wal_level"]; {
	case level == "minimal" && !x.Standby:
		f.no("wal_level is minimal", "ALTER SYSTEM SET wal_level = 'replica';", "and restart the server.")
	default:
		f.ok("wal_level is %s", level)
	}
	switch {
	case x.Standby && !x.FullPageWrites:
		f.no("the primary writes WAL with full_page_writes off, and only a primary can turn that on for a backup",
			"On the primary:", "ALTER SYSTEM SET full_page_writes = on;", "SELECT pg_reload_conf();", "CHECKPOINT;",
			"then CHECKPOINT here as well; or back up the primary.")
	case x.Standby:
		f.ok("full_page_writes is on at the primary")
	case set["full_page_writes"] == "off":
		f.note("full_page_writes is off; the server turns it on for as long as a backup takes")
	default:
		f.ok("full_page_writes is on")
	}
	if keep := set["wal_keep_size"]; keep == "0" {
		f.note("wal_keep_size is 0: a busy server may remove WAL before it was copied",
			"ALTER SYSTEM SET wal_keep_size = '2GB';", "SELECT pg_reload_conf();",
			"or take WAL from elsewhere: --wal-from a relay or an archive.")
	} else {
		f.ok("wal_keep_size is %s: so much WAL stays for the backup to copy", keep)
	}
	switch sum, there := set["summarize_wal"]; {
	case sum == "on":
		f.ok("summarize_wal is on: a refresh reads what changed, and nothing else")
	case there:
		f.note("summarize_wal is off: a refresh lets the server read all pages to find the changed ones",
			"ALTER SYSTEM SET summarize_wal = on;", "SELECT pg_reload_conf();")
	}
}

func (x *Examination) judgeFiles(f *findings) {
	if x.Settings["data_checksums"] == "on" {
		f.ok("data_checksums is on: each page is checked on its way")
	} else {
		f.note(fmt.Sprintf("data_checksums is %s: of a page only the header can be checked", x.Settings["data_checksums"]))
	}
	switch n := len(x.Outside); {
	case x.Outside == nil:
	case n == 0:
		f.ok("the configuration is in the data directory, and comes along")
	default:
		f.note(strings.Join(x.Outside, ", ")+" "+plural(n, "is", "are")+" not in the data directory (as on Debian), and cannot be copied",
			"The backup makes new ones: the settings that the role can see, and access for the same user only.",
			"Look at them before DIR is started.")
	}
	for _, t := range x.Tablespaces {
		f.note(fmt.Sprintf("tablespace %q is at %q, and goes to the same place here, if that is empty", t.Name, t.Location),
			"Elsewhere with: --tablespace-mapping "+t.Location+"=NEW")
	}
}

func (x *Examination) judgeRelay(f *findings) {
	senders, _ := strconv.Atoi(x.Settings["max_wal_senders"])
	switch {
	case senders == 0:
		f.note("max_wal_senders is 0: neither a relay nor a standby can follow this server")
	case x.Replication || x.Superuser:
		f.ok("role %q may replicate: rideau relay and a standby can use it too", x.Role)
	}
}

func counted(n int, what string) string {
	return fmt.Sprintf("%d %s", n, plural(n, what, what+"s"))
}

func plural(n int, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}
