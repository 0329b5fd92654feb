package resolve

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rideau/extension/depend"
)

// universe are the names of the random problems. Nobody knows "none", and
// "virtual" is only provided.
var universe = []string{"a", "b", "c", "d", "e"}

var anyRelation = rapid.Custom(func(t *rapid.T) depend.Relation {
	r := depend.Relation{Name: rapid.SampledFrom(append([]string{"virtual", "none", Postgres}, append(universe, universe...)...)).Draw(t, "name")}
	if n := rapid.IntRange(0, 3).Draw(t, "range"); n > 0 {
		op := rapid.SampledFrom([]depend.Op{"<", "<=", "=", ">=", ">", "!=", "~>"}).Draw(t, "op")
		r.Range = depend.Range{{Op: op, Version: fmt.Sprint(n)}}
	}
	switch rapid.IntRange(0, 9).Draw(t, "special") {
	case 0:
		r.Scope = rapid.SampledFrom([]depend.Scope{depend.Server, depend.Node}).Draw(t, "scope")
	case 1:
		r.Feature = "feature"
	}
	return r
})

func lists(longest int) *rapid.Generator[depend.List] {
	return rapid.Custom(func(t *rapid.T) depend.List {
		var l depend.List
		for range rapid.IntRange(0, longest).Draw(t, "length") {
			a := rapid.SliceOfN(anyRelation, 1, 1+rapid.IntRange(0, 3).Draw(t, "more")/2).Draw(t, "alternatives")
			l = append(l, a)
		}
		return l
	})
}

var problems = rapid.Custom(func(t *rapid.T) *Problem {
	source := newShelf()
	p := &Problem{Source: source, Installed: map[string]Candidate{}, Held: map[string]string{}}
	make := func(version string) Candidate {
		c := Candidate{Version: version, Depends: lists(2).Draw(t, "depends"), Conflicts: lists(1).Draw(t, "conflicts")}
		switch rapid.IntRange(0, 11).Draw(t, "provides") {
		case 0:
			c.Provides = []Provide{{Name: "virtual"}}
		case 1:
			c.Provides = []Provide{{Name: "virtual", Version: fmt.Sprint(rapid.IntRange(1, 3).Draw(t, "of"))}}
		case 2:
			c.Provides = []Provide{{Name: "feature"}}
		case 3:
			c.Provides = []Provide{{Name: rapid.SampledFrom(universe).Draw(t, "stands for"), Version: "2"}}
		}
		return c
	}
	for _, name := range universe {
		for v := range rapid.IntRange(0, 3).Draw(t, "versions") {
			source.add(name, make(fmt.Sprint(v+1)))
		}
		if rapid.IntRange(0, 3).Draw(t, "installed") == 0 {
			c := make(fmt.Sprint(rapid.IntRange(1, 3).Draw(t, "version")))
			p.Installed[name] = c
			if rapid.IntRange(0, 5).Draw(t, "remove") == 0 {
				p.Remove = append(p.Remove, name)
			}
		}
		if rapid.IntRange(0, 7).Draw(t, "held") == 0 {
			p.Held[name] = "why not"
		}
		if rapid.IntRange(0, 2).Draw(t, "request") == 0 {
			r := Request{Relation: depend.Relation{Name: name}, Newest: rapid.Bool().Draw(t, "newest")}
			if rapid.IntRange(0, 3).Draw(t, "of a range") == 0 {
				r.Relation = anyRelation.Draw(t, "relation")
			}
			p.Requests = append(p.Requests, r)
		}
		if rapid.IntRange(0, 7).Draw(t, "fact") == 0 {
			p.Facts = append(p.Facts, Fact{
				Scope:   rapid.SampledFrom([]depend.Scope{depend.Server, depend.Node}).Draw(t, "scope"),
				Name:    name,
				Version: rapid.SampledFrom([]string{"", "1", "2"}).Draw(t, "fact version"),
				Where:   "elsewhere",
			})
		}
	}
	p.Installed[Postgres] = Candidate{Version: "2"}
	p.Held[Postgres] = "the server"
	lost := rapid.SliceOfN(rapid.SampledFrom([]string{"a13", "a12", "b13", "b23", "b21", "c31", "d12", "e12"}), 0, 4).Draw(t, "lost")
	p.Reachable = func(name, from, to string) bool { return !slices.Contains(lost, name+from+to) }
	return p
})

// tangles are problems in which all depends on one of several, and the more
// conflicts there are.
var tangles = rapid.Custom(func(t *rapid.T) *Problem {
	source := newShelf()
	p := &Problem{Source: source, Installed: map[string]Candidate{Postgres: {Version: "2"}}, Held: map[string]string{}}
	one := rapid.Custom(func(t *rapid.T) depend.Relation {
		r := depend.Relation{Name: rapid.SampledFrom(universe).Draw(t, "name")}
		if v := rapid.IntRange(0, 2).Draw(t, "version"); v > 0 {
			r.Range = depend.Range{{Op: depend.Equal, Version: fmt.Sprint(v)}}
		}
		return r
	})
	for _, name := range universe {
		for v := range 2 {
			c := Candidate{Version: fmt.Sprint(v + 1)}
			for range rapid.IntRange(0, 3).Draw(t, "depends") {
				c.Depends = append(c.Depends, rapid.SliceOfN(one, 2, 3).Draw(t, "alternatives"))
			}
			for range rapid.IntRange(0, 2).Draw(t, "conflicts") {
				c.Conflicts = append(c.Conflicts, depend.Alternatives{one.Draw(t, "conflict")})
			}
			source.add(name, c)
		}
	}
	for range rapid.IntRange(1, 2).Draw(t, "requests") {
		p.Requests = append(p.Requests, Request{Relation: depend.Relation{Name: rapid.SampledFrom(universe).Draw(t, "request")}})
	}
	p.Reachable = func(string, string, string) bool { return true }
	return p
})

// A possible is what an installation could be: a candidate for each name.
type possible map[string]Candidate

// possibilities are all of them, valid or not.
func possibilities(p *Problem) []possible {
	all := []possible{{}}
	names := append(slices.Clone(universe), Postgres)
	for _, name := range names {
		var cands []Candidate
		if was, ok := p.Installed[name]; ok {
			cands = append(cands, was)
		}
		list, _ := p.Source.Candidates(name)
		for _, c := range list {
			if !slices.ContainsFunc(cands, func(d Candidate) bool { return d.Version == c.Version }) {
				cands = append(cands, c)
			}
		}
		for _, w := range all {
			for _, c := range cands {
				more := maps.Clone(w)
				more[name] = c
				all = append(all, more)
			}
		}
	}
	return all
}

// What follows says in the plainest words what a valid installation is. It
// shares nothing with the resolver but the order of versions.

func isMeant(name string, c Candidate, r depend.Relation) bool {
	provides := func(what string) *Provide {
		for i := range c.Provides {
			if c.Provides[i].Name == what {
				return &c.Provides[i]
			}
		}
		return nil
	}
	if r.Feature != "" && provides(r.Name+"["+r.Feature+"]") == nil && (name != r.Name || provides(r.Feature) == nil) {
		return false
	}
	if name == r.Name {
		return r.Range.Allows(c.Version, nil)
	}
	pr := provides(r.Name)
	return pr != nil && (len(r.Range) == 0 || pr.Version != "" && r.Range.Allows(pr.Version, nil))
}

func inFacts(p *Problem, r depend.Relation, unknownCounts bool) bool {
	for _, f := range p.Facts {
		if f.Name != r.Name || r.Scope == depend.Database || r.Scope == depend.Server && f.Scope == depend.Node {
			continue
		}
		if r.Feature != "" && !unknownCounts {
			continue
		}
		if len(r.Range) == 0 || f.Version == "" && unknownCounts || f.Version != "" && r.Range.Allows(f.Version, nil) {
			return true
		}
	}
	return false
}

func isMet(p *Problem, w possible, a depend.Alternatives) bool {
	for _, r := range a {
		if inFacts(p, r, false) {
			return true
		}
		for name, c := range w {
			if isMeant(name, c, r) {
				return true
			}
		}
	}
	return false
}

func hasConflict(p *Problem, w possible, name string, r depend.Relation) bool {
	if inFacts(p, r, true) {
		return true
	}
	for other, c := range w {
		if other != name && isMeant(other, c, r) {
			return true
		}
	}
	return false
}

func requestMet(p *Problem, w possible, r depend.Relation) bool {
	if inFacts(p, r, false) {
		return true
	}
	list, _ := p.Source.Candidates(r.Name)
	if _, installed := p.Installed[r.Name]; !installed && len(list) == 0 {
		return isMet(p, w, depend.Alternatives{r})
	}
	c, ok := w[r.Name]
	return ok && isMeant(r.Name, c, r)
}

// wrong says why w is not valid, or returns "".
func wrong(p *Problem, w possible) string {
	for name, c := range w {
		if slices.Contains(p.Remove, name) {
			return name + " was to go"
		}
		was, installed := p.Installed[name]
		if _, ok := p.Held[name]; ok && (!installed || was.Version != c.Version) {
			return name + " is held"
		}
		if installed && was.Version != c.Version && !p.Reachable(name, was.Version, c.Version) {
			return name + " cannot get there"
		}
		for _, a := range c.Depends {
			if !isMet(p, w, a) {
				return fmt.Sprintf("%s %s lacks %s", name, c.Version, a)
			}
		}
		for _, a := range c.Conflicts {
			for _, r := range a {
				if hasConflict(p, w, name, r) {
					return fmt.Sprintf("%s %s is in conflict with %s", name, c.Version, r)
				}
			}
		}
	}
	for name := range p.Installed {
		_, there := w[name]
		_, held := p.Held[name]
		if !there && (held || !slices.Contains(p.Remove, name)) {
			return name + " is gone"
		}
	}
	for _, r := range p.Requests {
		if !requestMet(p, w, r.Relation) {
			return r.Relation.String() + " is missing"
		}
	}
	return ""
}

// TestAgainstBruteForce checks random problems: choices are found exactly when
// some are valid, they are valid, in order and preferred, and where there are
// none the explanation is a proof.
func TestAgainstBruteForce(t *testing.T) {
	t.Parallel()
	rounds := 3 // of a hundred, or what -rapid.checks says
	if testing.Short() {
		rounds = 1
	}
	for name, kind := range map[string]*rapid.Generator[*Problem]{"problems": problems, "tangles": tangles} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for range rounds {
				rapid.Check(t, func(t *rapid.T) { checkProblem(t, kind.Draw(t, "problem")) })
			}
		})
	}
}

func FuzzResolve(f *testing.F) {
	f.Fuzz(rapid.MakeFuzz(func(t *rapid.T) { checkProblem(t, problems.Draw(t, "problem")) }))
}

type failer interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
}

func checkProblem(t *rapid.T, p *Problem) {
	var valid []possible
	for _, w := range possibilities(p) {
		if wrong(p, w) == "" {
			valid = append(valid, w)
		}
	}
	choices, err := Resolve(t.Context(), p)
	again, errAgain := Resolve(t.Context(), p)
	if fmt.Sprint(choices, err) != fmt.Sprint(again, errAgain) {
		t.Fatalf("%v, %v the first time, %v, %v the second", choices, err, again, errAgain)
	}
	var u *Unsolvable
	var circle *CycleError
	switch {
	case errors.As(err, &u):
		if len(valid) > 0 {
			t.Fatalf("nothing was found, but %v is valid\n%s", valid[0], u.Explain())
		}
		checkDerivation(t, u)
		checkWords(t, u)
		return
	case errors.As(err, &circle):
		s, err := solve(t.Context(), p, allEffort)
		if err != nil {
			t.Fatalf("%v", err)
		}
		w := possible{}
		for _, d := range s.pkgs {
			if d.decided {
				w[d.name] = d.cands[d.now.highest()-1]
			}
		}
		if why := wrong(p, w); why != "" {
			t.Fatalf("%v is not valid: %s", w, why)
		}
		checkCircle(t, p, w, circle)
		return
	case err != nil:
		t.Fatalf("%v", err)
	}

	w := possible{}
	for _, c := range choices {
		if c.Version != "" {
			w[c.Name] = c.Candidate
		} else if !slices.Contains(p.Remove, c.Name) {
			t.Fatalf("%s goes, and was not to", c.Name)
		}
		if c.Was != p.Installed[c.Name].Version {
			t.Fatalf("%s was %q", c.Name, c.Was)
		}
	}
	if why := wrong(p, w); why != "" {
		t.Fatalf("%v is not valid: %s", w, why)
	}
	checkSequence(t, p, choices)
	for _, c := range choices {
		if c.Was == "" && len(c.Because) == 0 {
			t.Fatalf("nothing needs %s: %v", c.Name, choices)
		}
	}

	checkPreference(t, p, w, valid)
}

// checkPreference checks that what was to be upgraded has the newest version
// that there is a way to; else that what is installed is kept if that is
// possible, and then that what was asked for has the newest version.
func checkPreference(t *rapid.T, p *Problem, w possible, valid []possible) {
	var newest []string
	for _, r := range p.Requests {
		if r.Newest && !slices.Contains(newest, r.Relation.Name) {
			newest = append(newest, r.Relation.Name)
		}
	}
	best := func(name string, among func(possible) bool) {
		for _, v := range valid {
			if c, ok := v[name]; ok && among(v) && depend.Compare(c.Version, w[name].Version) > 0 {
				t.Fatalf("%s %s would be possible: %v, and %v was chosen", name, c.Version, v, w)
			}
		}
	}
	if len(newest) == 1 && w[newest[0]].Version != "" {
		best(newest[0], func(possible) bool { return true })
	}
	if len(newest) > 0 {
		return
	}
	kept := func(w possible) bool {
		for name, c := range p.Installed {
			if d, ok := w[name]; ok && d.Version != c.Version {
				return false
			}
		}
		return true
	}
	if !slices.ContainsFunc(valid, kept) {
		return
	}
	if !kept(w) {
		t.Fatalf("all that is installed could be kept, and was not: %v", w)
	}
	if len(p.Requests) == 1 {
		name := p.Requests[0].Relation.Name
		if list, _ := p.Source.Candidates(name); len(list) > 0 && p.Installed[name].Version == "" && w[name].Version != "" {
			best(name, kept)
		}
	}
}

// checkSequence checks that after each step what was just installed has all that
// it depends on, with what is not updated yet in its old version.
func checkSequence(t *rapid.T, p *Problem, choices []Choice) {
	there := maps.Clone(p.Installed)
	for _, c := range choices {
		if c.Version == "" {
			delete(there, c.Name)
			continue
		}
		there[c.Name] = c.Candidate
		for _, a := range c.Candidate.Depends {
			if !isMet(p, there, a) {
				t.Fatalf("%s comes before what it depends on (%s): %v", c.Name, a, choices)
			}
		}
	}
}

// checkCircle checks that those that the error names cannot be brought to w in
// any order, together with all the others.
func checkCircle(t *rapid.T, p *Problem, w possible, e *CycleError) {
	there := possible{}
	ready := func(name string) bool {
		with := maps.Clone(there)
		with[name] = w[name]
		return !slices.ContainsFunc(w[name].Depends, func(a depend.Alternatives) bool {
			if isMet(p, with, a) {
				return false
			}
			meant := func(other string, c Candidate) bool {
				return slices.ContainsFunc(a, func(r depend.Relation) bool { return isMeant(other, c, r) })
			}
			for other, c := range w {
				if old, ok := p.Installed[other]; ok && meant(other, old) && meant(other, c) {
					return false // it will do before as well as after it is updated
				}
			}
			return true
		})
	}
	for again := true; again; {
		again = false
		for name, c := range w {
			if _, ok := there[name]; !ok && ready(name) {
				there[name], again = c, true
			}
		}
	}
	for _, name := range e.Names {
		if _, ok := there[name]; ok {
			t.Fatalf("%v: %s can be installed after %v", e, name, there)
		}
	}
	if len(e.Names) < 2 {
		t.Fatalf("a circle of %v", e.Names)
	}
}

// holds reports whether all terms of inc hold in w.
func holds(s *solver, inc *incompat, w possible) bool {
	for _, tm := range inc.terms {
		p := s.pkgs[tm.pkg]
		v := 0
		if c, ok := w[p.name]; ok {
			v = 1 + slices.IndexFunc(p.cands, func(d Candidate) bool { return d.Version == c.Version })
		}
		if !tm.values.has(v) {
			return false
		}
	}
	return true
}

// checkDerivation checks that each derived incompatibility follows from its
// causes, for every value of the extensions that they speak of, and that the
// last has no terms.
func checkDerivation(t failer, u *Unsolvable) {
	t.Helper()
	s := u.solver
	if len(u.root.terms) != 0 {
		t.Fatalf("the derivation ends with terms")
	}
	var worlds []possible
	if _, random := s.problem.Installed[Postgres]; random && len(s.pkgs) <= len(universe)+3 {
		worlds = possibilities(s.problem)
	}
	for _, inc := range derivation(u.root) {
		if inc.kind != derived {
			for _, w := range worlds {
				if holds(s, inc, w) && !breaks(s, inc, w) {
					t.Fatalf("not a fact: %s; %v has all of it", (&explainer{solver: s}).fact(inc), w)
				}
			}
			continue
		}
		for _, w := range worlds {
			if holds(s, inc, w) && !holds(s, inc.causes[0], w) && !holds(s, inc.causes[1], w) {
				t.Fatalf("%v does not follow from %v and %v", inc.terms, inc.causes[0].terms, inc.causes[1].terms)
			}
		}
		// The same without enumeration: it is the resolvent over some extension.
		if !slices.ContainsFunc(inc.causes[0].terms, func(pivot term) bool {
			terms := append(slices.Clone(inc.causes[0].terms), inc.causes[1].terms...)
			merged, ok := s.merge(terms, pivot.pkg)
			return ok && slices.EqualFunc(merged, inc.terms, func(a, b term) bool { return a.pkg == b.pkg && slices.Equal(a.values, b.values) })
		}) {
			t.Fatalf("%v is not a resolvent of %v and %v", inc.terms, inc.causes[0].terms, inc.causes[1].terms)
		}
	}
}

// breaks reports whether w breaks the rule that inc says it comes from.
func breaks(s *solver, inc *incompat, w possible) bool {
	p := s.problem
	name := s.pkgs[inc.pkg].name
	c, there := w[name]
	was, installed := p.Installed[name]
	has := func(l depend.List, a depend.Alternatives) bool {
		return slices.ContainsFunc(l, func(b depend.Alternatives) bool { return strings.Contains(b.String(), a.String()) })
	}
	switch inc.kind {
	case depends:
		return there && has(c.Depends, inc.wanted) && !isMet(p, w, inc.wanted)
	case conflicts, meetsFact:
		return there && has(c.Conflicts, depend.Alternatives{inc.conflict}) && hasConflict(p, w, name, inc.conflict)
	case stays:
		return installed && !there && !slices.Contains(p.Remove, name)
	case held:
		_, ok := p.Held[name]
		return ok && (there != installed || c.Version != was.Version)
	case unreachable:
		return installed && there && !p.Reachable(name, was.Version, c.Version)
	case requested:
		return !requestMet(p, w, p.Requests[inc.request].Relation)
	case removed:
		return slices.Contains(p.Remove, name) && there
	}
	return false
}

// checkWords checks that an explanation is whole sentences that name no
// extension but those of the problem.
func checkWords(t *rapid.T, u *Unsolvable) {
	text := u.Explain()
	for _, line := range strings.Split(text, "\n") {
		if strings.Contains(line, "%!") || strings.Contains(line, "  ") || strings.Contains(line, " (0)") || strings.Contains(line, "(-1)") ||
			strings.HasPrefix(line, ":") || strings.Contains(line, " :") || !strings.HasSuffix(line, ".") {
			t.Fatalf("a bad sentence: %s\nin\n%s", line, text)
		}
	}
}
