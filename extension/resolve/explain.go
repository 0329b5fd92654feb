package resolve

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"rideau/extension/depend"
)

// Unsolvable is the error that what is asked for cannot be.
type Unsolvable struct {
	solver *solver
	root   *incompat // without terms: what it was derived from is why
	hint   string
	text   string
}

// Error returns the last line of the explanation: in most cases all of it.
func (u *Unsolvable) Error() string {
	text := u.Explain()
	text = text[strings.LastIndexByte(text, '\n')+1:]
	return strings.TrimSuffix(strings.TrimPrefix(text, besides), ".")
}

// Hint returns a sentence on what would help, each way having been tried; "" if
// nothing simple does.
func (u *Unsolvable) Hint() string { return u.hint }

// besides begins a sentence that uses the one before it.
const besides = "Besides, "

// maxLine is the number of facts that a sentence may have.
const maxLine = 3

// maxLines is the number of sentences that anybody reads. Past it an explanation
// only lists its facts.
const maxLines = 40

// Explain returns why, in sentences, one a line. A line that another one further
// down refers to has a number.
func (u *Unsolvable) Explain() string {
	if u.text == "" {
		e := explainer{solver: u.solver, parts: map[*incompat][]*incompat{}, parents: map[*incompat]int{}, number: map[*incompat]int{}}
		u.text = e.explain(u.root)
	}
	return u.text
}

// An explainer writes an explanation.
type explainer struct {
	*solver
	parts   map[*incompat][]*incompat // what the sentence of a derived one is made of
	parents map[*incompat]int
	number  map[*incompat]int
}

// derivation returns root and all that it was derived from, causes first.
func derivation(root *incompat) []*incompat {
	var list []*incompat
	state := map[*incompat]int{}
	for stack := []*incompat{root}; len(stack) > 0; {
		inc := stack[len(stack)-1]
		switch state[inc] {
		case 0:
			state[inc] = 1
			if inc.kind == derived {
				stack = append(stack, inc.causes[1], inc.causes[0])
			}
			continue
		case 1:
			state[inc] = 2
			list = append(list, inc)
		}
		stack = stack[:len(stack)-1]
	}
	return list
}

func (e *explainer) explain(root *incompat) string {
	nodes := derivation(root)
	for _, inc := range nodes {
		if inc.kind == derived {
			for _, c := range inc.causes {
				e.parents[c]++
			}
		}
	}
	for _, inc := range nodes {
		e.parts[inc] = e.flatten(inc)
	}

	// The sentences, those that others need first.
	var lines []*incompat
	state := map[*incompat]int{}
	for stack := []*incompat{root}; len(stack) > 0; {
		inc := stack[len(stack)-1]
		switch state[inc] {
		case 0:
			state[inc] = 1
			for _, part := range slices.Backward(e.parts[inc]) {
				if part.kind == derived {
					stack = append(stack, part)
				}
			}
			continue
		case 1:
			state[inc] = 2
			lines = append(lines, inc)
		}
		stack = stack[:len(stack)-1]
	}
	if len(lines) > maxLines {
		return e.facts(nodes)
	}

	numbers := 0
	for n, inc := range lines {
		for _, part := range e.parts[inc] {
			if part.kind == derived && part != lines[max(n-1, 0)] && e.number[part] == 0 {
				e.number[part] = -1
			}
		}
	}
	var text []string
	for n, inc := range lines {
		if e.number[inc] != 0 {
			numbers++
			e.number[inc] = numbers
		}
		var previous *incompat
		if n > 0 {
			previous = lines[n-1]
		}
		line := e.line(inc, previous, root)
		if k := e.number[inc]; k > 0 {
			line = fmt.Sprintf("(%d) %s", k, line)
		}
		text = append(text, line)
	}
	return strings.Join(text, "\n")
}

// flatten returns what the sentence of inc is made of: facts, and derived ones
// that have a sentence of their own.
func (e *explainer) flatten(inc *incompat) []*incompat {
	if inc.kind != derived {
		return []*incompat{inc}
	}
	var sides [2][]*incompat
	for n, c := range inc.causes {
		sides[n] = []*incompat{c}
		if c.kind == derived && e.parents[c] == 1 {
			sides[n] = e.parts[c]
		}
	}
	join := func() []*incompat {
		var all []*incompat
		for _, side := range sides {
			for _, part := range side {
				if !slices.Contains(all, part) {
					all = append(all, part)
				}
			}
		}
		return all
	}
	all := join()
	for e.weight(all) > maxLine {
		// The longer side becomes a sentence.
		n := 0
		if e.weight(sides[1]) > e.weight(sides[0]) {
			n = 1
		}
		if len(sides[n]) == 1 && sides[n][0] == inc.causes[n] {
			break
		}
		sides[n] = []*incompat{inc.causes[n]}
		all = join()
	}
	return all
}

// weight is how much there is to say.
func (e *explainer) weight(parts []*incompat) int {
	w := 0
	for _, part := range parts {
		if part.kind != requested && part.kind != stays && part.kind != removed {
			w++
		}
	}
	return w
}

// facts lists all facts of a derivation that is too long to be read.
func (e *explainer) facts(nodes []*incompat) string {
	var facts []*incompat
	for _, inc := range nodes {
		if inc.kind != derived {
			facts = append(facts, inc)
		}
	}
	slices.SortFunc(facts, func(a, b *incompat) int { return a.id - b.id })
	var text []string
	for n, inc := range facts {
		if n == maxLines {
			text = append(text, fmt.Sprintf("- and %d more;", len(facts)-n))
			break
		}
		text = append(text, "- "+e.fact(inc)+";")
	}
	return "These cannot all hold:\n" + strings.Join(text, "\n") + "\nno combination of them works: " + e.conclusion(facts, &incompat{}) + "."
}

// line is the sentence that says why inc is so.
func (e *explainer) line(inc, previous, root *incompat) string {
	parts := e.parts[inc]
	if inc == root {
		// What was asked for is the conclusion.
		var all []*incompat
		for _, part := range derivation(root) {
			if part.kind != derived {
				all = append(all, part)
			}
		}
		said := e.say(parts, previous, true)
		if said == "" {
			said = e.say(parts, previous, false)
		}
		return e.capital(said, previous, parts) + ": " + e.conclusion(all, inc) + "."
	}
	return e.capital(e.say(parts, previous, false), previous, parts) + ": " + e.conclusion(nil, inc) + "."
}

// capital begins a sentence. Names of extensions keep their case.
func (e *explainer) capital(said string, previous *incompat, parts []*incompat) string {
	if previous != nil && slices.Contains(parts, previous) {
		if said == "" {
			return "So"
		}
		return besides + said
	}
	return said
}

// say joins what is said of the parts. The previous sentence is not repeated,
// nor, if quiet, what was asked for.
func (e *explainer) say(parts []*incompat, previous *incompat, quiet bool) string {
	parts = slices.Clone(parts)
	slices.SortStableFunc(parts, func(a, b *incompat) int {
		if c := place(a) - place(b); c != 0 {
			return c
		}
		return a.id - b.id
	})
	// Each statement is made once, and what there is instead comes last.
	var texts, notes []string
	once := func(list []string, text string) []string {
		if text == "" || slices.Contains(list, text) {
			return list
		}
		return append(list, text)
	}
	for _, part := range parts {
		switch {
		case part == previous:
		case part.kind == derived:
			texts = once(texts, fmt.Sprintf("%s (%d)", e.conclusion(nil, part), e.number[part]))
		case part.kind == stays && quiet && e.askedFor(part.pkg):
		case quiet && (part.kind == requested || part.kind == removed) && !e.noteworthy(part):
		default:
			text, note := e.statement(part)
			if part.kind == unreachable || part.kind == held && e.pkgs[part.pkg].installed > 0 && e.pkgs[part.pkg].name != Postgres {
				is := e.isInstalled(e.pkgs[part.pkg])
				texts = slices.DeleteFunc(texts, func(t string) bool { return t == is })
				if part.kind == unreachable {
					texts = append(texts, is)
				}
			}
			texts, notes = once(texts, text), once(notes, note)
		}
	}
	// "foo 1.0 is installed, foo 1.0 depends on" is one statement.
	for _, part := range parts {
		if part.kind != stays {
			continue
		}
		p := e.pkgs[part.pkg]
		is, name := e.isInstalled(p), e.version(p, p.installed)
		n := slices.Index(texts, is)
		m := slices.IndexFunc(texts, func(t string) bool {
			return strings.HasPrefix(t, name+" depends on ") || strings.HasPrefix(t, name+" conflicts with ")
		})
		if n >= 0 && m >= 0 {
			texts[m] = name + ", which is installed," + strings.TrimPrefix(texts[m], name)
			texts = slices.Delete(texts, n, n+1)
		}
	}
	for _, note := range notes {
		texts = once(texts, note)
	}
	if len(texts) < 2 {
		return strings.Join(texts, "")
	}
	return strings.Join(texts[:len(texts)-1], ", ") + ", and " + texts[len(texts)-1]
}

// askedFor reports whether a request names the extension.
func (e *explainer) askedFor(i int) bool {
	return slices.ContainsFunc(e.problem.Requests, func(r Request) bool { return r.Relation.Name == e.pkgs[i].name })
}

// noteworthy reports whether a request says more than what is wanted.
func (e *explainer) noteworthy(inc *incompat) bool {
	return inc.kind == requested && (len(inc.needs) == 0 || e.problem.Requests[inc.request].Reason != "")
}

// place is where in a sentence something stands: first what is there, then what
// follows from sentences before, then relations.
func place(inc *incompat) int {
	switch inc.kind {
	case stays, held, removed, unreachable:
		return 0
	case derived:
		return 1
	}
	return 2
}

// fact says what makes inc true.
func (e *explainer) fact(inc *incompat) string {
	text, note := e.statement(inc)
	if text != "" && note != "" {
		text += ", and "
	}
	return text + note
}

// statement says what makes inc true, and what there is instead of what is
// wanted.
func (e *explainer) statement(inc *incompat) (text, note string) {
	p := e.pkgs[inc.pkg]
	switch inc.kind {
	case depends:
		return fmt.Sprintf("%s depends on %s", e.versions(inc.pkg, inc.versions), or(inc.wanted)), e.missing(inc.wanted)
	case conflicts:
		text := fmt.Sprintf("%s conflicts with %s", e.versions(inc.pkg, inc.versions), inc.conflict)
		if e.pkgs[inc.other].name != inc.conflict.Name {
			for _, t := range inc.terms {
				if t.pkg == inc.other {
					note = fmt.Sprintf("%s provides %s", e.versions(t.pkg, t.values), inc.conflict.Name)
				}
			}
		}
		return text, note
	case meetsFact:
		version := inc.fact.Version
		if version == "" && len(inc.conflict.Range) > 0 {
			version = "in a version that is not known"
		}
		there := strings.TrimSpace(inc.fact.Name + " " + version)
		return fmt.Sprintf("%s conflicts with %s", e.versions(inc.pkg, inc.versions), inc.conflict),
			fmt.Sprintf("%s is in use elsewhere (%s)", there, inc.fact.Where)
	case stays:
		return e.isInstalled(p), ""
	case held:
		why := e.problem.Held[p.name]
		if why != "" {
			why = " (" + why + ")"
		}
		if p.installed == 0 {
			return p.name + " is not to be installed" + why, ""
		}
		if p.name == Postgres {
			return e.isInstalled(p), ""
		}
		return fmt.Sprintf("%s is installed and held%s", e.version(p, p.installed), why), ""
	case unreachable:
		return fmt.Sprintf("no update leads from %s to %s", e.version(p, p.installed), e.list(inc.pkg, inc.versions, "or")), ""
	case removed:
		return p.name + " is to be uninstalled", ""
	case requested:
		note = e.missing(inc.wanted)
		if r := e.problem.Requests[inc.request]; r.Reason != "" {
			text = fmt.Sprintf("%s is asked for (%s)", or(inc.wanted), r.Reason)
		} else if note == "" {
			text = or(inc.wanted) + " is asked for"
		}
		return text, note
	}
	return e.conclusion(nil, inc), ""
}

func (e *explainer) isInstalled(p *pkg) string {
	if p.name == Postgres {
		return "this is PostgreSQL " + p.cands[p.installed-1].Version
	}
	return e.version(p, p.installed) + " is installed"
}

// or writes alternatives as a sentence does.
func or(a depend.Alternatives) string {
	var names []string
	for _, r := range a {
		names = append(names, r.String())
	}
	return enumerate(names, "or")
}

// missing says what there is instead of those of the alternatives that nothing
// known meets.
func (e *explainer) missing(a depend.Alternatives) string {
	var notes []string
	for _, r := range a {
		i, ok := e.index[r.Name]
		if !ok || len(e.meetings[r.String()]) > 0 {
			continue
		}
		p := e.pkgs[i]
		var note string
		providers := e.problem.Source.Providers(r.Name)
		switch {
		case len(p.cands) > 0:
			note = e.instead(p, r)
		case len(providers) > 0:
			note = fmt.Sprintf("no version of %s provides %s", enumerate(providers, "or"), r)
		case p.known:
			note = "no version of " + r.Name + " can be had"
		default:
			note = "nobody knows " + r.Name
		}
		switch r.Scope {
		case depend.Server:
			note += ", nor is it in use on this server"
		case depend.Node:
			note += ", nor is it on this machine"
		}
		notes = append(notes, note)
	}
	return strings.Join(notes, ", and ")
}

// instead says which versions of p there are, none of which is what r means.
func (e *explainer) instead(p *pkg, r depend.Relation) string {
	bare := r
	bare.Feature = ""
	for _, c := range p.cands {
		if r.Feature != "" && e.problem.meets(p.name, c, bare) {
			return fmt.Sprintf("no %s that is known has %s", bare, r.Feature)
		}
	}
	first, last := p.cands[0], p.cands[len(p.cands)-1]
	newer, older := true, true // what is wanted is newer than all, or older
	for _, c := range r.Range {
		switch c.Op {
		case depend.GreaterOrEqual, depend.Greater, depend.Equal, depend.Pessimistic:
			newer = newer && p.order.Compare(last.Version, c.Version) <= 0
			older = older && c.Op == depend.Equal && p.order.Compare(first.Version, c.Version) >= 0
		case depend.Less, depend.LessOrEqual:
			newer = false
			older = older && p.order.Compare(first.Version, c.Version) >= 0
		default:
			newer, older = false, false
		}
	}
	switch {
	case len(p.cands) == 1 && p.installed > 0 && p.name == Postgres:
		return "this is PostgreSQL " + first.Version
	case len(p.cands) == 1 && p.installed > 0:
		return fmt.Sprintf("the only %s known is %s, which is installed", p.name, first.Version)
	case newer || len(r.Range) > 0 && beyond(p, r):
		return fmt.Sprintf("the newest %s known is %s%s", p.name, last.Version, from(last))
	case older:
		return fmt.Sprintf("the oldest %s known is %s%s", p.name, first.Version, from(first))
	}
	all := p.full.minus(oneOf(p.values, 0))
	return fmt.Sprintf("%s is known only as %s", p.name, e.list(e.index[p.name], all, "and"))
}

// beyond reports whether a lower bound of r is above all that is known.
func beyond(p *pkg, r depend.Relation) bool {
	for _, c := range r.Range {
		switch c.Op {
		case depend.GreaterOrEqual, depend.Greater, depend.Equal, depend.Pessimistic:
			if d := p.order.Compare(p.cands[len(p.cands)-1].Version, c.Version); d < 0 || d == 0 && c.Op == depend.Greater {
				return true
			}
		}
	}
	return false
}

func from(c Candidate) string {
	if c.From == "" {
		return ""
	}
	return " (" + c.From + ")"
}

// version names one version, "foo 1.0".
func (e *explainer) version(p *pkg, v int) string { return p.name + " " + p.cands[v-1].Version }

// versions names versions of an extension: "foo", "foo 1.0", "foo (>= 1.1)".
func (e *explainer) versions(i int, values set) string {
	p := e.pkgs[i]
	values = values.minus(oneOf(p.values, 0))
	n := values.size()
	low, high := 1, values.highest()
	for low < p.values && !values.has(low) {
		low++
	}
	quote := func(op depend.Op, v int) string {
		return depend.Constraint{Op: op, Version: p.cands[v-1].Version}.String()
	}
	switch whole := high-low+1 == n; {
	case n == 0:
		return "no " + p.name
	case n == 1:
		return e.version(p, high)
	case n == p.values-1:
		return p.name
	case whole && high == p.values-1 && n > 2:
		return fmt.Sprintf("%s (%s)", p.name, quote(depend.GreaterOrEqual, low))
	case whole && low == 1 && n > 2:
		return fmt.Sprintf("%s (%s)", p.name, quote(depend.LessOrEqual, high))
	case whole && n > 2:
		return fmt.Sprintf("%s (%s, %s)", p.name, quote(depend.GreaterOrEqual, low), quote(depend.LessOrEqual, high))
	}
	return p.name + " " + e.list(i, values, "or")
}

// list names versions without the extension: "1.0, 1.1 or 2.0".
func (e *explainer) list(i int, values set, word string) string {
	p := e.pkgs[i]
	var names []string
	for v := 1; v < p.values; v++ {
		if values.has(v) {
			names = append(names, p.cands[v-1].Version)
		}
	}
	if n := len(names); n > 5 {
		names = append(append(names[:2:2], fmt.Sprintf("%d more", n-3)), names[n-1])
	}
	return enumerate(names, word)
}

func enumerate(names []string, word string) string {
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " " + word + " " + names[len(names)-1]
}

// conclusion says what inc means; for one without terms, that what the facts ask
// for cannot be.
func (e *explainer) conclusion(facts []*incompat, inc *incompat) string {
	if len(inc.terms) == 0 {
		return e.impossible(facts)
	}
	var there, wanted []string
	var first term
	for _, t := range inc.terms {
		if t.values.has(0) {
			wanted = append(wanted, e.versions(t.pkg, e.pkgs[t.pkg].full.minus(t.values)))
		} else {
			if len(there) == 0 {
				first = t
			}
			there = append(there, e.versions(t.pkg, t.values))
		}
	}
	p := e.pkgs[first.pkg]
	switch {
	case len(there) == 0:
		return enumerate(wanted, "or") + " is needed"
	case len(wanted) > 0:
		verb := " needs "
		if len(there) > 1 {
			verb = " need "
		}
		return enumerate(there, "with") + verb + enumerate(wanted, "or")
	case len(there) > 1:
		return enumerate(there, "and") + " cannot be together"
	case p.installed > 0 && first.values.has(p.installed):
		return there[0] + " cannot stay"
	case p.installed > 0:
		return p.name + " cannot be updated to " + e.list(first.pkg, first.values, "or")
	}
	return there[0] + " cannot be installed"
}

// impossible says that what the facts ask for cannot be.
func (e *explainer) impossible(facts []*incompat) string {
	var install, remove []string
	for _, inc := range facts {
		switch inc.kind {
		case requested:
			install = append(install, or(inc.wanted))
		case removed:
			remove = append(remove, e.pkgs[inc.pkg].name)
		}
	}
	slices.Sort(install)
	slices.Sort(remove)
	install, remove = slices.Compact(install), slices.Compact(remove)
	together := ""
	if len(install) > 1 {
		together = " together"
	}
	switch {
	case len(install) > 0 && len(remove) > 0:
		return fmt.Sprintf("%s cannot be installed%s while %s goes", enumerate(install, "and"), together, enumerate(remove, "and"))
	case len(install) > 0:
		return enumerate(install, "and") + " cannot be installed" + together
	case len(remove) > 0:
		return enumerate(remove, "and") + " cannot be uninstalled"
	}
	return "what is installed does not fit together"
}

// maxTrials is how many ways out are tried for a hint, and trialEffort what all
// of them may spend: a hint is not worth a wait.
const maxTrials = 16

var trialEffort = effort{learned: 5_000, steps: 200_000}

// hint finds what would help: changes of the problem, one at a time, that make
// it solvable.
func (s *solver) hint(u *Unsolvable) (string, error) {
	var ways []string
	trials, left := 0, trialEffort
	try := func(way string, change func(p *Problem)) (bool, error) {
		if trials++; trials > maxTrials || left.learned <= 0 || left.steps <= 0 || slices.Contains(ways, way) {
			return false, nil
		}
		p := *s.problem
		p.Remove = slices.Clone(p.Remove)
		p.Requests = slices.Clone(p.Requests)
		change(&p)
		trial, err := solve(s.ctx, &p, left)
		left.learned -= trial.learned
		left.steps -= trial.steps
		var still *Unsolvable
		switch {
		case err == nil:
			ways = append(ways, way)
		case !errors.As(err, &still) && !errors.Is(err, ErrTooHard):
			return false, err
		}
		return err == nil, nil
	}

	facts := slices.DeleteFunc(derivation(u.root), func(inc *incompat) bool { return inc.kind == derived })
	slices.SortFunc(facts, func(a, b *incompat) int { return a.id - b.id })
	var sentences []string
	for _, inc := range facts {
		p := s.pkgs[inc.pkg]
		var err error
		switch inc.kind {
		case unreachable:
			_, err = try("uninstall "+p.name+" and install it anew", func(q *Problem) {
				reachable := q.Reachable
				q.Reachable = func(name, from, to string) bool { return name == p.name || reachable(name, from, to) }
			})
		case held:
			if p.name != Postgres {
				_, err = try("no longer hold "+p.name, func(q *Problem) { q.Held = without(q.Held, p.name) })
			}
		case stays:
			if p.name == Postgres || s.asked(p.name) {
				continue
			}
			var ok bool
			ok, err = try("uninstall "+p.name, func(q *Problem) { q.Remove = append(q.Remove, p.name) })
			if others := Dependents(s.problem, p.name); err == nil && !ok && len(others) > 0 {
				_, err = try("uninstall "+enumerate(append(others, p.name), "and"), func(q *Problem) {
					q.Remove = append(append(q.Remove, p.name), others...)
				})
			}
		case removed:
			if others := Dependents(s.problem, p.name); len(others) > 0 {
				_, err = try("uninstall "+enumerate(others, "and"), func(q *Problem) { q.Remove = append(q.Remove, others...) })
			}
		case requested:
			r := s.problem.Requests[inc.request].Relation
			if len(inc.needs) == 0 && !p.known {
				if g, ok := s.problem.Source.(Guesser); ok {
					if near := g.Near(r.Name); len(near) > 0 {
						sentences = append(sentences, fmt.Sprintf("Did you mean %s?", enumerate(near, "or")))
					}
				}
			}
			if len(r.Range) > 0 {
				_, err = try("accept another version of "+r.Name, func(q *Problem) { q.Requests[inc.request].Relation.Range = nil })
			}
			if err == nil && len(s.problem.Requests)+len(s.problem.Remove) > 1 {
				_, err = try("do without "+r.String(), func(q *Problem) {
					q.Requests = slices.Delete(q.Requests, inc.request, inc.request+1)
				})
			}
		case depends:
			if g, ok := s.problem.Source.(Guesser); ok {
				for _, r := range inc.wanted {
					if i, ok := s.index[r.Name]; ok && !s.pkgs[i].known && len(s.meetings[r.String()]) == 0 {
						if near := g.Near(r.Name); len(near) > 0 {
							sentences = append(sentences, fmt.Sprintf("Known names like %s: %s.", r.Name, enumerate(near, "and")))
						}
					}
				}
			}
		case conflicts:
			if way := s.better(inc); way != "" && !slices.Contains(sentences, way) {
				sentences = append(sentences, way)
			}
		}
		if err != nil {
			return "", err
		}
	}
	if len(ways) > 0 {
		text := enumerate(ways, "or")
		sentences = append([]string{strings.ToUpper(text[:1]) + text[1:] + "."}, sentences...)
	}
	return strings.Join(sentences, " "), nil
}

// better names the version from which on an installed extension would not be in
// conflict, if none is known.
func (s *solver) better(inc *incompat) string {
	other := s.pkgs[inc.other]
	if other.installed == 0 || other.name != inc.conflict.Name || len(inc.conflict.Range) != 1 {
		return ""
	}
	c := inc.conflict.Range[0]
	newest := other.cands[len(other.cands)-1]
	if c.Op != depend.Less || !c.Allows(newest.Version, other.order) {
		return ""
	}
	return fmt.Sprintf("%s %s or later would do, but the newest known is %s%s.", other.name, c.Version, newest.Version, from(newest))
}

func (s *solver) asked(name string) bool {
	return slices.ContainsFunc(s.problem.Requests, func(r Request) bool { return r.Relation.Name == name })
}

func without(m map[string]string, key string) map[string]string {
	c := make(map[string]string, len(m))
	for k, v := range m {
		if k != key {
			c[k] = v
		}
	}
	return c
}
