package depend_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rideau/extension/depend"
)

func TestCompare(t *testing.T) {
	t.Parallel()
	tests := []struct {
		a    string
		want string
		b    string
		why  string
	}{
		{"1.0", "=", "1.0", "the same"},
		{"1.0", "=", "1.00", "parts are numbers"},
		{"1.06", "=", "1.6", "parts are numbers: only an update script knows better"},
		{"1.06", ">", "1.1", "the same; see TestOrder"},
		{"2.10", ">", "2.9", "parts are numbers"},
		{"1.0", "<", "1.0.1", "what is longer is later"},
		{"1", "<", "1.0", "what is longer is later"},
		{"9.6.24", "<", "10", "parts are numbers"},
		{"20240101", "<", "20240102", "dates"},
		{"99999999999999999999998", "<", "99999999999999999999999", "numbers have any length"},
		{"1.4", "<", "1.4-1", "what follows - is a revision of the release"},
		{"1.4-1", "<", "1.4-2", "revisions"},
		{"1.4-2", "<", "1.4.1", "the release counts before the revision"},
		{"1.4-9", "<", "1.4-10", "revisions are numbers"},
		{"0.1.0a4", "<", "0.1.0", "an alpha, as Python writes it"},
		{"0.1.0a4", "<", "0.1.0a10", "alphas are numbered"},
		{"0.1.0a4", "=", "0.1.0-alpha4", "a is alpha"},
		{"0.1.0a4", "<", "0.1.0b1", "alpha before beta"},
		{"0.0.9", "<", "0.1.0a4", "an alpha is after the release before"},
		{"1.0-beta", "<", "1.0", "a beta, as SemVer writes it"},
		{"1.0-beta", "=", "1.0beta", "with and without separator"},
		{"1.0.beta.1", "<", "1.0", "as RubyGems writes it"},
		{"1.0-beta.2", "<", "1.0-beta.11", "betas are numbered"},
		{"1.0_rc1", "<", "1.0", "a candidate"},
		{"1.0-RC1", "=", "1.0rc1", "whatever the case"},
		{"1.0-beta2", "<", "1.0-rc1", "beta before candidate"},
		{"1.0-pre1", "<", "1.0-rc1", "pre before candidate"},
		{"1.0-rc1-1", "<", "1.0-rc1-2", "a candidate has revisions, too"},
		{"1.0-rc1-1", "<", "1.0", "and is still a candidate"},
		{"1.0~rc1", "=", "1.0rc1", "as Debian writes it"},
		{"3.6.0dev", "<", "3.6.0", "PostGIS"},
		{"3.6.0dev", "<", "3.6.0alpha1", "development comes before tests"},
		{"19devel", "<", "19beta1", "PostgreSQL itself"},
		{"19beta1", "<", "19rc1", "PostgreSQL itself"},
		{"19rc1", "<", "19.0", "PostgreSQL itself"},
		{"18.4", "<", "19devel", "PostgreSQL itself"},
		{"1.0.2a", ">", "1.0.2", "a letter without a number is a patch"},
		{"1.0.2a", "<", "1.0.2b", "patches in order"},
		{"1.0.2", "<", "1.0.2patch1", "a word that is no pre-release comes after"},
		{"1.0-release", ">", "1.0", "not a candidate"},
		{"1.0prefix", ">", "1.0", "not a pre-release"},
		{"beta", ">", "1.0", "only after a digit"},
		{"1.0+git3", ">", "1.0", "a build after the release"},
		{"1:1.0", ">", "2.0", "an epoch"},
		{"0:1.0", "=", "1.0", "no epoch is 0"},
		{"unpackaged", ">", "1.0", "a word"},
	}
	for _, tt := range tests {
		got := sign(depend.Compare(tt.a, tt.b))
		if got != tt.want {
			t.Errorf("%s %s %s, want %s %s %s: %s", tt.a, got, tt.b, tt.a, tt.want, tt.b, tt.why)
		}
		if back := sign(depend.Compare(tt.b, tt.a)); back != map[string]string{"<": ">", ">": "<", "=": "="}[got] {
			t.Errorf("%s %s %s, but %s %s %s", tt.a, got, tt.b, tt.b, back, tt.a)
		}
	}
}

func sign(c int) string {
	switch {
	case c < 0:
		return "<"
	case c > 0:
		return ">"
	}
	return "="
}

// versions draws words that look like versions more often than not.
func versions() *rapid.Generator[string] {
	part := rapid.SampledFrom([]string{
		"0", "1", "2", "10", "01", "007", ".", "-", "~", "+", "_", ":", "a", "b", "rc", "alpha", "beta", "dev", "devel",
		"pre", "RC", "x", "é", "18446744073709551616",
	})
	return rapid.Map(rapid.SliceOfN(part, 0, 6), func(p []string) string { return strings.Join(p, "") })
}

func TestCompareIsAnOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		a, b, c := versions().Draw(t, "a"), versions().Draw(t, "b"), versions().Draw(t, "c")
		checkOrder(t, depend.Compare, a, b, c)
	})
}

// checkOrder checks what makes compare a total order of classes of equal ones.
func checkOrder(t *rapid.T, compare func(a, b string) int, a, b, c string) {
	if compare(a, a) != 0 {
		t.Fatalf("%q differs from itself", a)
	}
	if sign(compare(a, b)) != sign(-compare(b, a)) {
		t.Fatalf("%q and %q: %d one way, %d the other", a, b, compare(a, b), compare(b, a))
	}
	if compare(a, b) <= 0 && compare(b, c) <= 0 && compare(a, c) > 0 {
		t.Fatalf("%q <= %q <= %q, but %q > %q", a, b, c, a, c)
	}
	if compare(a, b) == 0 && sign(compare(a, c)) != sign(compare(b, c)) {
		t.Fatalf("%q = %q, but they differ in their place relative to %q", a, b, c)
	}
}

func TestOrder(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name     string
		versions string
		edges    string
		want     string // lowest first, with < and =
	}{
		{"no scripts", "1.10 1.9 1.0", "", "1.0 < 1.9 < 1.10"},
		{"scripts agree", "1.10 1.9 1.0", "1.0>1.9 1.9>1.10", "1.0 < 1.9 < 1.10"},
		{"1.06 came before 1.1: a script says so", "1.0 1.06 1.1", "1.0>1.06 1.06>1.1", "1.0 < 1.06 < 1.1"},
		{"and goes below all that follows 1.1, scripts or not", "1.06 1.1 1.2 1.3", "1.06>1.1", "1.06 < 1.1 < 1.2 < 1.3"},
		{"a path counts as a script", "1.6 1.1 1.2", "1.6>1.2 1.2>1.1", "1.6 < 1.2 < 1.1"},
		{"over versions that are no longer there", "1.6 1.1", "1.6>lost lost>1.1", "1.6 < 1.1"},
		{"a script back: nothing is proven", "1.6 1.1", "1.6>1.1 1.1>1.6", "1.1 < 1.6"},
		{"a path back: nothing is proven", "3 2 1", "3>1 1>2 2>3", "1 < 2 < 3"},
		{"a circle does not stay together", "3 2.5 2 1", "3>1 1>2 2>3", "1 < 2 < 2.5 < 3"},
		{"all of a circle is before what a script of one leads to", "5 4 3 2", "4>5 5>4 5>2", "4 < 5 < 2 < 3"},
		{"spellings", "1.0 1.00 1.1", "", "1.0 = 1.00 < 1.1"},
		{"a script makes spellings versions", "1.0 1.00 1.1", "1.00>1.0", "1.00 < 1.0 < 1.1"},
		{"and each third one, too", "1.0 1.00 1.000", "1.00>1.0 1.000>1.0", "1.00 = 1.000 < 1.0"},
		{"a script to itself", "1.0 1.1", "1.0>1.0", "1.0 < 1.1"},
		{"a version given twice", "1.0 1.0", "", "1.0"},
		{"words", "unpackaged 1.0", "unpackaged>1.0", "unpackaged < 1.0"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := depend.NewOrder(strings.Fields(tt.versions), edges(tt.edges))
			var got strings.Builder
			sorted := o.Sorted()
			for i, v := range sorted {
				if i > 0 {
					got.WriteString(" " + sign(o.Compare(sorted[i-1], v)) + " ")
				}
				got.WriteString(v)
			}
			if got.String() != tt.want {
				t.Errorf("got %s, want %s", got.String(), tt.want)
			}
		})
	}
}

func edges(text string) []depend.Edge {
	var list []depend.Edge
	for _, e := range strings.Fields(text) {
		from, to, _ := strings.Cut(e, ">")
		list = append(list, depend.Edge{From: from, To: to})
	}
	return list
}

// A nil Order is Compare, and so is one for versions that it does not know.
func TestOrderOfStrangers(t *testing.T) {
	t.Parallel()
	o := depend.NewOrder([]string{"1.6", "1.1"}, edges("1.6>1.1"))
	if o.Compare("1.6", "1.1") >= 0 {
		t.Error("the script from 1.6 to 1.1 is not believed")
	}
	if o.Compare("1.6", "1.2") <= 0 || o.Compare("1.0", "1.00") != 0 {
		t.Error("versions that the Order does not know are not compared by Compare")
	}
	var none *depend.Order
	if none.Compare("1.6", "1.1") <= 0 || none.Sorted() != nil {
		t.Error("a nil Order is not Compare")
	}
}

// TestOrderIsAnOrder checks, on random scripts, that the result is total, that
// scripts without a way back are believed, and that spellings are the only ties.
func TestOrderIsAnOrder(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		known := rapid.SliceOfN(rapid.SampledFrom(strings.Fields("1.0 1.00 1.06 1.6 1.1 1.2 1.2-beta 2 2.0 3.1a 0.1")), 1, 8).Draw(t, "versions")
		one := rapid.SampledFrom(known)
		scripts := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) depend.Edge {
			return depend.Edge{From: one.Draw(t, "from"), To: one.Draw(t, "to")}
		}), 0, 10).Draw(t, "edges")
		o := depend.NewOrder(known, scripts)

		a, b, c := one.Draw(t, "a"), one.Draw(t, "b"), one.Draw(t, "c")
		checkOrder(t, o.Compare, a, b, c)
		if reaches(scripts, a, b) && !reaches(scripts, b, a) && o.Compare(a, b) >= 0 {
			t.Fatalf("scripts lead from %s to %s and not back, but it is not the older", a, b)
		}
		if o.Compare(a, b) == 0 && depend.Compare(a, b) != 0 {
			t.Fatalf("%s = %s", a, b)
		}
		if len(scripts) == 0 && sign(o.Compare(a, b)) != sign(depend.Compare(a, b)) {
			t.Fatalf("without scripts, %s and %s are not in the order of Compare", a, b)
		}
		sorted := o.Sorted()
		if !slices.IsSortedFunc(sorted, o.Compare) {
			t.Fatalf("not sorted: %v", sorted)
		}
		for _, v := range known {
			if !slices.Contains(sorted, v) {
				t.Fatalf("%s is missing from %v", v, sorted)
			}
		}
	})
}

func reaches(scripts []depend.Edge, from, to string) bool {
	seen := map[string]bool{from: true}
	for queue := []string{from}; len(queue) > 0; queue = queue[1:] {
		for _, e := range scripts {
			if e.From == queue[0] && !seen[e.To] {
				seen[e.To] = true
				queue = append(queue, e.To)
			}
		}
	}
	return from != to && seen[to]
}

// A version far down a chain of scripts must not take a stack frame each.
func TestOrderOfALongChain(t *testing.T) {
	t.Parallel()
	const n = 50_000
	known := make([]string, n)
	scripts := make([]depend.Edge, 0, n)
	for i := range known {
		known[i] = fmt.Sprintf("1.%d", n-i) // each leads to one that looks older
		if i > 0 {
			scripts = append(scripts, depend.Edge{From: known[i-1], To: known[i]})
		}
	}
	o := depend.NewOrder(known, scripts)
	if !slices.Equal(o.Sorted(), known) {
		t.Error("the chain was not followed")
	}
}

func BenchmarkNewOrder1000(b *testing.B) {
	r := rand.New(rand.NewPCG(1, 2))
	var known []string
	var scripts []depend.Edge
	for i := range 1000 {
		known = append(known, fmt.Sprintf("%d.%d.%d", i/100, i/10%10, i%10))
		if i > 0 {
			scripts = append(scripts, depend.Edge{From: known[i-1], To: known[i]}, depend.Edge{From: known[r.IntN(i)], To: known[i]})
		}
	}
	r.Shuffle(len(known), func(i, j int) { known[i], known[j] = known[j], known[i] })
	for b.Loop() {
		depend.NewOrder(known, scripts)
	}
}

// How far a mistyped name is from a known one.
func TestDistance(t *testing.T) {
	for _, tt := range []struct {
		a, b string
		want int
	}{{"foo", "foo", 0}, {"foo", "fo", 1}, {"hstore", "hstroe", 2}, {"", "ab", 2}, {"kitten", "sitting", 3}} {
		if got := depend.Distance(tt.a, tt.b); got != tt.want {
			t.Errorf("%q to %q: %d, want %d", tt.a, tt.b, got, tt.want)
		}
	}
}

// What is known under a name like the one that was typed, the nearest first.
func TestNear(t *testing.T) {
	known := []string{"foo", "food", "hstore", "hstore_plperl", "pgq", "x"}
	for name, want := range map[string]string{
		"FOO":    "foo food", // names are case-sensitive
		"foo":    "food",     // itself is no other
		"hstroe": "hstore",
		"HStore": "hstore",
		"y":      "", // all of it is another letter
		"nobody": "",
	} {
		if got := strings.Join(depend.Near(name, known), " "); got != want {
			t.Errorf("near %s are %q, want %q", name, got, want)
		}
	}
}
