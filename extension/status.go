package extension

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"rideau/extension/catalog"
	"rideau/extension/depend"
	"rideau/extension/ledger"
	"rideau/extension/resolve"
)

// Status is what is installed in a database, and what could be.
type Status struct {
	Node       string            `json:"node"`
	Database   string            `json:"database"`
	Version    string            `json:"postgresql"`
	Role       string            `json:"role"`
	Extensions []ExtensionStatus `json:"extensions"`
}

// ExtensionStatus is one that is installed.
type ExtensionStatus struct {
	Installed
	// Newest is the newest version that it can be upgraded to here; empty if it
	// is the newest.
	Newest string `json:"newest,omitempty"`
	// Objects, Missing and Modified are of modules: how many are recorded, which
	// are gone, and which have another definition than was recorded. Indexes,
	// triggers, rules, policies and statistics of tables are not recorded.
	Objects  int      `json:"objects,omitempty"`
	Missing  []string `json:"missing,omitempty"`
	Modified []string `json:"modified,omitempty"`
	// Recorded is the major version that the definitions are of, if that is not
	// the server's: they cannot be compared then, because each version writes them
	// in its own way. -1: it was not recorded.
	Recorded int `json:"recorded,omitempty"`
}

// Status asks for what is installed.
func (s *Session) Status(ctx context.Context) (*Status, error) {
	if err := s.refresh(ctx); err != nil {
		return nil, err
	}
	return s.status(ctx)
}

func (s *Session) status(ctx context.Context) (*Status, error) {
	o := s.primary.o
	st := &Status{Node: o.Node, Database: o.Database, Version: o.VersionText, Role: o.Role.Name, Extensions: []ExtensionStatus{}}
	k := s.known(ctx, Request{})
	for _, in := range o.Installed {
		e := ExtensionStatus{Installed: in}
		n, err := k.about(in.Name)
		if err != nil {
			return nil, err
		}
		sorted := n.order.Sorted()
		for _, v := range slices.Backward(sorted) {
			if n.order.Compare(v, in.Version) <= 0 {
				break
			}
			if _, ok := n.modes[v]; ok && k.reachable(in.Name, in.Version, v) {
				e.Newest = v
				break
			}
		}
		if in.Mode == Module {
			if err := s.drift(ctx, &e); err != nil {
				return nil, err
			}
		}
		st.Extensions = append(st.Extensions, e)
	}
	return st, nil
}

// drift compares a module's objects with what was recorded. The indexes, triggers,
// rules, policies and statistics of its tables are not.
func (s *Session) drift(ctx context.Context, e *ExtensionStatus) error {
	recorded, err := ledger.Objects(ctx, s.primary.conn, e.Name)
	if err != nil {
		return err
	}
	found, err := catalog.Lookup(ctx, s.primary.conn, recorded)
	if err != nil {
		return err
	}
	e.Objects = len(recorded)
	if e.Entry != nil && e.Entry.Major != s.primary.o.Major() {
		e.Recorded = cmp.Or(e.Entry.Major, -1)
	}
	for i, o := range found {
		switch {
		case o.OID == 0:
			e.Missing = append(e.Missing, recorded[i].String())
		case e.Recorded == 0 && recorded[i].MD5 != "" && o.MD5 != recorded[i].MD5:
			e.Modified = append(e.Modified, o.String())
		}
	}
	return nil
}

// Why is what one extension has to do with others.
type Why struct {
	Name      string   `json:"name"`
	Installed string   `json:"installed,omitempty"` // version
	Mode      Mode     `json:"mode,omitempty"`
	Schema    string   `json:"schema,omitempty"`
	Depends   string   `json:"depends,omitempty"`
	Conflicts string   `json:"conflicts,omitempty"`
	NeededBy  []string `json:"needed_by,omitempty"` // installed ones that would break without it
	// Offers are the versions that could be chosen here, with where they come
	// from and how they would be installed; Excluded those that could not.
	Offers   []string `json:"offers,omitempty"`
	Excluded []string `json:"excluded,omitempty"`
}

// Why says why an extension is there, and what is known of it.
func (s *Session) Why(ctx context.Context, name string) (*Why, error) {
	k := s.known(ctx, Request{})
	n, err := k.about(name)
	if err != nil {
		return nil, err
	}
	if len(n.offers) == 0 {
		return nil, fmt.Errorf("nobody knows an extension %q: it is not in database %q, the server has no files of it, and no registry a package", name, s.primary.o.Database)
	}
	w := &Why{Name: name}
	in, installed := s.primary.o.Find(name)
	if installed {
		w.Installed, w.Mode, w.Schema = in.Version, in.Mode, in.Schema
		problem, err := k.problem(nil, nil, nil, nil)
		if err != nil {
			return nil, err
		}
		c := problem.Installed[name]
		w.Depends, w.Conflicts = c.Depends.String(), c.Conflicts.String()
		w.NeededBy = resolve.Dependents(problem, name)
	}
	for _, c := range slices.Backward(n.candidates) {
		if installed && c.Version == in.Version {
			continue
		}
		text := c.Version + " from " + c.From
		if choice, ok := n.modes[c.Version]; ok {
			text += fmt.Sprintf(", mode %s: %s", choice.Mode, choice.Why)
		}
		if len(c.Depends) > 0 {
			text += "; depends on " + c.Depends.String()
		}
		if len(c.Conflicts) > 0 {
			text += "; conflicts with " + c.Conflicts.String()
		}
		w.Offers = append(w.Offers, text)
	}
	for _, x := range k.excluded {
		if x.Name == name {
			w.Excluded = append(w.Excluded, fmt.Sprintf("%s: %v", x.Version, x.Why))
		}
	}
	return w, nil
}

// broken says which relations among the installed ones do not hold.
func broken(p *resolve.Problem) []string {
	var list []string
	installed := func(r depend.Relation) bool {
		c, ok := p.Installed[r.Name]
		return ok && r.Range.Allows(c.Version, p.Order(r.Name))
	}
	provided := func(r depend.Relation) bool {
		for _, c := range p.Installed {
			for _, pr := range c.Provides {
				if pr.Name == r.Name && (len(r.Range) == 0 || pr.Version != "" && r.Range.Allows(pr.Version, nil)) {
					return true
				}
			}
		}
		return false
	}
	for _, name := range names(p.Installed) {
		c := p.Installed[name]
		for _, alternatives := range c.Depends {
			if !slices.ContainsFunc(alternatives, func(r depend.Relation) bool {
				return r.Scope != depend.Database || installed(r) || provided(r)
			}) {
				list = append(list, fmt.Sprintf("%s %s depends on %s, which does not hold", name, c.Version, alternatives))
			}
		}
		for _, alternatives := range c.Conflicts {
			for _, r := range alternatives {
				if r.Scope == depend.Database && r.Name != name && installed(r) {
					list = append(list, fmt.Sprintf("%s %s conflicts with %s, and %s %s is installed", name, c.Version, r, r.Name, p.Installed[r.Name].Version))
				}
			}
		}
	}
	return list
}

// Listed is one extension that can be had.
type Listed struct {
	Name      string `json:"name"`
	Installed string `json:"installed,omitempty"`
	Server    string `json:"server,omitempty"`  // newest version of the server's files
	Package   string `json:"package,omitempty"` // newest package on a shelf
	Shelf     string `json:"shelf,omitempty"`
	Comment   string `json:"comment,omitempty"`
}

// List lists what is installed and what the server has files of.
func (s *Session) List() []Listed {
	o := s.primary.o
	byName := map[string]*Listed{}
	for name, versions := range o.Available {
		l := &Listed{Name: name}
		for _, a := range versions {
			if a.Default {
				l.Server, l.Comment = a.Version, a.Comment
			}
			if l.Comment == "" {
				l.Comment = a.Comment
			}
		}
		byName[name] = l
	}
	for _, in := range o.Installed {
		if byName[in.Name] == nil {
			byName[in.Name] = &Listed{Name: in.Name}
		}
		byName[in.Name].Installed = in.Version
	}
	var list []Listed
	for _, name := range names(byName) {
		list = append(list, *byName[name])
	}
	return list
}

// quoteIfNeeded quotes a name as the server would write it in a type.
func quoteIfNeeded(name string) string {
	if name != "" && strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == "" && (name[0] < '0' || name[0] > '9') {
		return name
	}
	return quoteIdent(name)
}
