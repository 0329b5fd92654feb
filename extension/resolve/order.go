package resolve

import (
	"container/heap"
	"maps"
	"slices"
	"strings"

	"rideau/extension/depend"
)

// choices returns what was decided, without what nothing needs any more, in
// order.
func (s *solver) choices() ([]Choice, error) {
	chosen := map[string]*Choice{}
	for _, p := range s.pkgs {
		if p.decided {
			c := p.cands[p.now.highest()-1]
			chosen[p.name] = &Choice{Name: p.name, Version: c.Version, Was: s.problem.Installed[p.name].Version, Candidate: c}
		}
	}
	names := slices.Sorted(maps.Keys(chosen))
	because := s.reasons(names, chosen)

	list, err := s.installOrder(slices.DeleteFunc(slices.Clone(names), func(n string) bool { return because[n] == nil }), chosen)
	if err != nil {
		// One that nothing needs may be what lets the others be ordered.
		if list, err = s.installOrder(names, chosen); err != nil {
			return nil, err
		}
		idle := map[string]reasons{}
		for _, name := range names {
			for _, a := range chosen[name].Candidate.Depends {
				for _, m := range s.meets(a) {
					if m != name && because[m] == nil {
						if idle[m] == nil {
							idle[m] = reasons{}
						}
						idle[m][name] = true
					}
				}
			}
		}
		maps.Copy(because, idle)
	}

	var gone []string
	for _, name := range slices.Sorted(maps.Keys(s.problem.Installed)) {
		if chosen[name] == nil {
			gone = append(gone, name)
		}
	}
	var choices []Choice
	for _, name := range s.problem.removalOrder(gone) {
		choices = append(choices, Choice{Name: name, Was: s.problem.Installed[name].Version})
	}
	for _, name := range list {
		c := chosen[name]
		c.Because = slices.Sorted(maps.Keys(because[name]))
		choices = append(choices, *c)
	}
	return choices, nil
}

// reasons are names of extensions that need another, and AskedFor. They can be
// none, for what is installed.
type reasons map[string]bool

// reasons returns the reasons of all that is needed: what was asked for, what is
// installed, and what these depend on. A choice for the first of two may have
// become idle when the second had to be there as well; it has none.
func (s *solver) reasons(names []string, chosen map[string]*Choice) map[string]reasons {
	because := map[string]reasons{}
	var queue []string
	need := func(name, by string) {
		if because[name] == nil {
			because[name] = reasons{}
			queue = append(queue, name)
		}
		if by != "" && by != name {
			because[name][by] = true
		}
	}
	for _, r := range s.problem.Requests {
		if chosen[r.Relation.Name] != nil {
			need(r.Relation.Name, AskedFor)
		} else if m := s.meets(depend.Alternatives{r.Relation}); len(m) > 0 {
			need(m[0], AskedFor)
		}
	}
	for _, name := range names {
		if chosen[name].Was != "" {
			need(name, "")
		}
	}
	type wish struct {
		by   string
		from []string
	}
	var open []wish // met by several, none of which was needed when we came by
	for len(queue) > 0 || len(open) > 0 {
		if len(queue) == 0 {
			w := open[0]
			open = open[1:]
			need(w.from[max(slices.IndexFunc(w.from, func(n string) bool { return because[n] != nil }), 0)], w.by)
			continue
		}
		name := queue[0]
		queue = queue[1:]
		for _, a := range chosen[name].Candidate.Depends {
			if s.metByFact(a) {
				continue
			}
			from := s.meets(a)
			n := slices.IndexFunc(from, func(n string) bool { return because[n] != nil })
			switch {
			case n >= 0:
				need(from[n], name)
			case len(from) == 1:
				need(from[0], name)
			default:
				open = append(open, wish{name, from})
			}
		}
	}
	return because
}

// meets returns the names of those decided that meet the alternatives, the
// preferred first.
func (s *solver) meets(a depend.Alternatives) []string {
	var names []string
	for _, r := range a {
		for _, t := range s.meetings[r.String()] {
			if p := s.pkgs[t.pkg]; p.decided && p.now.within(t.values) && !slices.Contains(names, p.name) {
				names = append(names, p.name)
			}
		}
	}
	return names
}

// A graph says which nodes come before which. A node waits for one of each of
// its groups, and for all of its soft edges if that makes no circle.
type graph struct {
	groups []group
	of     [][]int // for each node, the groups that it is in
	waits  []int   // for each node, how many groups it waits for
	soft   [][]int
	softIn []int
}

// A group are nodes of which one has to come before the node to.
type group struct {
	to   int
	done bool
}

func newGraph(n int) *graph {
	return &graph{of: make([][]int, n), waits: make([]int, n), soft: make([][]int, n), softIn: make([]int, n)}
}

func (g *graph) hard(from []int, to int) {
	for _, f := range from {
		g.of[f] = append(g.of[f], len(g.groups))
	}
	g.groups = append(g.groups, group{to: to})
	g.waits[to]++
}

func (g *graph) edge(from, to int) {
	if from != to {
		g.soft[from] = append(g.soft[from], to)
		g.softIn[to]++
	}
}

// sorted returns the nodes in order, by number where that is free; fewer than
// all if the rest waits for each other.
func (g *graph) sorted() []int {
	var ready, forced intHeap // without anything to wait for; with soft edges only
	done := make([]bool, len(g.of))
	offer := func(n int) {
		switch {
		case done[n] || g.waits[n] > 0:
		case g.softIn[n] == 0:
			heap.Push(&ready, n)
		default:
			heap.Push(&forced, n)
		}
	}
	for n := range g.of {
		offer(n)
	}
	var list []int
	for len(ready)+len(forced) > 0 {
		from := &ready
		if len(ready) == 0 {
			from = &forced
		}
		n := heap.Pop(from).(int)
		if done[n] {
			continue
		}
		done[n] = true
		list = append(list, n)
		for _, i := range g.of[n] {
			if c := &g.groups[i]; !c.done {
				c.done = true
				g.waits[c.to]--
				offer(c.to)
			}
		}
		for _, to := range g.soft[n] {
			if g.softIn[to]--; g.softIn[to] == 0 {
				offer(to)
			}
		}
	}
	return list
}

// circle returns nodes that wait for each other, each before what it waits for,
// after sorted has returned fewer than all.
func (g *graph) circle() []int {
	before := make([]int, len(g.of))
	for n := range before {
		before[n] = -1
	}
	start := -1
	for n, groups := range g.of {
		for _, i := range groups {
			if c := g.groups[i]; !c.done {
				before[c.to] = n
				start = c.to
			}
		}
	}
	// All of a group that is not done are left, and each of them waits as well:
	// going on from one to the next ends in a circle.
	at := make([]int, len(g.of))
	var path []int
	for n := start; n >= 0; n = before[n] {
		if at[n] > 0 {
			return path[at[n]-1:]
		}
		path = append(path, n)
		at[n] = len(path)
	}
	return path
}

type intHeap []int

func (h intHeap) Len() int           { return len(h) }
func (h intHeap) Less(i, j int) bool { return h[i] < h[j] }
func (h intHeap) Swap(i, j int)      { h[i], h[j] = h[j], h[i] }
func (h *intHeap) Push(x any)        { *h = append(*h, x.(int)) }
func (h *intHeap) Pop() any {
	last := (*h)[len(*h)-1]
	*h = (*h)[:len(*h)-1]
	return last
}

// installOrder sorts the names so that each comes after what it depends on, and
// after those whose old version conflicts with it. What was there before, in a
// version that will do, need not come first; but it does where it can.
func (s *solver) installOrder(names []string, chosen map[string]*Choice) ([]string, error) {
	number := make(map[string]int, len(names))
	for n, name := range names {
		number[name] = n
	}
	g := newGraph(len(names))
	for n, name := range names {
		c := chosen[name].Candidate
		for _, a := range c.Depends {
			there := s.metByFact(a)
			var from []int
			for _, m := range s.meets(a) {
				i, ok := number[m]
				if !ok {
					continue
				}
				was, before := s.problem.Installed[m]
				there = there || i == n || before && slices.ContainsFunc(a, func(r depend.Relation) bool { return s.problem.meets(m, was, r) })
				from = append(from, i)
				g.edge(i, n)
			}
			if !there {
				g.hard(from, n)
			}
		}
		for _, a := range c.Conflicts {
			for _, r := range a {
				for _, t := range s.meetings[r.String()] {
					m := s.pkgs[t.pkg].name
					if i, ok := number[m]; ok && chosen[m].Was != "" {
						g.edge(i, n) // it leaves the conflict first
					}
				}
			}
		}
		if was, ok := s.problem.Installed[name]; ok {
			for _, a := range was.Conflicts {
				for _, r := range a {
					if i, ok := number[r.Name]; ok && chosen[r.Name].Was == "" {
						g.edge(n, i)
					}
				}
			}
		}
	}
	order := g.sorted()
	if len(order) < len(names) {
		e := &CycleError{}
		for _, n := range g.circle() {
			e.Names = append(e.Names, names[n])
		}
		return nil, e
	}
	sorted := make([]string, len(order))
	for i, n := range order {
		sorted[i] = names[n]
	}
	return sorted, nil
}

// removalOrder sorts names of installed extensions so that each comes before
// what it depends on, where that is possible.
func (p *Problem) removalOrder(names []string) []string {
	names = slices.Clone(names)
	slices.SortFunc(names, strings.Compare)
	g := newGraph(len(names))
	// Who can stand for a name, so that relations need not be tried on all.
	by := map[string][]int{}
	for n, name := range names {
		by[name] = append(by[name], n)
		for _, pr := range p.Installed[name].Provides {
			by[pr.Name] = append(by[pr.Name], n)
		}
	}
	for n, name := range names {
		for _, a := range p.Installed[name].Depends {
			for _, r := range a {
				for _, m := range by[r.Name] {
					if p.meets(names[m], p.Installed[names[m]], r) {
						g.edge(n, m)
					}
				}
			}
		}
	}
	var sorted []string
	for _, n := range g.sorted() {
		sorted = append(sorted, names[n])
	}
	return sorted
}
