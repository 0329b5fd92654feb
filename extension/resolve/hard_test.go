package resolve

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"

	"rideau/extension/depend"
)

// pigeons asks for n+1 extensions of which each must sit on one of n holes, and
// no two on the same: what resolution is known to be bad at.
func pigeons(n int) *Problem {
	source := newShelf()
	p := &Problem{Source: source}
	for i := range n + 1 {
		name := fmt.Sprintf("pigeon%d", i)
		for hole := range n {
			c := Candidate{Version: fmt.Sprint(hole)}
			for other := range i {
				c.Conflicts = append(c.Conflicts, depend.Alternatives{{Name: fmt.Sprintf("pigeon%d", other), Range: depend.Range{{Op: "=", Version: c.Version}}}})
			}
			source.add(name, c)
		}
		p.Requests = append(p.Requests, Request{Relation: depend.Relation{Name: name}})
	}
	return p
}

func TestPigeons(t *testing.T) {
	_, err := Resolve(t.Context(), pigeons(5))
	var u *Unsolvable
	if !errors.As(err, &u) {
		t.Fatalf("got %v, want that it cannot be", err)
	}
	checkDerivation(t, u)
}

// What is too hard ends with an error, after a time and with memory that are
// bounded.
func TestTooHard(t *testing.T) {
	_, err := solve(t.Context(), pigeons(12), 2000)
	if !errors.Is(err, ErrTooHard) {
		t.Errorf("got %v, want %v", err, ErrTooHard)
	}
}

// ladder is the case that backtracking in order takes exponential time for: each
// of n extensions has m versions that only differ in what does not matter, and
// at the very end there is one that cannot be.
func ladder(n, m int, works bool) *Problem {
	source := newShelf()
	for i := range n {
		for v := range m {
			next := depend.Relation{Name: fmt.Sprintf("step%d", i+1)}
			free := depend.Relation{Name: fmt.Sprintf("free%d", i), Range: depend.Range{{Op: "<=", Version: fmt.Sprint(v)}}}
			source.add(fmt.Sprintf("step%d", i), Candidate{Version: fmt.Sprint(v), Depends: depend.List{{next}, {free}}})
			source.add(fmt.Sprintf("free%d", i), Candidate{Version: fmt.Sprint(v)})
		}
	}
	last := Candidate{Version: "1"}
	if !works {
		last.Depends = depend.List{{{Name: "lost"}}}
	}
	source.add(fmt.Sprintf("step%d", n), last)
	return &Problem{Source: source, Requests: []Request{{Relation: depend.Relation{Name: "step0"}}}}
}

func TestLadder(t *testing.T) {
	if _, err := Resolve(t.Context(), ladder(300, 10, true)); err != nil {
		t.Error(err)
	}
	_, err := Resolve(t.Context(), ladder(300, 10, false))
	var u *Unsolvable
	if !errors.As(err, &u) {
		t.Fatalf("got %v, want that it cannot be", err)
	}
	if s := u.solver; s.learned > 2000 {
		t.Errorf("%d incompatibilities had to be learned", s.learned)
	}
}

// A chain as long as this must not take a stack frame each, nor quadratic time.
func TestLongChain(t *testing.T) {
	choices, err := Resolve(t.Context(), ladder(20_000, 1, true))
	if err != nil || len(choices) != 40_001 || choices[len(choices)-1].Name != "step0" {
		t.Errorf("got %d choices, %v", len(choices), err)
	}
	_, err = Resolve(t.Context(), ladder(20_000, 1, false))
	var u *Unsolvable
	if !errors.As(err, &u) || u.Explain() == "" {
		t.Errorf("got %v, want that it cannot be", err)
	}
}

// squeeze has n extensions with m versions each of which wants its neighbour to
// be of the same version or one less, and a last one that only fits 0.
func TestSqueeze(t *testing.T) {
	const n, m = 30, 30
	source := newShelf()
	for i := range n {
		for v := range m {
			c := Candidate{Version: fmt.Sprint(v)}
			if i < n-1 {
				c.Depends = depend.List{{{Name: fmt.Sprintf("s%d", i+1), Range: depend.Range{{Op: ">=", Version: fmt.Sprint(v)}}}}}
			} else if v > 0 {
				c.Depends = depend.List{{{Name: "lost"}}}
			}
			source.add(fmt.Sprintf("s%d", i), c)
		}
	}
	choices, err := Resolve(t.Context(), &Problem{Source: source, Requests: []Request{{Relation: depend.Relation{Name: "s0"}}}})
	if err != nil || len(choices) != n {
		t.Fatalf("got %v, %v", choices, err)
	}
	for _, c := range choices {
		if c.Version != "0" {
			t.Errorf("%s %s", c.Name, c.Version)
		}
	}
}

// world has 10,000 extensions with 10 versions each.
func world(seed uint64) *shelf {
	r := rand.New(rand.NewPCG(seed, 0))
	source := newShelf()
	const packages, versions = 10_000, 10
	for i := range packages {
		for v := range versions {
			c := Candidate{Version: fmt.Sprintf("%d.%d", v/3, v%3), From: "registry X"}
			c.Depends = append(c.Depends, depend.Alternatives{{Name: Postgres, Range: depend.Range{{Op: ">=", Version: fmt.Sprint(10 + v/2)}}}})
			for range r.IntN(4) {
				if i == 0 {
					break
				}
				d := depend.Relation{Name: fmt.Sprintf("ext%d", r.IntN(i))}
				if w := r.IntN(versions); r.IntN(2) == 0 {
					d.Range = depend.Range{{Op: ">=", Version: fmt.Sprintf("%d.%d", w/6, w%3)}}
				}
				c.Depends = append(c.Depends, depend.Alternatives{d})
			}
			if r.IntN(20) == 0 {
				c.Conflicts = depend.List{{{Name: fmt.Sprintf("ext%d", r.IntN(packages)), Range: depend.Range{{Op: "<", Version: "1.0"}}}}}
			}
			source.add(fmt.Sprintf("ext%d", i), c)
		}
	}
	return source
}

func benchmark(b *testing.B, names ...string) {
	source := world(1)
	p := &Problem{
		Source:    source,
		Installed: map[string]Candidate{Postgres: {Version: "14.23"}},
		Held:      map[string]string{Postgres: "the server"},
	}
	for _, name := range names {
		p.Requests = append(p.Requests, Request{Relation: depend.Relation{Name: name}})
	}
	b.ReportAllocs()
	var choices []Choice
	for b.Loop() {
		source.asked = 0
		var err error
		if choices, err = Resolve(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(len(choices)), "chosen")
	b.ReportMetric(float64(source.asked), "asked")
}

// 10,000 extensions with 100,000 versions are known, and one is asked for.
func BenchmarkOneOf10000(b *testing.B) { benchmark(b, "ext9999") }

// The same, and all of them are asked for.
func BenchmarkAllOf10000(b *testing.B) {
	var names []string
	for i := range 10_000 {
		names = append(names, fmt.Sprintf("ext%d", i))
	}
	benchmark(b, names...)
}

func BenchmarkPigeons6(b *testing.B) {
	for b.Loop() {
		var u *Unsolvable
		if _, err := Resolve(b.Context(), pigeons(6)); !errors.As(err, &u) {
			b.Fatal(err)
		}
	}
}
