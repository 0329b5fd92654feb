// Package resolve decides which versions of which extensions a database shall
// have, so that all that is asked for is there, and nothing that is there lacks
// what it depends on or meets what it conflicts with. Where that cannot be, it
// says why, in sentences.
//
//	Source ──▶ candidates ─┐
//	Installed, Held ───────┼─▶ Resolve ─┬─▶ []Choice, dependencies first
//	Facts, Requests ───────┘            └─▶ *Unsolvable: Explain, Hint
//
// # How
//
// The algorithm is PubGrub. Each extension is a variable; its values are the
// versions that are known and one more, that it is not there. All that is known
// about them is kept as incompatibilities: terms, each a set of values of one
// extension, that do not hold all at once. "foo 1.0 depends on bar (>= 1.1)" is
//
//	{ foo in {1.0}, bar not in {1.1, 1.2} }
//
// and alternatives, and extensions that provide another, are more terms of the
// same kind, so that they need no invented extensions. When all terms but one
// hold, the last must not: that is propagation. When nothing follows any more,
// one extension gets a version, and its dependencies and conflicts are added.
// When all terms of an incompatibility hold, the two that led there are resolved
// to a new one, up to the decision that was wrong. The last such incompatibility
// has no terms at all; what it was made from is the explanation.
//
// # What is preferred
//
// First the newest versions of what was to be upgraded, then what is installed
// as it is, then the newest of what was asked for, then the newest of the rest;
// the first of alternatives, and what was installed before what was not. Each
// preference holds where the ones before it leave it the freedom.
//
// # Invariants
//
//   - Choices are found exactly when there are any. Each incompatibility in an
//     explanation is a fact of the problem, or follows from two others.
//   - The same problem gives the same choices and the same words.
//   - The Source is asked once for each name, and only for names that matter.
//   - Nothing recurses as deep as the graph is. Memory grows with what was
//     asked of the Source and with what was learned; past a limit Resolve gives
//     up with ErrTooHard, and it stops when its context does.
//
// The package does no I/O of its own and keeps nothing between calls.
package resolve

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"rideau/extension/depend"
)

// Postgres is the name under which the server itself is installed and held, so
// that extensions can depend on versions of it.
const Postgres = "postgresql"

// AskedFor is the reason in Choice.Because of what a request names.
const AskedFor = "asked for"

// ErrTooHard is returned when more had to be learned than memory should hold.
var ErrTooHard = errors.New("gave up: too many combinations of versions fail")

// A Provide is something that a version of an extension can stand for: another
// extension, "name[feature]", or a feature of its own.
type Provide struct {
	Name    string
	Version string // "" meets only relations that want no version
}

// A Candidate is a version of an extension that can be had.
type Candidate struct {
	Version   string
	Depends   depend.List
	Conflicts depend.List // nothing of it may be there
	Provides  []Provide
	From      string // where it is, for people: "the server", "registry X"
}

// A Source knows extensions.
type Source interface {
	// Candidates returns the versions of the extension, in any order; nil if
	// nobody knows the name. Of two with the same version the first counts.
	Candidates(name string) ([]Candidate, error)

	// Providers returns the names of other extensions of which a candidate may
	// provide name, the preferred first.
	Providers(name string) []string
}

// A Guesser is a Source that can say which known names look like one that is
// not known.
type Guesser interface {
	Near(name string) []string
}

// A Fact is something that is on the server or on the machine, not in this
// database.
type Fact struct {
	Scope   depend.Scope // what is on the server is on the machine, too
	Name    string
	Version string // "" if not known
	Where   string // for people: "database app", "shared_preload_libraries"
}

// A Request is an extension that is wanted.
type Request struct {
	Relation depend.Relation
	Newest   bool   // prefer its newest version to what is installed
	Reason   string // who wants it, for people; may be empty
}

// A Problem is all that there is to know.
type Problem struct {
	Source    Source
	Installed map[string]Candidate // what the database has
	Held      map[string]string    // what must stay as it is, or away; and why
	Facts     []Fact

	// Reachable reports whether the installed version from can be updated to
	// the version to. If nil, any can.
	Reachable func(name, from, to string) bool

	// Order returns the order of the versions of an extension. If nil, or if it
	// returns nil, they are in depend's.
	Order func(name string) *depend.Order

	Requests []Request
	Remove   []string // what shall go
}

// A Choice is what becomes of one extension.
type Choice struct {
	Name      string
	Version   string    // "" if it goes
	Was       string    // the version that was installed, "" if none
	Candidate Candidate // of Version
	Because   []string  // names of those that depend on it, and AskedFor
}

// Resolve returns what the database shall have, and what shall go. First comes
// what goes, dependents first; then what is there, dependencies first, and what
// stays as it is among it.
//
// If there is no way, the error is an [*Unsolvable]. If there is one, but some
// would have to be installed before each other, it is a [*CycleError].
func Resolve(ctx context.Context, p *Problem) ([]Choice, error) {
	once := *p
	once.Source = &memory{Source: p.Source, candidates: map[string][]Candidate{}, providers: map[string][]string{}}
	orders := map[string]*depend.Order{}
	once.Order = func(name string) *depend.Order {
		o, ok := orders[name]
		if !ok {
			o = p.order(name)
			orders[name] = o
		}
		return o
	}
	s, err := solve(ctx, &once, allEffort)
	var u *Unsolvable
	if errors.As(err, &u) {
		if u.hint, err = s.hint(u); err != nil {
			return nil, err
		}
		return nil, u
	}
	if err != nil {
		return nil, err
	}
	return s.choices()
}

// memory is a Source that asks another one no question twice.
type memory struct {
	Source
	candidates map[string][]Candidate
	providers  map[string][]string
}

func (m *memory) Candidates(name string) ([]Candidate, error) {
	list, ok := m.candidates[name]
	if !ok {
		var err error
		if list, err = m.Source.Candidates(name); err != nil {
			return nil, err
		}
		m.candidates[name] = list
	}
	return list, nil
}

func (m *memory) Providers(name string) []string {
	list, ok := m.providers[name]
	if !ok {
		list = m.Source.Providers(name)
		m.providers[name] = list
	}
	return list
}

func (m *memory) Near(name string) []string {
	if g, ok := m.Source.(Guesser); ok {
		return g.Near(name)
	}
	return nil
}

// A CycleError names extensions each of which needs the next to be there before
// it, and the last the first.
type CycleError struct{ Names []string }

func (e *CycleError) Error() string {
	return fmt.Sprintf("cannot order the installation: %s depend on each other", enumerate(e.Names, "and"))
}

// Dependents returns the names of the installed extensions that would lack
// something if the named one went, and of those that would lack something then,
// in an order in which they can go. It asks nothing of the Source.
func Dependents(p *Problem, name string) []string {
	gone := map[string]bool{name: true}
	names := slices.Sorted(maps.Keys(p.Installed))
	var found []string
	for again := true; again; {
		again = false
		for _, n := range names {
			if gone[n] {
				continue
			}
			for _, a := range p.Installed[n].Depends {
				if p.met(a, names, nil) && !p.met(a, names, gone) {
					gone[n], again = true, true
					found = append(found, n)
					break
				}
			}
		}
	}
	return p.removalOrder(found)
}

// met reports whether what is installed, without what is gone, or a fact, meets
// one of the alternatives.
func (p *Problem) met(a depend.Alternatives, names []string, gone map[string]bool) bool {
	for _, r := range a {
		if p.fact(r, false) != nil {
			return true
		}
		for _, n := range names {
			if !gone[n] && p.meets(n, p.Installed[n], r) {
				return true
			}
		}
	}
	return false
}

// meets reports whether a candidate of the extension name is what r means: by
// its own name, or because it provides it.
func (p *Problem) meets(name string, c Candidate, r depend.Relation) bool {
	feature := ""
	if r.Feature != "" {
		feature = r.Name + "[" + r.Feature + "]"
	}
	ok := name == r.Name && r.Range.Allows(c.Version, p.order(name))
	hasFeature := feature == ""
	for _, pr := range c.Provides {
		switch {
		case pr.Name == r.Name && name != r.Name:
			ok = ok || len(r.Range) == 0 || pr.Version != "" && r.Range.Allows(pr.Version, p.order(r.Name))
		case feature != "" && (pr.Name == feature || name == r.Name && pr.Name == r.Feature):
			hasFeature = true
		}
	}
	return ok && hasFeature
}

// fact returns a fact that is what r means, or nil. A version that is not known
// might be the one that a conflict means, and is not one to depend on.
func (p *Problem) fact(r depend.Relation, conflict bool) *Fact {
	for i := range p.Facts {
		f := &p.Facts[i]
		switch {
		case r.Scope == depend.Database || f.Name != r.Name:
			continue
		case r.Scope == depend.Server && f.Scope != depend.Server:
			continue
		case r.Feature != "" && !conflict:
			continue // facts know no features
		case len(r.Range) > 0 && f.Version == "" && !conflict:
			continue
		case len(r.Range) > 0 && f.Version != "" && !r.Range.Allows(f.Version, p.order(r.Name)):
			continue
		}
		return f
	}
	return nil
}

func (p *Problem) order(name string) *depend.Order {
	if p.Order == nil {
		return nil
	}
	return p.Order(name)
}
