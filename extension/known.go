package extension

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"rideau/extension/depend"
	"rideau/extension/pack"
	"rideau/extension/registry"
	"rideau/extension/resolve"
)

// A release is what a shelf says about one release of a package.
type release struct {
	registry.Release
	shelf *registry.Registry
}

// signed says whether a key that the user trusts for this name has signed it.
func (r *release) signed() bool { return r.shelf.Signed() }

// called is what the database will call the release: versions are compared with
// what pg_extension says, which need not be the version of the release.
func (r *release) called() string { return cmp.Or(r.ExtVersion, r.Version) }

// libraries lists the libraries that it brings.
func (r *release) libraries() []string {
	var names []string
	for _, f := range r.Files {
		if lib, ok := strings.CutPrefix(f, "lib/"); ok {
			names = append(names, lib)
		}
	}
	return names
}

// sqlVersion is the same of a package.
func sqlVersion(c *pack.Control) string {
	return cmp.Or(c.ExtVersion, c.Version)
}

// postgresql is the name under which the server itself can be depended upon.
const postgresql = "postgresql"

// An Excluded is a version that exists and could not be chosen here.
type Excluded struct {
	Name, Version string
	Why           error
}

// known answers what can be chosen for one database: it is the resolver's source.
// It asks the server and the shelves about a name when the resolver first does.
type known struct {
	ctx     context.Context
	o       *Observed
	paths   func(ctx context.Context, name string) (*paths, error) // the server's update paths
	shelves []*registry.Registry
	mode    func(name string) Mode
	ranges  map[string]bool // names of which somebody has asked for versions

	enforced func(Rule) bool
	names    map[string]*named
	excluded []Excluded
	shadowed []string // unsigned packages whose name the server has files of
}

// named is what is known under one name.
type named struct {
	offers     map[string]offer // by version
	candidates []resolve.Candidate
	order      *depend.Order
	server     *paths
	modes      map[string]modeChoice
}

// paths are the update paths of the server's files.
type paths struct {
	reach map[[2]string]bool
	edges []depend.Edge
}

func (p *paths) leads(from, to string) bool { return p != nil && p.reach[[2]string{from, to}] }

// serverPaths asks for update paths. The server computes all pairs, which takes
// long for some (PostGIS), so it is asked only about names that matter.
func serverPaths(conn *pgx.Conn) func(ctx context.Context, name string) (*paths, error) {
	return func(ctx context.Context, name string) (*paths, error) {
		rows, err := conn.Query(ctx, "SELECT source, target, path FROM pg_extension_update_paths($1) WHERE path IS NOT NULL", name)
		if err != nil {
			return nil, err
		}
		p := &paths{reach: map[[2]string]bool{}}
		var source, target, path string
		_, err = pgx.ForEachRow(rows, []any{&source, &target, &path}, func() error {
			p.reach[[2]string{source, target}] = true
			if !strings.Contains(strings.TrimPrefix(path, source+"--"), "--") { // one script
				p.edges = append(p.edges, depend.Edge{From: source, To: target})
			}
			return nil
		})
		return p, err
	}
}

func newKnown(ctx context.Context, o *Observed, cfg Config, mode func(string) Mode, paths func(context.Context, string) (*paths, error)) *known {
	return &known{ctx: ctx, o: o, shelves: cfg.Shelves, enforced: cfg.enforced, mode: mode, paths: paths, names: map[string]*named{}}
}

// about gathers what is known under a name.
func (k *known) about(name string) (*named, error) {
	if n := k.names[name]; n != nil {
		return n, nil
	}
	n := &named{offers: map[string]offer{}, modes: map[string]modeChoice{}}
	at := func(version string) offer {
		of := n.offers[version]
		of.name, of.version = name, version
		return of
	}
	installed, isInstalled := k.o.Find(name)
	var edges []depend.Edge
	available := k.o.Available[name]
	for i := range available {
		of := at(available[i].Version)
		of.files = &available[i]
		n.offers[of.version] = of
	}
	if len(available) > 0 {
		var err error
		if n.server, err = k.paths(k.ctx, name); err != nil {
			return nil, fmt.Errorf("could not ask %s for the update paths of extension %q: %w", k.o.Node, name, err)
		}
		edges = append(edges, n.server.edges...)
	}
	for _, shelf := range k.shelves {
		releases, err := shelf.Versions(k.ctx, name)
		var none *registry.NotFound
		if errors.As(err, &none) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("%s: %w", shelf.Name(), err)
		}
		for i := range releases {
			r := &release{releases[i], shelf}
			if len(available) > 0 && !slices.Contains(k.o.Stored, name) && !r.signed() && k.enforced(Name) {
				// Whoever writes to a directory must not get what an extension of
				// that name has been trusted with.
				if !slices.Contains(k.shadowed, name) {
					k.shadowed = append(k.shadowed, name)
				}
				if m := k.mode(name); m != Module && m != Graft { // these say that they refuse it
					continue
				}
			}
			of := at(r.called())
			if was := of.release; was != nil && was.SHA256 != r.SHA256 && was.Version == r.Version {
				return nil, fmt.Errorf("%s %s is in two registries, %s and %s, and not the same; name one of them only", name, r.Version, was.shelf.Name(), shelf.Name())
			} else if was == nil || depend.Compare(was.Version, r.Version) < 0 {
				of.release = r
			}
			n.offers[of.version] = of
			edges = append(edges, r.Edges...)
		}
	}
	if isInstalled {
		for v, of := range n.offers {
			of.installed = installed
			n.offers[v] = of
		}
		of := at(installed.Version)
		of.installed = installed
		n.offers[of.version] = of
	}
	var versions []string
	for v := range n.offers {
		versions = append(versions, v)
	}
	n.order = depend.NewOrder(versions, edges)
	for _, v := range n.order.Sorted() {
		of, ok := n.offers[v]
		if !ok {
			continue // known as the end of an edge only
		}
		if isInstalled && v == installed.Version {
			n.candidates = append(n.candidates, k.installedCandidate(of))
			continue
		}
		if of.files == nil && of.release == nil {
			continue
		}
		reachable := isInstalled && n.server.leads(installed.Version, v)
		if d := defaultOf(available); of.release == nil && d != "" && n.order.Compare(v, d) > 0 && !k.ranges[name] {
			// A dump does not say the version, so a restore would bring the default.
			k.excluded = append(k.excluded, Excluded{name, v, fmt.Errorf("it is newer than %s, which is the default of the server's files: ask for it by its version", d)})
			continue
		}
		choice, err := chooseMode(k.o, of, k.mode(name), reachable, k.enforced)
		if err != nil {
			k.excluded = append(k.excluded, Excluded{name, v, err})
			continue
		}
		n.modes[v] = choice
		n.candidates = append(n.candidates, k.candidate(of, choice.Mode))
	}
	k.names[name] = n
	return n, nil
}

// defaultOf is the version that CREATE EXTENSION would make, "" if there is none.
func defaultOf(versions []Available) string {
	for _, a := range versions {
		if a.Default {
			return a.Version
		}
	}
	return ""
}

// candidate is an offer as the resolver sees it.
func (k *known) candidate(of offer, mode Mode) resolve.Candidate {
	c := resolve.Candidate{Version: of.version}
	if r := of.release; r != nil {
		c.From = r.shelf.Name()
		c.Depends = slices.Clone(r.Depends)
		if len(r.Postgres) > 0 {
			c.Depends = append(c.Depends, depend.Alternatives{{Name: postgresql, Range: r.Postgres}})
		}
		c.Conflicts = slices.Concat(r.Conflicts, r.Breaks)
		for _, p := range r.Provides {
			c.Provides = append(c.Provides, resolve.Provide{Name: p.Name, Version: p.Version})
		}
	}
	if of.files != nil && (mode == Native || of.release == nil) {
		c.From = "the server"
		c.Depends = requires(c.Depends, of.files.Requires)
	}
	return c
}

// installedCandidate is what is in the database. What its package said is
// remembered by the ledger; for others a shelf may know the release.
func (k *known) installedCandidate(of offer) resolve.Candidate {
	in := of.installed
	c := resolve.Candidate{Version: in.Version, Depends: in.Depends, Conflicts: in.Conflicts, From: "installed"}
	provides := in.Provides
	if in.Entry == nil && of.release != nil {
		c.Depends, provides = of.release.Depends, of.release.Provides
		c.Conflicts = slices.Concat(of.release.Conflicts, of.release.Breaks)
	}
	for _, p := range provides {
		c.Provides = append(c.Provides, resolve.Provide{Name: p.Name, Version: p.Version})
	}
	c.Depends = requires(slices.Clone(c.Depends), in.Requires)
	return c
}

// requires adds names that PostgreSQL knows without versions to a list that may
// know more about them.
func requires(list depend.List, names []string) depend.List {
	for _, name := range names {
		if !slices.ContainsFunc(list, func(alt depend.Alternatives) bool {
			return len(alt) == 1 && alt[0].Name == name && alt[0].Scope == depend.Database
		}) {
			list = append(list, depend.Alternatives{{Name: name}})
		}
	}
	return list
}

// Candidates is resolve.Source's.
func (k *known) Candidates(name string) ([]resolve.Candidate, error) {
	if name == postgresql {
		return []resolve.Candidate{{Version: k.o.VersionText, From: "the server"}}, nil
	}
	n, err := k.about(name)
	if err != nil {
		return nil, err
	}
	return n.candidates, nil
}

// Providers is resolve.Source's.
func (k *known) Providers(name string) []string {
	var names []string
	for _, shelf := range k.shelves {
		names = append(names, shelf.Providers(name)...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Near is resolve.Guesser's: names that a mistyped one may have meant.
func (k *known) Near(name string) []string {
	all := names(k.o.Available)
	for _, shelf := range k.shelves {
		all = append(all, shelf.Names()...)
	}
	slices.Sort(all)
	all = slices.Compact(all)
	near := depend.Near(name, all)
	for _, other := range all {
		if other != name && len(name) > 2 && strings.Contains(other, name) && !slices.Contains(near, other) {
			near = append(near, other)
		}
	}
	return near[:min(len(near), 5)]
}

// packageOf fetches the package of a name that has this sha256, nil if no shelf has
// it.
func (k *known) packageOf(ctx context.Context, name, digest string) (*pack.Package, error) {
	n, err := k.about(name)
	if err != nil || digest == "" {
		return nil, err
	}
	for _, v := range names(n.offers) {
		r := n.offers[v].release
		if r == nil || r.SHA256 != "" && r.SHA256 != digest {
			continue
		}
		pkg, err := r.shelf.Fetch(ctx, name, r.Version)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", r.shelf.Name(), err)
		}
		if has, err := digestOf(pkg); err != nil {
			return nil, err
		} else if has == digest {
			return pkg, nil
		}
	}
	return nil, nil
}

// reachable says whether what is installed can be upgraded to a version.
func (k *known) reachable(name, from, to string) bool {
	n := k.names[name]
	if n == nil {
		return false
	}
	if n.server.leads(from, to) {
		return true
	}
	r := n.offers[to].release
	return r != nil && leads(r.Edges, from, to)
}

// leads says whether a path of edges goes from one version to another.
func leads(edges []depend.Edge, from, to string) bool {
	seen := map[string]bool{from: true}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		if queue[0] == to {
			return true
		}
		for _, e := range edges {
			if e.From == queue[0] && !seen[e.To] {
				seen[e.To] = true
				queue = append(queue, e.To)
			}
		}
	}
	return false
}

func (k *known) order(name string) *depend.Order {
	if n := k.names[name]; n != nil {
		return n.order
	}
	return nil
}

// problem is what the resolver is asked. The installed ones are all in it: none
// may break because of what is asked for.
func (k *known) problem(requests []resolve.Request, remove []string, held map[string]string, facts []resolve.Fact) (*resolve.Problem, error) {
	p := &resolve.Problem{
		Source: k, Installed: map[string]resolve.Candidate{}, Held: map[string]string{postgresql: "it is the server itself"},
		Facts: facts, Reachable: k.reachable, Order: k.order, Requests: requests, Remove: remove,
	}
	for name, why := range held {
		p.Held[name] = why
	}
	p.Installed[postgresql] = resolve.Candidate{Version: k.o.VersionText, From: "the server"}
	for _, in := range k.o.Installed {
		n, err := k.about(in.Name)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(n.candidates, func(c resolve.Candidate) bool { return c.Version == in.Version })
		if at < 0 {
			return nil, errors.New("extension: an installed version is no candidate") // about makes it one
		}
		p.Installed[in.Name] = n.candidates[at]
	}
	return p, nil
}
