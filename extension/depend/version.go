package depend

import (
	"cmp"
	"slices"
	"strings"
)

// Compare returns a negative number when a is the older version, positive when
// b is, and 0 when they are spellings of the same one, such as 1.0 and 1.00.
//
// The order is Debian's (deb-version(7)): digits compare as numbers, letters
// come before other characters, "~" before anything and even before the end,
// what follows the last "-" is a revision, and "1:" in front is an epoch. In
// addition a pre-release, which Debian would take for something that was added
// to the release, comes before it: dev, devel, alpha, beta, pre and rc, and a
// and b when a number follows, are pre-releases when they stand after a digit,
// with or without one of ". - _ ~" between: 1.0-beta < 1.0, 0.1.0a4 < 0.1.0,
// 19devel < 19beta1 < 19rc1 < 19.
//
// The order of two versions of one extension may be better known: see [Order].
func Compare(a, b string) int {
	return makeKey(a).compare(makeKey(b))
}

// A versionKey is a version taken apart for comparison.
type versionKey struct {
	epoch    string // digits
	upstream string // pre-releases rewritten
	revision string
}

func makeKey(v string) versionKey {
	var k versionKey
	if i := digits(v, 0); i > 0 && i < len(v) && v[i] == ':' {
		k.epoch, v = v[:i], v[i+1:]
	}
	v = rewritePreRelease(v)
	k.upstream = v
	if i := strings.LastIndexByte(v, '-'); i >= 0 {
		k.upstream, k.revision = v[:i], v[i+1:]
	}
	return k
}

func (k versionKey) compare(l versionKey) int {
	if c := compareNumbers(k.epoch, l.epoch); c != 0 {
		return c
	}
	if c := comparePart(k.upstream, l.upstream); c != 0 {
		return c
	}
	return comparePart(k.revision, l.revision)
}

// preReleases are the words that announce a release, and what they become. The
// longer of two that begin alike comes first. Development comes before all
// tests of what was developed, as it does for PostgreSQL itself.
var preReleases = []struct{ word, becomes string }{
	{"alpha", "~alpha"}, {"a", "~alpha"},
	{"beta", "~beta"}, {"b", "~beta"},
	{"devel", "~~dev"}, {"dev", "~~dev"},
	{"pre", "~pre"},
	{"rc", "~rc"},
}

// rewritePreRelease puts "~" before words that announce a release: 1.0-beta2
// becomes 1.0~beta2.
func rewritePreRelease(v string) string {
	var out strings.Builder
	copied := 0
	for i := 1; i < len(v); i++ {
		if !isDigit(v[i-1]) {
			continue
		}
		start := i
		if strings.IndexByte(".-_~", v[i]) >= 0 {
			start++
		}
		for _, p := range preReleases {
			end := start + len(p.word)
			if end > len(v) || !strings.EqualFold(v[start:end], p.word) {
				continue
			}
			if end < len(v) && isLetter(v[end]) {
				continue // the beginning of another word
			}
			if len(p.word) == 1 && !numberAt(v, end) {
				continue // 1.0.2a came after 1.0.2
			}
			out.WriteString(v[copied:i])
			out.WriteString(p.becomes)
			copied = end
			i = end - 1
			break
		}
	}
	if copied == 0 {
		return v
	}
	out.WriteString(v[copied:])
	return out.String()
}

// numberAt reports whether digits stand at v[i:], or after one separator.
func numberAt(v string, i int) bool {
	if i < len(v) && strings.IndexByte(".-_", v[i]) >= 0 {
		i++
	}
	return i < len(v) && isDigit(v[i])
}

// comparePart is Debian's verrevcmp: stretches without digits and numbers in
// turn.
func comparePart(a, b string) int {
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		for i < len(a) && !isDigit(a[i]) || j < len(b) && !isDigit(b[j]) {
			if c := cmp.Compare(weight(a, i), weight(b, j)); c != 0 {
				return c
			}
			// Equal weights: both stand at the same character, none at a number
			// or an end, because those weigh 0 and nothing else does.
			i++
			j++
		}
		iEnd, jEnd := digits(a, i), digits(b, j)
		if c := compareNumbers(a[i:iEnd], b[j:jEnd]); c != 0 {
			return c
		}
		i, j = iEnd, jEnd
	}
	return 0
}

// weight is the place of the character at s[i] among others: "~", then a number
// or the end, then letters, then the rest.
func weight(s string, i int) int {
	switch {
	case i >= len(s) || isDigit(s[i]):
		return 0
	case s[i] == '~':
		return -1
	case isLetter(s[i]):
		return int(s[i]) + 1
	default:
		return int(s[i]) + 257
	}
}

// digits returns the end of the digits that begin at s[i].
func digits(s string, i int) int {
	for i < len(s) && isDigit(s[i]) {
		i++
	}
	return i
}

// compareNumbers compares numbers of any length; none is 0.
func compareNumbers(a, b string) int {
	a, b = strings.TrimLeft(a, "0"), strings.TrimLeft(b, "0")
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return cmp.Compare(a, b)
}

func isDigit(c byte) bool  { return '0' <= c && c <= '9' }
func isLetter(c byte) bool { return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' }

// An Edge is an update script: it leads from one version to another.
type Edge struct{ From, To string }

// An Order is the order of the versions of one extension, by what its update
// scripts prove and by [Compare] for the rest. The nil *Order is Compare alone.
// It does not change once made, and may be shared.
type Order struct {
	rank   map[string]int // equal: the same version, spelt in two ways
	sorted []string       // lowest first: what NewOrder was given, each once
}

// NewOrder returns the order of versions: a is before b if edges lead from a to
// b, over however many steps, and none lead back. What that leaves open goes by
// Compare; a version that has to be elsewhere is the older end of an edge, which
// goes down to just before the newer one.
//
// Edges may name versions that are not in the list. It takes O((V+E) log V).
func NewOrder(versions []string, edges []Edge) *Order {
	given := make(map[string]bool, len(versions))
	var nodes []node
	add := func(v string) {
		if _, ok := given[v]; !ok {
			given[v] = false
			nodes = append(nodes, node{version: v, key: makeKey(v)})
		}
	}
	for _, v := range versions {
		add(v)
		given[v] = true
	}
	for _, e := range edges {
		add(e.From)
		add(e.To)
	}
	slices.SortFunc(nodes, func(a, b node) int {
		if c := a.key.compare(b.key); c != 0 {
			return c
		}
		return cmp.Compare(a.version, b.version)
	})

	o := &Order{rank: make(map[string]int, len(nodes))}
	line, before := arrange(nodes, edges)
	var run map[int]bool // groups of the versions that have the current rank
	for i, n := range line {
		same := i > 0 && nodes[line[i-1]].key.compare(nodes[n].key) == 0
		for _, g := range before[nodes[n].group] {
			// Whatever leads from one of the run to this one leads over nothing
			// else than versions of the run, so the last step tells.
			same = same && !run[g]
		}
		switch {
		case i == 0:
			o.rank[nodes[n].version] = 0
		case same:
			o.rank[nodes[n].version] = o.rank[nodes[line[i-1]].version]
		default:
			o.rank[nodes[n].version] = o.rank[nodes[line[i-1]].version] + 1
		}
		if !same {
			run = map[int]bool{}
		}
		run[nodes[n].group] = true
		if given[nodes[n].version] {
			o.sorted = append(o.sorted, nodes[n].version)
		}
	}
	return o
}

// Compare is as the function [Compare], for the versions of o; a version that o
// does not know is compared by the function.
func (o *Order) Compare(a, b string) int {
	if o != nil {
		i, ok := o.rank[a]
		j, known := o.rank[b]
		if ok && known {
			return cmp.Compare(i, j)
		}
	}
	return Compare(a, b)
}

// Sorted returns the versions that the Order was made of, each once, lowest
// first. The slice is the caller's.
func (o *Order) Sorted() []string {
	if o == nil {
		return nil
	}
	return slices.Clone(o.sorted)
}

// A node is a version while an Order is made. Nodes are sorted by Compare, and
// called by their index.
type node struct {
	version string
	key     versionKey
	group   int // versions with a path both ways are one group
}

// arrange returns the nodes in order, sets their group, and returns for each
// group the ones that edges come from.
func arrange(nodes []node, edges []Edge) (line []int, before [][]int) {
	index := make(map[string]int, len(nodes))
	for i, n := range nodes {
		index[n.version] = i
	}
	next := make([][]int, len(nodes))
	for _, e := range edges {
		from, to := index[e.From], index[e.To]
		if from != to {
			next[from] = append(next[from], to)
		}
	}
	members := groups(nodes, next)
	before = make([][]int, len(members))
	for from, tos := range next {
		for _, to := range tos {
			f, t := nodes[from].group, nodes[to].group
			if f != t {
				before[t] = append(before[t], f)
			}
		}
	}
	// Where edges come from several groups, the one with the oldest version is
	// first.
	for g := range before {
		slices.SortFunc(before[g], func(a, b int) int { return cmp.Compare(members[a][0], members[b][0]) })
		before[g] = slices.Compact(before[g])
	}

	// Oldest first, and each after all of the groups that lead to its own. The
	// members of a group need not stay together.
	const (
		fresh   = iota // nothing done
		opened         // the groups before are being placed
		reached        // the groups before are placed
		placed         // its members are, too
	)
	state := make([]int, len(members))
	done := make([]bool, len(nodes))
	place := func(n int) {
		if !done[n] {
			done[n] = true
			line = append(line, n)
		}
	}
	type task struct {
		group   int
		members bool // place the members as well
	}
	var stack []task
	for n := range nodes {
		stack = append(stack[:0], task{nodes[n].group, false})
		for len(stack) > 0 {
			t := stack[len(stack)-1]
			switch {
			case state[t.group] == fresh:
				state[t.group] = opened
				for _, b := range slices.Backward(before[t.group]) {
					if state[b] != placed {
						stack = append(stack, task{b, true})
					}
				}
				continue
			case state[t.group] == opened:
				state[t.group] = reached
			}
			stack = stack[:len(stack)-1]
			if t.members && state[t.group] != placed {
				state[t.group] = placed
				for _, m := range members[t.group] {
					place(m)
				}
			}
		}
		place(n)
	}
	return line, before
}

// groups finds the strongly connected components (Tarjan's algorithm, with a
// stack of our own), sets them in nodes and returns the members of each, sorted.
func groups(nodes []node, next [][]int) [][]int {
	const none = -1
	number := make([]int, len(nodes)) // the order of discovery, from 1
	low := make([]int, len(nodes))
	for i := range nodes {
		nodes[i].group = none
	}
	type frame struct{ node, edge int }
	var frames []frame
	var open []int
	var members [][]int
	count := 0
	for root := range nodes {
		if number[root] != 0 {
			continue
		}
		frames = append(frames, frame{root, 0})
		for len(frames) > 0 {
			f := &frames[len(frames)-1]
			n := f.node
			if f.edge == 0 {
				count++
				number[n], low[n] = count, count
				open = append(open, n)
			}
			if f.edge < len(next[n]) {
				to := next[n][f.edge]
				f.edge++
				if number[to] == 0 {
					frames = append(frames, frame{to, 0})
				} else if nodes[to].group == none {
					low[n] = min(low[n], number[to])
				}
				continue
			}
			frames = frames[:len(frames)-1]
			if len(frames) > 0 {
				parent := frames[len(frames)-1].node
				low[parent] = min(low[parent], low[n])
			}
			if low[n] != number[n] {
				continue
			}
			var group []int
			for {
				m := open[len(open)-1]
				open = open[:len(open)-1]
				nodes[m].group = len(members)
				group = append(group, m)
				if m == n {
					break
				}
			}
			slices.Sort(group)
			members = append(members, group)
		}
	}
	return members
}
