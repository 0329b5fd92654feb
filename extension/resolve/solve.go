package resolve

import (
	"container/heap"
	"context"
	"maps"
	"slices"

	"rideau/extension/depend"
)

// effort is what a solver may spend before it gives up.
type effort struct {
	learned int // incompatibilities to derive; they are kept, so this bounds memory
	steps   int // of propagation, decision and resolution; 0: any number
}

// allEffort is that of Resolve. A guess: far more than real extensions ever
// need, and some hundred megabytes.
var allEffort = effort{learned: 300_000}

// A solver is one run of the algorithm.
type solver struct {
	ctx     context.Context
	problem *Problem

	pkgs               []*pkg
	index              map[string]int
	meetings           map[string][]term
	installedProviders map[string][]string

	trail   []assignment
	level   int
	changed []int       // extensions whose incompatibilities are to be looked at
	fresh   []*incompat // to be looked at themselves
	waiting waiting
	open    []*incompat // that have several needs
	cursor  int         // those of open before it are decided

	made       int
	learned    int
	effort     effort
	steps      int
	impossible *incompat // one without terms
}

// An assignment narrows what an extension may be.
type assignment struct {
	pkg    int
	level  int       // how many decisions there were, this one included
	before set       // what it could be
	after  set       // what it can be now
	cause  *incompat // nil for a decision
}

// solve runs the algorithm. It returns the solver with the error as well.
func solve(ctx context.Context, p *Problem, effort effort) (*solver, error) {
	s := &solver{
		ctx: ctx, problem: p, effort: effort,
		index: map[string]int{}, meetings: map[string][]term{}, installedProviders: map[string][]string{},
	}
	s.waiting.s = s
	if err := s.start(); err != nil {
		return s, err
	}
	for {
		if err := s.propagate(); err != nil {
			return s, err
		}
		done, err := s.decide()
		if err != nil || done {
			return s, err
		}
	}
}

// start adds what the problem says by itself.
func (s *solver) start() error {
	installed := slices.Sorted(maps.Keys(s.problem.Installed))
	for _, name := range installed {
		for _, pr := range s.problem.Installed[name].Provides {
			s.installedProviders[pr.Name] = append(s.installedProviders[pr.Name], name)
		}
	}
	remove := map[string]bool{}
	for _, name := range s.problem.Remove {
		if remove[name] {
			continue
		}
		remove[name] = true
		i, err := s.load(name)
		if err != nil {
			return err
		}
		p := s.pkgs[i]
		s.addFact(&incompat{kind: removed, pkg: i, versions: p.full}, term{i, p.full.minus(oneOf(p.values, 0))})
	}
	for _, name := range installed {
		i, err := s.load(name)
		if err != nil {
			return err
		}
		if !remove[name] {
			p := s.pkgs[i]
			s.addFact(&incompat{kind: stays, pkg: i, versions: p.full}, term{i, oneOf(p.values, 0)})
		}
	}
	for n, r := range s.problem.Requests {
		wanted := depend.Alternatives{r.Relation}
		i, err := s.load(r.Relation.Name)
		if err != nil {
			return err
		}
		p := s.pkgs[i]
		if r.Newest {
			p.rank = rankNewest
		}
		p.rank = min(p.rank, rankRequested)
		if s.metByFact(wanted) {
			continue
		}
		needs, err := s.needs(wanted)
		if err != nil {
			return err
		}
		if len(p.cands) > 0 {
			// Who asks for foo means foo, and not what can stand for it.
			needs = slices.DeleteFunc(slices.Clone(needs), func(t term) bool { return t.pkg != i })
		}
		s.addNeed(&incompat{kind: requested, pkg: i, wanted: wanted, needs: needs, request: n})
	}
	return nil
}

func (s *solver) enqueue(i int) {
	if p := s.pkgs[i]; !p.queued {
		p.queued = true
		s.changed = append(s.changed, i)
	}
}

// tick counts a step, and lets the context be heard now and then.
func (s *solver) tick() error {
	s.steps++
	if s.effort.steps > 0 && s.steps > s.effort.steps {
		return ErrTooHard
	}
	if s.steps%256 == 0 {
		return context.Cause(s.ctx)
	}
	return nil
}

// propagate draws all conclusions from what is assigned.
func (s *solver) propagate() error {
	if s.impossible != nil {
		return &Unsolvable{solver: s, root: s.impossible}
	}
	for {
		if err := s.tick(); err != nil {
			return err
		}
		if n := len(s.fresh); n > 0 {
			inc := s.fresh[n-1]
			s.fresh = s.fresh[:n-1]
			if _, err := s.apply(inc); err != nil {
				return err
			}
			continue
		}
		if len(s.changed) == 0 {
			return nil
		}
		i := s.changed[len(s.changed)-1]
		s.changed = s.changed[:len(s.changed)-1]
		s.pkgs[i].queued = false
		// What was learned last comes first: it says most.
		for _, inc := range slices.Backward(s.pkgs[i].incompats) {
			conflict, err := s.apply(inc)
			if err != nil {
				return err
			}
			if conflict {
				s.enqueue(i) // the rest may still matter
				break
			}
		}
	}
}

// apply draws the conclusion from inc, if there is one. It reports whether that
// was a conflict, which has been resolved then.
func (s *solver) apply(inc *incompat) (conflict bool, err error) {
	last, ok := s.unit(inc)
	if !ok {
		return false, nil
	}
	if last < 0 {
		return true, s.conflict(inc)
	}
	t := inc.terms[last]
	s.assign(t.pkg, s.pkgs[t.pkg].now.minus(t.values), inc)
	s.enqueue(t.pkg)
	return false, nil
}

// unit reports whether all terms of inc hold but for at most one, which may or
// may not; last is that one, or -1 if all hold.
func (s *solver) unit(inc *incompat) (last int, ok bool) {
	last = -1
	for n, t := range inc.terms {
		now := s.pkgs[t.pkg].now
		if now.within(t.values) {
			continue
		}
		if last >= 0 || !now.meets(t.values) {
			return 0, false
		}
		last = n
	}
	return last, true
}

func (s *solver) assign(i int, after set, cause *incompat) {
	p := s.pkgs[i]
	p.trail = append(p.trail, len(s.trail))
	s.trail = append(s.trail, assignment{pkg: i, level: s.level, before: p.now, after: after, cause: cause})
	p.now = after
	s.await(i)
}

// await puts an extension among those to decide, if it is one.
func (s *solver) await(i int) {
	if p := s.pkgs[i]; p.place == 0 && !p.decided && p.positive() {
		heap.Push(&s.waiting, i)
	}
}

// backtrack takes back all assignments after the level.
func (s *solver) backtrack(level int) {
	for len(s.trail) > 0 && s.trail[len(s.trail)-1].level > level {
		a := s.trail[len(s.trail)-1]
		s.trail = s.trail[:len(s.trail)-1]
		p := s.pkgs[a.pkg]
		p.trail = p.trail[:len(p.trail)-1]
		p.now = a.before
		if a.cause == nil {
			p.decided = false
		}
		s.await(a.pkg)
		// Something may still follow for it, from incompatibilities that were
		// not known yet when the level that we go back to was current.
		s.enqueue(a.pkg)
	}
	s.level = level
	s.cursor = 0
}

// conflict finds the decision that was wrong, from an incompatibility all terms
// of which hold, learns why, and goes back to where the opposite follows.
func (s *solver) conflict(inc *incompat) error {
	first := inc
	for {
		if err := s.tick(); err != nil {
			return err
		}
		if len(inc.terms) == 0 {
			return &Unsolvable{solver: s, root: inc}
		}
		// The assignment from which on all terms hold.
		at, of := -1, 0
		for n, t := range inc.terms {
			if h := s.holdsFrom(t); h > at {
				at, of = h, n
			}
		}
		satisfier, pivot := s.trail[at], inc.terms[of]
		s.bump(pivot.pkg)

		// The level from which on they hold given that assignment alone.
		previous := 0
		for n, t := range inc.terms {
			if n != of {
				previous = max(previous, s.trail[s.holdsFrom(t)].level)
			}
		}
		if satisfier.cause != nil {
			values := s.pkgs[pivot.pkg].full
			for _, t := range satisfier.cause.terms {
				if t.pkg == pivot.pkg {
					values = values.minus(t.values) // what the cause leaves
				}
			}
			if !values.within(pivot.values) {
				for _, h := range s.pkgs[pivot.pkg].trail {
					if s.trail[h].after.and(values).within(pivot.values) {
						previous = max(previous, s.trail[h].level)
						break
					}
				}
			}
		}

		if satisfier.cause == nil || previous < satisfier.level {
			s.backtrack(previous)
			if inc != first {
				s.add(inc)
			} else {
				s.fresh = append(s.fresh, inc)
			}
			return nil
		}
		if s.learned++; s.learned > s.effort.learned {
			return ErrTooHard
		}
		terms := append(slices.Clone(inc.terms), satisfier.cause.terms...)
		merged, _ := s.merge(terms, pivot.pkg) // all hold at the moment, so none never does
		inc = &incompat{id: s.made, kind: derived, terms: merged, causes: [2]*incompat{inc, satisfier.cause}}
		s.made++
	}
}

// holdsFrom returns the index of the assignment from which on t, which holds,
// does.
func (s *solver) holdsFrom(t term) int {
	trail := s.pkgs[t.pkg].trail
	lo, hi := 0, len(trail)-1
	for lo < hi {
		if m := (lo + hi) / 2; s.trail[trail[m]].after.within(t.values) {
			hi = m
		} else {
			lo = m + 1
		}
	}
	return trail[lo]
}

// bump remembers that an extension took part in a conflict: what does often is
// decided early.
func (s *solver) bump(i int) {
	p := s.pkgs[i]
	p.activity++
	if p.place > 0 {
		heap.Fix(&s.waiting, p.place-1)
	}
}

// decide gives one extension a version. It reports whether there was none left.
func (s *solver) decide() (done bool, err error) {
	if err := s.tick(); err != nil {
		return false, err
	}
	for s.waiting.Len() > 0 {
		i := s.waiting.items[0]
		p := s.pkgs[i]
		if p.decided || !p.positive() {
			heap.Pop(&s.waiting)
			continue
		}
		return false, s.try(i, p.now)
	}
	// Only alternatives are left, of which none has to be there.
	for ; s.cursor < len(s.open); s.cursor++ {
		inc := s.open[s.cursor]
		if i, values := s.undecided(inc); values != nil {
			return false, s.try(i, values)
		}
	}
	return true, nil
}

// undecided returns the extension that inc should be met by, if it is not met
// and has to be, and the values of it that would do.
func (s *solver) undecided(inc *incompat) (int, set) {
	var first *term
	for n, t := range inc.needs {
		now := s.pkgs[t.pkg].now
		if now.within(t.values) {
			return 0, nil
		}
		if first == nil && now.meets(t.values) {
			first = &inc.needs[n]
		}
	}
	if inc.kind == depends && !s.pkgs[inc.pkg].now.within(inc.versions) || first == nil {
		return 0, nil
	}
	return first.pkg, s.pkgs[first.pkg].now.and(first.values)
}

// try decides for the preferred of the values, after everything that is known
// about it was taken into account.
func (s *solver) try(i int, values set) error {
	p := s.pkgs[i]
	v := values.highest()
	if p.installed > 0 && p.rank != rankNewest && values.has(p.installed) {
		v = p.installed
	}
	news, err := s.expand(i, v)
	if err != nil {
		return err
	}
	if news {
		return nil // and decide with the conclusions from it
	}
	s.level++
	p.decided = true
	if p.opened > 0 {
		s.cursor = min(s.cursor, p.opened-1)
	}
	s.assign(i, oneOf(p.values, v), nil)
	s.enqueue(i)
	return nil
}

// waiting is a heap of extensions that have to be there and have no version yet.
type waiting struct {
	s     *solver
	items []int
}

func (w *waiting) Len() int { return len(w.items) }

func (w *waiting) Swap(i, j int) {
	w.items[i], w.items[j] = w.items[j], w.items[i]
	w.s.pkgs[w.items[i]].place = i + 1
	w.s.pkgs[w.items[j]].place = j + 1
}

func (w *waiting) Push(x any) {
	w.items = append(w.items, x.(int))
	w.s.pkgs[x.(int)].place = len(w.items)
}

func (w *waiting) Less(i, j int) bool {
	a, b := w.s.pkgs[w.items[i]], w.s.pkgs[w.items[j]]
	if a.rank != b.rank {
		return a.rank < b.rank
	}
	if a.rank == rankRest && a.activity != b.activity {
		return a.activity > b.activity
	}
	return w.items[i] < w.items[j]
}

func (w *waiting) Pop() any {
	last := w.items[len(w.items)-1]
	w.items = w.items[:len(w.items)-1]
	w.s.pkgs[last].place = 0
	return last
}
