package resolve

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"rideau/extension/depend"
)

// A kind is what makes an incompatibility true.
type kind int

const (
	derived     kind = iota // it follows from two others
	depends                 // candidates depend on something
	conflicts               // candidates conflict with others
	meetsFact               // candidates conflict with a Fact
	stays                   // installed, and not to be removed
	held                    // nothing else than what is installed
	unreachable             // no update leads there
	requested               // asked for
	removed                 // to be removed
)

// A term says that an extension has one of the values.
type term struct {
	pkg    int
	values set
}

// An incompat is a set of terms that do not hold all at once. The terms are
// sorted by extension, each has one term, and none of them always holds.
type incompat struct {
	id    int // in the order they were made
	kind  kind
	terms []term

	causes [2]*incompat // of a derived one

	pkg      int                 // the extension that a fact is about
	versions set                 // its values that have the relation
	wanted   depend.Alternatives // depends, requested
	needs    []term              // what meets wanted, in the order of preference
	conflict depend.Relation     // conflicts, meetsFact
	other    int                 // conflicts: the extension it is with
	fact     *Fact               // meetsFact
	request  int                 // requested: the index of the request
}

// A pkg is an extension.
type pkg struct {
	name      string
	known     bool // somebody knows it
	cands     []Candidate
	values    int // how many: one more than candidates
	full      set
	installed int // the value that is installed, 0 if none
	order     *depend.Order

	// Relations of its candidates, each once with all candidates that have it.
	depends, conflicts []relations
	grouped            bool
	of                 [][]int // for each candidate, its depends; then its conflicts, as -1-i

	incompats []*incompat // that have a term of it

	// What is assigned at the moment.
	now     set
	trail   []int // of its assignments
	decided bool

	rank     int // decided in this order; see rankNewest and the others
	activity int // conflicts that it took part in
	place    int // among those waiting, from 1; 0 if it is not
	queued   bool
	opened   int // the first of solver.open that is about it, from 1; 0 if none is
}

// relations are the candidates that have the same relation.
type relations struct {
	alternatives depend.Alternatives
	versions     set
	added        bool // there are incompatibilities for it
}

// Ranks of extensions to decide.
const (
	rankNewest = iota
	rankInstalled
	rankRequested
	rankRest
)

// positive reports whether the extension has to be there.
func (p *pkg) positive() bool { return !p.now.has(0) }

// load returns the index of the extension name, and asks the Source about it the
// first time.
func (s *solver) load(name string) (int, error) {
	if i, ok := s.index[name]; ok {
		return i, nil
	}
	cands, err := s.problem.Source.Candidates(name)
	if err != nil {
		return 0, fmt.Errorf("could not look up extension %q: %w", name, err)
	}
	p := &pkg{name: name, known: cands != nil, order: s.problem.order(name), rank: rankRest}
	seen := map[string]bool{}
	was, installed := s.problem.Installed[name]
	if installed {
		p.known = true
		p.cands = append(p.cands, was)
		seen[was.Version] = true
	}
	for _, c := range cands {
		switch {
		case !seen[c.Version]:
			seen[c.Version] = true
			p.cands = append(p.cands, c)
		case installed && c.Version == was.Version && p.cands[0].From == "":
			p.cands[0].From = c.From
		}
	}
	slices.SortStableFunc(p.cands, func(a, b Candidate) int {
		if c := p.order.Compare(a.Version, b.Version); c != 0 {
			return c
		}
		return cmp.Compare(a.Version, b.Version)
	})
	p.values = len(p.cands) + 1
	p.full = fullSet(p.values)
	p.now = p.full
	i := len(s.pkgs)
	s.index[name] = i
	s.pkgs = append(s.pkgs, p)

	if installed {
		p.rank = rankInstalled
		lost := newSet(p.values)
		for v, c := range p.cands {
			if c.Version == was.Version {
				p.installed = v + 1
			} else if r := s.problem.Reachable; r != nil && !r(name, was.Version, c.Version) {
				lost.add(v + 1)
			}
		}
		s.addFact(&incompat{kind: unreachable, pkg: i, versions: lost}, term{i, lost})
	}
	if _, ok := s.problem.Held[name]; ok {
		is := oneOf(p.values, p.installed)
		s.addFact(&incompat{kind: held, pkg: i, versions: is}, term{i, p.full.minus(is)})
	}
	return i, nil
}

// group finds which candidates of p have the same relations.
func (p *pkg) group() {
	if p.grouped {
		return
	}
	p.grouped = true
	p.of = make([][]int, len(p.cands))
	var text strings.Builder
	seen := map[string]int{}
	collect := func(to *[]relations, prefix byte, v int, a depend.Alternatives) int {
		text.Reset()
		text.WriteByte(prefix)
		text.WriteString(a.String())
		i, ok := seen[text.String()]
		if !ok {
			i = len(*to)
			seen[text.String()] = i
			*to = append(*to, relations{alternatives: a, versions: newSet(p.values)})
		}
		(*to)[i].versions.add(v + 1)
		return i
	}
	for v, c := range p.cands {
		for _, a := range c.Depends {
			p.of[v] = append(p.of[v], collect(&p.depends, 'd', v, a))
		}
		for _, a := range c.Conflicts {
			for _, r := range a {
				p.of[v] = append(p.of[v], -1-collect(&p.conflicts, 'c', v, depend.Alternatives{r}))
			}
		}
	}
}

// expand adds what is known about the value v of an extension, and about others
// of its values that have the same relations. It reports whether that was new.
func (s *solver) expand(i, v int) (bool, error) {
	p := s.pkgs[i]
	p.group()
	news := false
	for _, n := range p.of[v-1] {
		if n >= 0 {
			r := &p.depends[n]
			if r.added {
				continue
			}
			r.added, news = true, true
			if s.metByFact(r.alternatives) {
				continue
			}
			needs, err := s.needs(r.alternatives)
			if err != nil {
				return false, err
			}
			s.addNeed(&incompat{kind: depends, pkg: i, versions: r.versions, wanted: r.alternatives, needs: needs}, term{i, r.versions})
			continue
		}
		r := &p.conflicts[-1-n]
		if r.added {
			continue
		}
		r.added, news = true, true
		relation := r.alternatives[0]
		if f := s.problem.fact(relation, true); f != nil {
			s.addFact(&incompat{kind: meetsFact, pkg: i, versions: r.versions, conflict: relation, fact: f}, term{i, r.versions})
			continue
		}
		with, err := s.meeting(relation)
		if err != nil {
			return false, err
		}
		for _, t := range with {
			if t.pkg != i { // nothing conflicts with itself
				s.addFact(&incompat{kind: conflicts, pkg: i, versions: r.versions, conflict: relation, other: t.pkg}, term{i, r.versions}, t)
			}
		}
	}
	return news, nil
}

func (s *solver) metByFact(a depend.Alternatives) bool {
	return slices.ContainsFunc(a, func(r depend.Relation) bool { return s.problem.fact(r, false) != nil })
}

// needs returns the terms of which one meets the alternatives, the preferred
// first.
func (s *solver) needs(a depend.Alternatives) ([]term, error) {
	if len(a) == 1 {
		return s.meeting(a[0])
	}
	var needs []term
	for _, r := range a {
		t, err := s.meeting(r)
		if err != nil {
			return nil, err
		}
		needs = append(needs, t...)
	}
	return needs, nil
}

// meeting returns the terms of extensions that are what r means: the one of that
// name, and those that provide it. None of them is empty.
func (s *solver) meeting(r depend.Relation) ([]term, error) {
	key := r.String()
	if terms, ok := s.meetings[key]; ok {
		return terms, nil
	}
	names := append([]string{r.Name}, s.problem.Source.Providers(r.Name)...)
	names = append(names, s.installedProviders[r.Name]...)
	terms := []term{}
	for n, name := range names {
		if slices.Contains(names[:n], name) {
			continue
		}
		i, err := s.load(name)
		if err != nil {
			return nil, err
		}
		p := s.pkgs[i]
		values := newSet(p.values)
		for v, c := range p.cands {
			if s.problem.meets(name, c, r) {
				values.add(v + 1)
			}
		}
		if !values.empty() {
			terms = append(terms, term{i, values})
		}
	}
	s.meetings[key] = terms
	return terms, nil
}

// addNeed adds that the terms do not hold without one of inc.needs.
func (s *solver) addNeed(inc *incompat, terms ...term) {
	for _, t := range inc.needs {
		terms = append(terms, term{t.pkg, s.pkgs[t.pkg].full.minus(t.values)})
	}
	if s.addFact(inc, terms...) && len(inc.needs) > 1 {
		s.open = append(s.open, inc)
		if p := s.pkgs[inc.pkg]; p.opened == 0 {
			p.opened = len(s.open)
		}
	}
}

// addFact adds inc with these terms, unless they never hold together.
func (s *solver) addFact(inc *incompat, terms ...term) bool {
	merged, possible := s.merge(terms, -1)
	if !possible {
		return false
	}
	inc.terms = merged
	s.add(inc)
	return true
}

func (s *solver) add(inc *incompat) {
	inc.id = s.made
	s.made++
	for _, t := range inc.terms {
		p := s.pkgs[t.pkg]
		p.incompats = append(p.incompats, inc)
	}
	s.fresh = append(s.fresh, inc)
	if len(inc.terms) == 0 && s.impossible == nil {
		s.impossible = inc
	}
}

// merge makes one term of all that are of the same extension: values that are in
// all of them, or, for the extension pivot, in any. Terms that always hold are
// left out. possible is false if one never holds.
func (s *solver) merge(terms []term, pivot int) (merged []term, possible bool) {
	slices.SortStableFunc(terms, func(a, b term) int { return cmp.Compare(a.pkg, b.pkg) })
	for i := 0; i < len(terms); {
		t := terms[i]
		for i++; i < len(terms) && terms[i].pkg == t.pkg; i++ {
			if t.pkg == pivot {
				t.values = t.values.or(terms[i].values)
			} else {
				t.values = t.values.and(terms[i].values)
			}
		}
		if t.values.empty() {
			return nil, false
		}
		if !s.pkgs[t.pkg].full.within(t.values) {
			merged = append(merged, t)
		}
	}
	return merged, true
}
