package extension

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"rideau/extension/depend"
	"rideau/extension/pack"
	"rideau/extension/resolve"
)

// Plan says what would have to be done to have what is requested, and changes
// nothing. That it cannot be had is an error that explains itself, of package
// resolve.
func (s *Session) Plan(ctx context.Context, req Request) (*Plan, error) {
	k := s.known(ctx, req)
	remove, err := s.removals(k, req)
	if err != nil {
		return nil, err
	}
	choices, err := s.resolve(ctx, k, req, remove)
	if err != nil {
		return nil, err
	}
	sel := selection{
		choices: choices, offers: map[string]offer{}, modes: map[string]modeChoice{},
		packages: map[string]*pack.Package{}, digests: map[string]string{}, enforced: s.cfg.enforced,
	}
	for _, c := range choices {
		if c.Name == postgresql || c.Version == "" {
			continue
		}
		if c.Was == c.Version {
			if in, ok := s.primary.o.Find(c.Name); ok && in.Entry != nil {
				if err := s.checkLocked(req, c.Name, in.SHA256); err != nil {
					return nil, err
				}
			}
			continue
		}
		n := k.names[c.Name]
		sel.offers[c.Name], sel.modes[c.Name] = n.offers[c.Version], n.modes[c.Version]
		if err := s.fetch(ctx, &sel, c, req); err != nil {
			return nil, err
		}
	}
	if sel.settings, err = s.settingInfos(ctx, sel.packages); err != nil {
		return nil, err
	}
	if sel.lists, err = s.libraryLists(ctx); err != nil {
		return nil, err
	}
	p, err := decide(s.primary.o, req, sel)
	if err != nil {
		return nil, err
	}
	p.Standbys = nodeNames(s.standbys)
	for _, name := range k.shadowed {
		p.Notes = append(p.Notes, fmt.Sprintf("the unsigned package of %s is not used: the server has files of an extension of that name", name))
	}
	return p, s.planNodes(ctx, p, req)
}

func (s *Session) known(ctx context.Context, req Request) *known {
	wanted, ranges := map[string]Mode{}, map[string]bool{}
	for _, w := range slices.Concat(req.Install, req.Upgrade) {
		if w.Mode != "" {
			wanted[w.Name] = w.Mode
		}
		ranges[w.Name] = len(w.Range) > 0
	}
	mode := func(name string) Mode { return cmp.Or(wanted[name], req.Mode) }
	k := newKnown(ctx, s.primary.o, s.cfg, mode, serverPaths(s.primary.conn))
	k.ranges = ranges
	return k
}

// removals lists what goes, with all that needs it if that was said.
func (s *Session) removals(k *known, req Request) ([]string, error) {
	if len(req.Uninstall) == 0 {
		return nil, nil
	}
	problem, err := k.problem(nil, nil, nil, nil)
	if err != nil {
		return nil, err
	}
	remove := slices.Clone(req.Uninstall)
	for _, name := range req.Uninstall {
		if _, ok := s.primary.o.Find(name); !ok {
			if !s.stored(name) && !slices.Contains(s.primary.o.Dropped, name) {
				return nil, &NotInstalledError{Name: name, Database: s.primary.o.Database}
			}
			remove = slices.DeleteFunc(remove, func(r string) bool { return r == name }) // its files may have to go
			continue
		}
		others := slices.DeleteFunc(resolve.Dependents(problem, name), func(d string) bool { return slices.Contains(remove, d) })
		if len(others) > 0 && !req.Cascade {
			return nil, &DependentsError{Name: name, Dependents: others}
		}
		remove = append(remove, others...)
	}
	return remove, nil
}

// resolve asks the resolver; a second time if what is elsewhere on the server
// turns out to matter.
func (s *Session) resolve(ctx context.Context, k *known, req Request, remove []string) ([]resolve.Choice, error) {
	var requests []resolve.Request
	for _, w := range req.Install {
		requests = append(requests, resolve.Request{Relation: depend.Relation{Name: w.Name, Range: w.Range}})
	}
	for _, w := range req.Upgrade {
		if _, ok := s.primary.o.Find(w.Name); !ok {
			return nil, &NotInstalledError{Name: w.Name, Database: s.primary.o.Database}
		}
		requests = append(requests, resolve.Request{Relation: depend.Relation{Name: w.Name, Range: w.Range}, Newest: true})
	}
	if err := k.impossible(requests); err != nil {
		return nil, err
	}
	facts := s.nodeFacts()
	for second := false; ; second = true {
		problem, err := k.problem(requests, remove, s.held(req), facts)
		if err != nil {
			return nil, err
		}
		choices, err := resolve.Resolve(ctx, problem)
		if second || !k.mentions(depend.Server) {
			return choices, k.explain(err)
		}
		others, err := s.serverFacts(ctx)
		if err != nil {
			return nil, err
		}
		facts = append(facts, others...)
	}
}

// held are those that are to stay at their version: what is not there yet has
// none.
func (s *Session) held(req Request) map[string]string {
	held := map[string]string{}
	for name, why := range req.Held {
		if _, ok := s.primary.o.Find(name); ok {
			held[name] = why
		}
	}
	return held
}

// impossible refuses at once what is known and cannot be installed here in any
// version: the resolver would say that nobody knows it.
func (k *known) impossible(requests []resolve.Request) error {
	for _, r := range requests {
		n, err := k.about(r.Relation.Name)
		if err != nil {
			return err
		}
		x := k.newestExcluded(r.Relation.Name)
		if x == nil || len(n.candidates) > 0 {
			continue
		}
		var mode *ModeError
		if slices.Contains(k.shadowed, r.Relation.Name) && errors.As(x.Why, &mode) {
			mode.Reasons = append(mode.Reasons, "there is a package of that name, and it is not used: it is unsigned, and the server has files of an extension of that name")
		}
		return x.Why
	}
	return nil
}

// newestExcluded is the newest version of a name that cannot be installed here.
func (k *known) newestExcluded(name string) *Excluded {
	for _, x := range slices.Backward(k.excluded) { // lowest first, by name
		if x.Name == name {
			return &x
		}
	}
	return nil
}

// explain adds to a failed resolution what could not be chosen at all here.
func (k *known) explain(err error) error {
	var unsolvable *resolve.Unsolvable
	if !errors.As(err, &unsolvable) {
		return err
	}
	e := &UnsolvableError{Unsolvable: unsolvable}
	text := unsolvable.Explain()
	for _, name := range names(k.names) {
		if x := k.newestExcluded(name); x != nil && strings.Contains(text, name) {
			e.Excluded = append(e.Excluded, *x)
		}
	}
	return e
}

// mentions says whether a candidate that was looked at has a relation of that
// scope.
func (k *known) mentions(scope depend.Scope) bool {
	for _, n := range k.names {
		for _, c := range n.candidates {
			for _, alternatives := range slices.Concat(c.Depends, c.Conflicts) {
				if slices.ContainsFunc(alternatives, func(r depend.Relation) bool { return r.Scope == scope }) {
					return true
				}
			}
		}
	}
	return false
}

// nodeFacts are what is known of the server and the nodes without asking more.
func (s *Session) nodeFacts() []resolve.Fact {
	var facts []resolve.Fact
	for _, n := range s.nodes() {
		for _, lib := range n.o.Preloaded {
			facts = append(facts, resolve.Fact{Scope: depend.Server, Name: lib, Where: "shared_preload_libraries of " + n.o.Node})
		}
		for _, name := range names(n.o.Available) {
			for _, a := range n.o.Available[name] {
				facts = append(facts, resolve.Fact{Scope: depend.Node, Name: name, Version: a.Version, Where: "files at " + n.o.Node})
			}
		}
	}
	return facts
}

// serverFacts asks the other databases of the primary what is in them.
func (s *Session) serverFacts(ctx context.Context) ([]resolve.Fact, error) {
	rows, err := s.primary.conn.Query(ctx, `
SELECT datname::text FROM pg_database WHERE datallowconn AND NOT datistemplate AND datname <> current_database() ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	databases, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return nil, err
	}
	var facts []resolve.Fact
	for _, database := range databases {
		installed, err := s.installedIn(ctx, database)
		if err != nil {
			return nil, fmt.Errorf("a package has to do with what is in other databases of the server, and database %q cannot be asked: %w", database, err)
		}
		for _, in := range installed {
			facts = append(facts, resolve.Fact{Scope: depend.Server, Name: in.Name, Version: in.Version, Where: fmt.Sprintf("database %q", database)})
		}
	}
	return facts, nil
}

func (s *Session) installedIn(ctx context.Context, database string) (_ []Installed, err error) {
	config := s.primary.config.Copy()
	config.Database = database
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, hangUp(ctx, conn)) }()
	if _, err := conn.Exec(ctx, sessionSQL, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, err
	}
	var o Observed
	err = o.askInstalled(ctx, conn)
	return o.Installed, err
}

// fetch brings the package of a choice.
func (s *Session) fetch(ctx context.Context, sel *selection, c resolve.Choice, req Request) error {
	r := sel.offers[c.Name].release
	if r == nil {
		return s.checkLocked(req, c.Name, "")
	}
	pkg, err := r.shelf.Fetch(ctx, c.Name, r.Version)
	if err != nil {
		return fmt.Errorf("%s: %w", r.shelf.Name(), err)
	}
	digest, err := digestOf(pkg)
	if err != nil {
		return err
	}
	if r.SHA256 != "" && digest != r.SHA256 {
		return fmt.Errorf("%s: the package %s %s has sha256 %s, and the index says %s", r.shelf.Name(), c.Name, c.Version, digest, r.SHA256)
	}
	sel.packages[c.Name], sel.digests[c.Name] = pkg, digest
	return s.checkLocked(req, c.Name, digest)
}

// checkLocked compares a package with the one that a lock file names.
func (s *Session) checkLocked(req Request, name, digest string) error {
	for _, w := range slices.Concat(req.Install, req.Upgrade) {
		if w.Name == name && w.SHA256 != "" && w.SHA256 != digest {
			return fmt.Errorf("the package of %s is not the one that the lock file names: its sha256 is %s, want %s", name, cmp.Or(digest, "none, the server's own files would be used"), w.SHA256)
		}
	}
	return nil
}

// settingInfos asks for the parameters that the packages set.
func (s *Session) settingInfos(ctx context.Context, packages map[string]*pack.Package) (map[string]settingInfo, error) {
	var wanted []string
	for _, pkg := range packages {
		for _, set := range pkg.Conf {
			wanted = append(wanted, strings.ToLower(set.Name))
		}
	}
	if len(wanted) == 0 {
		return nil, nil
	}
	maySet := "false"
	if s.primary.o.Major() >= 15 {
		maySet = "has_parameter_privilege(w.name, 'SET')" // also of a parameter that nobody has defined
	}
	rows, err := s.primary.conn.Query(ctx, `
SELECT w.name, coalesce(s.context, ''), `+maySet+` FROM unnest($1::text[]) AS w (name) LEFT JOIN pg_settings s ON lower(s.name) = w.name`, wanted)
	if err != nil {
		return nil, err
	}
	infos := map[string]settingInfo{}
	var name string
	var info settingInfo
	_, err = pgx.ForEachRow(rows, []any{&name, &info.Context, &info.MaySet}, func() error { infos[name] = info; return nil })
	return infos, err
}

// libraryLists are the lists of libraries of the whole server, as the next start
// will have them: somebody may have changed them since the last one.
func (s *Session) libraryLists(ctx context.Context) (map[string][]string, error) {
	if !s.primary.o.Role.Superuser {
		return map[string][]string{sharedPreload: s.primary.o.Preloaded}, nil
	}
	rows, err := s.primary.conn.Query(ctx, `
SELECT DISTINCT ON (name) name, setting FROM pg_file_settings
WHERE name IN ('shared_preload_libraries', 'session_preload_libraries', 'local_preload_libraries') ORDER BY name, seqno DESC`)
	if err != nil {
		return nil, err
	}
	lists := map[string][]string{}
	var name, text string
	_, err = pgx.ForEachRow(rows, []any{&name, &text}, func() (err error) {
		lists[name], err = splitLibraries(text)
		return err
	})
	if _, ok := lists[sharedPreload]; err == nil && !ok {
		lists[sharedPreload], err = s.primary.commandLine(ctx)
	}
	return lists, err
}

// planNodes adds the files that nodes need, and refuses a pool whose nodes differ.
func (s *Session) planNodes(ctx context.Context, p *Plan, req Request) error {
	files, err := s.files(p, false)
	if err != nil {
		return err
	}
	for _, f := range files {
		if n := s.node(f.Node); !n.o.Role.Superuser || n.o.DataDir == "" {
			return fmt.Errorf("%s needs the file %s at %s, and role %q may not bring it there", f.Extension, f.Path, f.Node, n.o.Role.Name)
		}
	}
	if err := s.notShadowed(ctx, files); err != nil {
		return err
	}
	p.Files, p.Pool = files, s.poolFingerprint()
	if err := s.redo(ctx, p, req); err != nil {
		return err
	}
	if err := s.storeFiles(ctx, p, req); err != nil {
		return err
	}
	if len(s.standbys) > 0 {
		if err := s.planSkew(ctx, p, req); err != nil {
			return err
		}
	}
	if err := s.onlyNew(ctx, p); err != nil {
		return err
	}
	var u *users
	ask := func() (_ *users, err error) {
		if u == nil {
			u, err = s.users(ctx)
		}
		return u, err
	}
	if err := s.replaced(ctx, p, ask); err != nil {
		return err
	}
	if err := s.planRemovals(ctx, p, ask); err != nil {
		return err
	}
	var notes []string
	if p.Paths, notes, err = s.leading(ctx, p); err != nil {
		return err
	}
	p.Notes = append(p.Notes, notes...)
	if err := s.stays(ctx, p); err != nil {
		return err
	}
	return s.speaksOfPreload(ctx, p)
}

// planSkew plans the files that standbys lack.
func (s *Session) planSkew(ctx context.Context, p *Plan, req Request) error {
	bring, problems, notes, err := s.skew(ctx, p)
	if err != nil {
		return err
	}
	p.Files, p.Notes = append(p.Files, bring...), append(p.Notes, notes...)
	if len(problems) > 0 {
		if !req.AllowSkew {
			return &SkewError{Problems: problems}
		}
		for _, problem := range problems {
			p.Notes = append(p.Notes, problem.String())
		}
	}
	return nil
}

// stays says what an uninstallation leaves behind: settings of the whole server.
func (s *Session) stays(ctx context.Context, p *Plan) error {
	o := s.primary.o
	for i := range p.Steps {
		step := &p.Steps[i]
		if step.Action != Uninstall {
			continue
		}
		var libs []string
		if e := step.in.Entry; e != nil && (o.Ledger.Trusted || o.Ledger.Owner == o.Role.Name) {
			for _, set := range e.Settings {
				if set.Scope != pack.ScopeSystem {
					continue
				}
				if isLibraryList(set.Name) {
					if strings.EqualFold(set.Name, sharedPreload) {
						more, err := splitLibraries(set.Value)
						if err != nil {
							return fmt.Errorf("%s: %s: %w", step.Name, set.Name, err)
						}
						libs = mergeList(libs, more)
					}
					continue
				}
				if o.Role.Superuser {
					_, ok, err := s.primary.autoSetting(ctx, set.Name)
					if err != nil {
						return err
					}
					if !ok {
						continue
					}
				}
				p.Notes = append(p.Notes, fmt.Sprintf("%s, which foo.conf of %s has set for the whole server, stays; on every node: ALTER SYSTEM RESET %s", set.Name, step.Name, quoteSetting(set.Name)))
			}
			// How a module says what must be loaded for it.
			if c, err := pack.ParseControl("control", e.Control); err == nil && c.Preload == "shared" {
				libs = mergeList(libs, []string{step.Name})
			}
		}
		for _, n := range s.nodes() {
			if !n.o.Role.Superuser {
				continue
			}
			own := slices.Clone(libs)
			if m := n.o.Store.find(step.Name); m != nil {
				for _, f := range m.Files {
					if strings.HasPrefix(f.Path, storeLibraries+"/") {
						own = append(own, bareLibrary(f.Path))
					}
				}
			}
			if step.Mode != Module {
				server, _, err := n.serverLibraries(ctx, step.Name)
				if err != nil {
					return fmt.Errorf("%s: could not find out which libraries %s needs: %w", n.o.Node, step.Name, err)
				}
				own = append(own, server...)
			}
			next, err := n.nextPreload(ctx)
			if err != nil {
				return err
			}
			without := slices.DeleteFunc(slices.Clone(next), func(lib string) bool {
				return slices.ContainsFunc(own, func(o string) bool { return bareLibrary(o) == bareLibrary(lib) })
			})
			if len(without) == len(next) {
				continue
			}
			c := SystemChange{Name: sharedPreload, Values: without, List: true}
			sql := c.SQL()
			if len(without) == 0 {
				sql = "ALTER SYSTEM RESET " + sharedPreload
			}
			p.Notes = append(p.Notes, fmt.Sprintf("the library of %s stays in %s of %s, until somebody says there: %s", step.Name, sharedPreload, n.o.Node, sql))
		}
	}
	return nil
}

// speaksOfPreload says of new extensions that their libraries may want to be loaded
// when the server starts, and are not.
func (s *Session) speaksOfPreload(ctx context.Context, p *Plan) error {
	coming := slices.Clone(p.Preload)
	for _, c := range p.System {
		if strings.EqualFold(c.Name, sharedPreload) {
			coming = append(coming, c.Values...)
		}
	}
	for i := range p.Steps {
		step := &p.Steps[i]
		if step.Action != Install || step.Mode == Module {
			continue
		}
		for _, n := range s.nodes() {
			if !n.o.Role.Superuser || !n.o.PreloadKnown {
				continue
			}
			speak, err := n.speaking(ctx, step)
			if err != nil {
				return fmt.Errorf("%s: could not look into the libraries of %s: %w", n.o.Node, step.Name, err)
			}
			for _, lib := range speak {
				if slices.ContainsFunc(slices.Concat(coming, n.o.Preloaded), func(l string) bool { return bareLibrary(l) == lib }) {
					continue
				}
				p.Notes = append(p.Notes, fmt.Sprintf("the library %s of %s speaks of %s, and is not in it at %s: until it is, and the server is restarted, some of %s may not work",
					lib, step.Name, sharedPreload, n.o.Node, step.Name))
			}
		}
	}
	return nil
}

// speaking lists the libraries of a step that have the name of the parameter in
// them: in a message, most probably, that they must be in it.
func (n *node) speaking(ctx context.Context, step *Step) (list []string, err error) {
	if step.pkg != nil && step.Mode != Native {
		for _, f := range step.pkg.Files {
			if strings.HasPrefix(f.Path, "lib/") && bytes.Contains(f.Data, []byte(sharedPreload)) {
				list = append(list, bareLibrary(f.Path))
			}
		}
		return list, nil
	}
	libs, _, err := n.serverLibraries(ctx, step.Name)
	if err != nil || n.o.LibDir == "" {
		return nil, err
	}
	for _, lib := range libs {
		file, sum, err := n.library(ctx, lib)
		if err != nil || sum == "" {
			return nil, err
		}
		var speaks bool
		err = n.conn.QueryRow(ctx, "SELECT position(convert_to($2::text, 'UTF8') IN pg_read_binary_file($1)) > 0", file, sharedPreload).Scan(&speaks)
		if err != nil {
			return nil, err
		}
		if speaks {
			list = append(list, bareLibrary(lib))
		}
	}
	return list, nil
}

func (s *Session) node(name string) *node {
	for _, n := range s.nodes() {
		if n.o.Node == name {
			return n
		}
	}
	return nil
}

// digestOf is the sha256 of a package's archive; of a directory, of the archive
// that would be made of it.
func digestOf(pkg *pack.Package) (string, error) {
	if pkg.SHA256 != "" {
		return pkg.SHA256, nil
	}
	return pkg.WriteArchive(io.Discard)
}
