package extension

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension/ledger"
)

// A Verdict of a finding.
type Verdict string

// The verdicts.
const (
	OK   Verdict = "ok"   // as it should be
	No   Verdict = "no"   // broken, or will be
	Note Verdict = "note" // worth knowing
)

// A Finding is one thing that the doctor looked at.
type Finding struct {
	Verdict Verdict  `json:"verdict"`
	What    string   `json:"what"`
	Fix     []string `json:"fix,omitempty"` // what to do, line by line
}

// An Examination is all that was looked at in one database, on all nodes.
type Examination struct {
	Node     string    `json:"node"`
	Database string    `json:"database"`
	Findings []Finding `json:"findings"`
}

// Healthy says whether nothing is broken.
func (x *Examination) Healthy() bool {
	return !slices.ContainsFunc(x.Findings, func(f Finding) bool { return f.Verdict == No })
}

func (x *Examination) add(v Verdict, fix []string, format string, args ...any) {
	x.Findings = append(x.Findings, Finding{v, fmt.Sprintf(format, args...), fix})
}

// DoctorOptions say what to look at besides.
type DoctorOptions struct {
	// Target is the connection string of a server of the next major version, any
	// database of it, to which pg_upgrade will go: whether it has what is
	// installed here.
	Target string
}

// Doctor looks for what is wrong with the extensions of a database, or will be
// after the next failover, restart or pg_upgrade. It changes nothing, and works in
// sessions of its own: libraries that it tries stay loaded in them.
func (s *Session) Doctor(ctx context.Context, opt DoctorOptions) (_ *Examination, err error) {
	own, err := s.again(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, own.Close()) }()
	return own.examine(ctx, opt)
}

func (s *Session) examine(ctx context.Context, opt DoctorOptions) (*Examination, error) {
	x := &Examination{Node: s.primary.o.Node, Database: s.primary.o.Database}
	for _, look := range []struct {
		at string
		do func(context.Context, *Examination) error
	}{
		{"versions", s.lookAtVersions},
		{"relations", s.lookAtRelations},
		{"modules", s.lookAtModules},
		{"the ledger", s.lookAtLedger},
		{"members", s.lookAtMembers},
		{"libraries", s.lookAtLibraries},
		{"preloaded libraries", s.lookAtPreload},
		{"the nodes", s.lookAtNodes},
		{"files that were brought", s.lookAtStore},
		{"search paths", s.lookAtSearchPaths},
	} {
		if err := look.do(ctx, x); err != nil {
			return nil, fmt.Errorf("could not look at %s: %w", look.at, err)
		}
	}
	if opt.Target != "" {
		if err := s.lookAtTarget(ctx, x, opt.Target); err != nil {
			return nil, fmt.Errorf("could not look at the server to upgrade to: %w", err)
		}
	}
	return x, nil
}

func (s *Session) lookAtVersions(ctx context.Context, x *Examination) error {
	st, err := s.status(ctx)
	if err != nil {
		return err
	}
	behind := 0
	for _, e := range st.Extensions {
		if e.Newest != "" {
			behind++
			x.add(Note, []string{"rideau extension upgrade " + e.Name}, "%s %s can be upgraded to %s", e.Name, e.Version, e.Newest)
			continue
		}
		available := s.primary.o.Available[e.Name]
		at := slices.IndexFunc(available, func(a Available) bool { return a.Default })
		if (e.Mode == Native || e.Mode == Path) && at >= 0 && available[at].Version != e.Version {
			behind++
			x.add(Note, nil, "%s is %s, its files on the server are of %s, and there is no path of updates between them", e.Name, e.Version, available[at].Version)
		}
		if (e.Mode == Native || e.Mode == Path) && len(available) == 0 {
			fix := fmt.Sprintf("Install the files of %s %s on the server again, or drop the extension.", e.Name, e.Version)
			if e.Mode == Path {
				fix = "rideau extension install " + e.Name + ", with a registry that has it"
			}
			x.add(No, []string{fix},
				"%s %s is installed, and the server has no files of it: a dump cannot be restored here", e.Name, e.Version)
		}
	}
	if behind == 0 {
		x.add(OK, nil, "nothing that is installed (%d) could be newer here", len(st.Extensions))
	}
	return nil
}

func (s *Session) lookAtRelations(ctx context.Context, x *Examination) error {
	k := s.known(ctx, Request{})
	p, err := k.problem(nil, nil, nil, nil)
	if err != nil {
		return err
	}
	list := broken(p)
	for _, what := range list {
		x.add(No, nil, "%s", what)
	}
	if len(list) == 0 {
		x.add(OK, nil, "what the installed ones depend on is there, and none conflicts with another")
	}
	return nil
}

func (s *Session) lookAtModules(ctx context.Context, x *Examination) error {
	for _, in := range s.primary.o.Installed {
		if in.Mode != Module {
			continue
		}
		e := ExtensionStatus{Installed: in}
		if err := s.drift(ctx, &e); err != nil {
			return err
		}
		for _, o := range e.Missing {
			x.add(No, []string{
				"Make it again as it was, or have all of the module anew; what is in its tables goes then:",
				"rideau extension uninstall --modified " + in.Name, "rideau extension install " + in.Name,
			}, "%s of module %s is gone", o, in.Name)
		}
		for _, o := range e.Modified {
			x.add(Note, nil, "%s of module %s is not as its package made it", o, in.Name)
		}
		switch {
		case len(e.Missing) > 0:
		case e.Recorded > 0:
			x.add(Note, nil, "module %s has all objects that it was installed with (%d); whether these are unchanged cannot be compared, it was recorded on PostgreSQL %d", in.Name, e.Objects, e.Recorded)
		case e.Recorded < 0:
			x.add(Note, nil, "module %s has all objects that it was installed with (%d); whether these are unchanged cannot be compared, because it was not recorded on which PostgreSQL that was", in.Name, e.Objects)
		case len(e.Modified) == 0:
			x.add(OK, nil, "module %s has all objects that it was installed with (%d), with the same definitions; %s", in.Name, e.Objects, partsNotCompared)
		}
	}
	return nil
}

// partsNotCompared is what the ledger does not record, and so nobody can see.
const partsNotCompared = "indexes, triggers, rules, policies and statistics of its tables are not recorded, and not compared"

// lookAtLedger finds what somebody else has dropped or updated.
func (s *Session) lookAtLedger(ctx context.Context, x *Examination) error {
	state, err := ledger.Read(ctx, s.primary.conn)
	if err != nil || state == nil {
		return err
	}
	for i := range state.Installed {
		e := &state.Installed[i]
		in, ok := s.primary.o.Find(e.Name)
		switch {
		case !ok:
			x.add(Note, []string{"rideau extension install " + e.Name + ", with a registry that has it; or, to have it forgotten: rideau extension uninstall " + e.Name}, "%s %s was installed as %s, and is not in pg_extension any more: it was dropped by hand", e.Name, e.Version, e.Mode)
		case in.Version != e.Version:
			x.add(Note, nil, "%s was %s when it was last recorded, and is %s: it was updated by hand, and what the new version depends on is not known", e.Name, e.Version, in.Version)
		}
	}
	return nil
}

// bringAgain is what mends a node that lacks files which we have brought to another.
func bringAgain(name string) string {
	return "rideau extension install " + name + ", with every node (-d)"
}

// lookAtMembers finds objects that were made members of an extension after it was
// created or last updated, by ALTER EXTENSION ADD: pg_dump does not dump them.
// A plain owner can do that by mistake to an extension that he owns.
func (s *Session) lookAtMembers(ctx context.Context, x *Examination) error {
	rows, err := s.primary.conn.Query(ctx, `
SELECT e.extname::text, pg_describe_object(d.classid, d.objid, d.objsubid)
FROM pg_extension e JOIN pg_depend d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
WHERE age(d.xmin) < age(e.xmin)
-- written by the same transaction, in a savepoint of it, at least one member is from the transaction itself
AND EXISTS (SELECT FROM pg_depend o WHERE o.refclassid = d.refclassid AND o.refobjid = e.oid AND o.deptype = 'e' AND age(o.xmin) = age(e.xmin))
ORDER BY 1, 2`)
	if err != nil {
		return err
	}
	var extension, object string
	_, err = pgx.ForEachRow(rows, []any{&extension, &object}, func() error {
		x.add(Note, []string{fmt.Sprintf("If it is yours: ALTER EXTENSION %s DROP %s", quoteIdent(extension), object)},
			"%s was made a member of %s after that was installed: pg_dump does not dump it", object, extension)
		return nil
	})
	return err
}

// lookAtLibraries tries on every node whether the libraries of functions can be
// loaded there.
func (s *Session) lookAtLibraries(ctx context.Context, x *Examination) error {
	for _, n := range s.nodes() {
		rows, err := n.conn.Query(ctx, `
SELECT p.probin, coalesce(min(e.extname::text), '') FROM pg_proc p
LEFT JOIN pg_depend d ON d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' AND d.refclassid = 'pg_extension'::regclass
LEFT JOIN pg_extension e ON e.oid = d.refobjid
WHERE p.probin IS NOT NULL GROUP BY 1 ORDER BY 1`)
		if err != nil {
			return err
		}
		type library struct{ Path, Extension string }
		libs, err := pgx.CollectRows(rows, pgx.RowToStructByPos[library])
		if err != nil {
			return err
		}
		if !n.o.Role.Superuser {
			if len(libs) > 0 {
				x.add(Note, nil, "whether the %d libraries that functions refer to are at %s was not tried: that needs a superuser", len(libs), n.o.Node)
			}
			continue
		}
		good := 0
		for _, lib := range libs {
			if err := n.load(ctx, lib.Path); err != nil {
				var server *pgconn.PgError
				if !errors.As(err, &server) {
					return err
				}
				fix := fmt.Sprintf("Put the library of %s where %s looks for it.", cmp.Or(lib.Extension, "these functions"), n.o.Node)
				if s.stored(lib.Extension) {
					fix = bringAgain(lib.Extension)
				}
				x.add(No, []string{fix},
					"%s cannot load %q, which functions of %s need: %s", n.o.Node, lib.Path, cmp.Or(lib.Extension, "no extension"), server.Message)
				continue
			}
			good++
		}
		if good == len(libs) {
			x.add(OK, nil, "%s can load all %d libraries that functions refer to", n.o.Node, len(libs))
		}
	}
	return nil
}

func (s *Session) lookAtPreload(ctx context.Context, x *Examination) error {
	for _, n := range s.nodes() {
		if !n.o.PreloadKnown {
			continue
		}
		for _, lib := range n.o.Preloaded {
			if strings.ContainsAny(lib, ", ") {
				x.add(No, []string{SystemChange{Name: sharedPreload, Values: strings.FieldsFunc(lib, func(r rune) bool { return r == ',' || r == ' ' }), List: true}.SQL()},
					"shared_preload_libraries of %s has one library with the name %q", n.o.Node, lib)
			}
		}
		next, err := n.nextPreload(ctx)
		if err != nil {
			return err
		}
		for _, lib := range next {
			if strings.ContainsAny(lib, ", ") && !slices.Contains(n.o.Preloaded, lib) {
				x.add(No, []string{SystemChange{Name: sharedPreload, Values: strings.FieldsFunc(lib, func(r rune) bool { return r == ',' || r == ' ' }), List: true}.SQL()},
					"at its next start %s will look for a library %q, and not start: the list was written as one name", n.o.Node, lib)
			}
		}
		if !slices.Equal(next, n.o.Preloaded) {
			x.add(Note, nil, "shared_preload_libraries of %s will be %s after a restart", n.o.Node, cmp.Or(strings.Join(next, ", "), "empty"))
		}
	}
	for _, n := range s.standbys {
		if n.o.PreloadKnown && s.primary.o.PreloadKnown && !slices.Equal(n.o.Preloaded, s.primary.o.Preloaded) {
			x.add(No, nil, "shared_preload_libraries is %q at %s, and %q at %s", strings.Join(s.primary.o.Preloaded, ", "), s.primary.o.Node, strings.Join(n.o.Preloaded, ", "), n.o.Node)
		}
	}
	if s.primary.o.Major() >= 18 {
		return s.lookAtLoaded(ctx, x)
	}
	return nil
}

// lookAtLoaded compares what is loaded, from 18 on, with what is installed: a
// library that was replaced under a running server.
func (s *Session) lookAtLoaded(ctx context.Context, x *Examination) error {
	rows, err := s.primary.conn.Query(ctx, `SELECT coalesce(module_name, ''), coalesce(version, '') FROM pg_get_loaded_modules() WHERE version IS NOT NULL`)
	if err != nil {
		return err
	}
	var module, version string
	_, err = pgx.ForEachRow(rows, []any{&module, &version}, func() error {
		in, ok := s.primary.o.Find(module)
		// Contrib's libraries carry the server's version, which says nothing.
		if ok && version != in.Version && !strings.HasPrefix(version, fmt.Sprint(s.primary.o.Major())) {
			x.add(Note, nil, "the library of %s says that it is %s, and the extension is %s", module, version, in.Version)
		}
		return nil
	})
	return err
}

// lookAtNodes compares the files of installed extensions between the nodes.
func (s *Session) lookAtNodes(ctx context.Context, x *Examination) error {
	if len(s.standbys) == 0 {
		return nil
	}
	bad := 0
	for _, in := range s.primary.o.Installed {
		if in.Mode != Native && in.Mode != Path {
			continue
		}
		bring, problems, notes, err := s.skewOf(ctx, in.Name, in.Version)
		if err != nil {
			return err
		}
		for _, f := range bring {
			bad++
			fix := fmt.Sprintf("Copy it from %s.", s.primary.o.Node)
			if s.stored(in.Name) {
				fix = bringAgain(in.Name)
			}
			x.add(No, []string{fix}, "%s of %s is missing at %s", path.Base(f.Path), in.Name, f.Node)
		}
		for _, p := range problems {
			bad++
			x.add(No, nil, "%s", p)
		}
		for _, note := range notes {
			if !slices.ContainsFunc(x.Findings, func(f Finding) bool { return f.What == note }) {
				var fix []string
				if note != librariesNotCompared && slices.ContainsFunc(s.nodes(), func(n *node) bool { return n.brought(in.Name) }) {
					fix = []string{bringAgain(in.Name)}
				}
				x.add(Note, fix, "%s", note)
			}
		}
	}
	if bad == 0 {
		x.add(OK, nil, "the nodes have the same files of all installed extensions, as far as could be seen")
	}
	return nil
}

// lookAtSearchPaths finds what leads into the store of another data directory: a
// base backup that was restored elsewhere has the search paths of where it is from.
func (s *Session) lookAtSearchPaths(ctx context.Context, x *Examination) error {
	for _, n := range s.nodes() {
		if !n.o.Role.Superuser || n.o.DataDir == "" {
			continue
		}
		store := n.store(false)
		for _, set := range []struct{ name, own, folder, in string }{
			{controlPath, ownControls, "", storeControls},
			{libraryPath, ownLibraries, "/" + storeLibraries, storeLibraries},
		} {
			if set.name == controlPath && n.o.Major() < firstControlPath {
				continue
			}
			now, err := n.serverSetting(ctx, set.name)
			if err != nil {
				return err
			}
			elements, foreign := strings.Split(now.server, ":"), ""
			for _, e := range elements {
				if strings.HasSuffix(e, "/"+storeName+set.folder) && e != store+set.folder {
					foreign = e
				}
			}
			if foreign == "" {
				continue
			}
			value := strings.Join(slices.DeleteFunc(elements, func(e string) bool { return e == foreign }), ":")
			if n.o.Store != nil && slices.ContainsFunc(names(n.o.Store.Files), func(f string) bool { return strings.HasPrefix(f, set.in+"/") }) {
				value = withElement(value, set.own, store+set.folder)
			}
			x.add(Note, []string{fmt.Sprintf("If this is a copy of a server that was there, at %s: %s; SELECT pg_reload_conf()", n.o.Node, NodeSetting{n.o.Node, set.name, cmp.Or(value, set.own)}.SQL())},
				"%s at %s has %s, which is not in its own data directory, %s", set.name, n.o.Node, foreign, n.o.DataDir)
		}
	}
	return nil
}

// lookAtTarget asks a server of the next version whether it has what pg_upgrade
// and the databases after it will need.
func (s *Session) lookAtTarget(ctx context.Context, x *Examination, conninfo string) (err error) {
	conn, err := connect(ctx, conninfo)
	if err != nil {
		return err
	}
	n := &node{config: pinned(conn), conn: conn}
	defer func() { err = errors.Join(err, hangUp(ctx, conn)) }()
	if n.o, err = Observe(ctx, conn); err != nil {
		return err
	}
	if n.o.Major() <= s.primary.o.Major() {
		return fmt.Errorf("%s is PostgreSQL %s, and this is %s: not an upgrade", n.o.Node, n.o.VersionText, s.primary.o.VersionText)
	}
	for _, in := range s.primary.o.Installed {
		if in.Mode == Module {
			continue
		}
		versions := n.o.Available[in.Name]
		switch at := slices.IndexFunc(versions, func(a Available) bool { return a.Version == in.Version }); {
		case len(versions) == 0:
			x.add(No, []string{fmt.Sprintf("Install the package of %s for PostgreSQL %d there, or drop the extension before.", in.Name, n.o.Major())},
				"%s has no files of %s: pg_upgrade would stop at its libraries, a restore at CREATE EXTENSION", n.o.Node, in.Name)
		case at >= 0 && versions[at].Default:
			x.add(OK, nil, "%s %s is at %s, and its default version there", in.Name, in.Version, n.o.Node)
		default:
			newest := defaultOf(versions)
			p, err := serverPaths(conn)(ctx, in.Name)
			if err != nil {
				return err
			}
			if p.leads(in.Version, newest) {
				x.add(Note, []string{fmt.Sprintf("After the upgrade: ALTER EXTENSION %s UPDATE", quoteIdent(in.Name))}, "%s is %s here and %s at %s, and can be updated there", in.Name, in.Version, newest, n.o.Node)
			} else {
				x.add(No, nil, "%s is %s here and %s at %s, and there is no path of updates between them", in.Name, in.Version, newest, n.o.Node)
			}
		}
	}
	if !n.o.Role.Superuser {
		x.add(Note, nil, "whether %s can load the libraries was not tried: that needs a superuser", n.o.Node)
		return nil
	}
	rows, err := s.primary.conn.Query(ctx, `SELECT DISTINCT probin FROM pg_proc WHERE probin IS NOT NULL ORDER BY 1`)
	if err != nil {
		return err
	}
	libs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return err
	}
	for _, lib := range libs {
		if err := n.load(ctx, lib); err != nil {
			var server *pgconn.PgError
			if !errors.As(err, &server) {
				return err
			}
			x.add(No, nil, "%s cannot load %q, and pg_upgrade will try: %s", n.o.Node, lib, server.Message)
		}
	}
	return nil
}
