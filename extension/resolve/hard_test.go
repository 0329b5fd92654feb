package resolve

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
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
	t.Parallel()
	_, err := Resolve(t.Context(), pigeons(5))
	var u *Unsolvable
	if !errors.As(err, &u) {
		t.Fatalf("got %v, want that it cannot be", err)
	}
	checkDerivation(t, u)
	// The proof is too long for people; its facts are not.
	if text := u.Explain(); !strings.HasPrefix(text, "These cannot all hold:\n- ") || strings.Count(text, "\n") > maxLines+3 {
		t.Errorf("the explanation is\n%s", text)
	}
	if want := "no combination of them works: pigeon0, pigeon1, pigeon2, pigeon3, pigeon4 and pigeon5 cannot be installed together"; err.Error() != want {
		t.Errorf("the error is %q, want %q", err, want)
	}
}

// What is too hard ends with an error, after a time and with memory that are
// bounded.
func TestTooHard(t *testing.T) {
	t.Parallel()
	_, err := solve(t.Context(), pigeons(12), effort{learned: 2000})
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
	t.Parallel()
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
	t.Parallel()
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

// TestSqueeze has n extensions with m versions each of which wants its neighbour to
// be of the same version or later, and a last one that works as 0 only: each
// newer version has to be found not to work.
func TestSqueeze(t *testing.T) {
	t.Parallel()
	const n, m = 10, 150 // more versions than a word has bits
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

// TestWorld asks for several of 10,000 extensions at a time. What is chosen is
// valid, and the Source is asked for no more than what is in reach.
func TestWorld(t *testing.T) {
	t.Parallel()
	source := world(2)
	found, refused := 0, 0
	for i := range 40 {
		p := &Problem{
			Source:    source,
			Installed: map[string]Candidate{Postgres: {Version: "13.23"}},
			Held:      map[string]string{Postgres: "the server"},
		}
		for n := range 1 + i%4 {
			r := depend.Relation{Name: fmt.Sprintf("ext%d", 9999-17*i-n)}
			if v := i % 10; n == 0 {
				r.Range = depend.Range{{Op: depend.Equal, Version: fmt.Sprintf("%d.%d", v/3, v%3)}}
			}
			p.Requests = append(p.Requests, Request{Relation: r})
		}
		source.asked = 0
		choices, err := Resolve(t.Context(), p)
		if source.asked > 2000 {
			t.Errorf("the Source was asked for %d names", source.asked)
		}
		var u *Unsolvable
		if errors.As(err, &u) {
			refused++
			checkDerivation(t, u)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		found++
		w := possible{}
		for _, c := range choices {
			w[c.Name] = c.Candidate
		}
		if why := wrong(p, w); why != "" {
			t.Errorf("what was chosen for %v is not valid: %s", p.Requests, why)
		}
	}
	if found == 0 || refused == 0 {
		t.Errorf("%d were found and %d refused: the world is too easy or too hard", found, refused)
	}
}

// Random clauses of three, as many as are hardest: extensions are variables, two
// versions are true and false, and a last one depends on all clauses.
func TestClauses(t *testing.T) {
	t.Parallel()
	const variables, clauses = 40, 170
	found, refused := 0, 0
	for seed := range uint64(30) {
		r := rand.New(rand.NewPCG(seed, 0))
		source := newShelf()
		all := Candidate{Version: "1"}
		for range clauses {
			var a depend.Alternatives
			for range 3 {
				a = append(a, depend.Relation{
					Name:  fmt.Sprintf("x%d", r.IntN(variables)),
					Range: depend.Range{{Op: depend.Equal, Version: fmt.Sprint(r.IntN(2))}},
				})
			}
			all.Depends = append(all.Depends, a)
		}
		source.add("all", all)
		for i := range variables {
			source.add(fmt.Sprintf("x%d", i), Candidate{Version: "0"})
			source.add(fmt.Sprintf("x%d", i), Candidate{Version: "1"})
		}
		p := &Problem{Source: source, Requests: []Request{{Relation: depend.Relation{Name: "all"}}}}
		choices, err := Resolve(t.Context(), p)
		var u *Unsolvable
		switch {
		case err == nil:
			found++
			w := possible{}
			for _, c := range choices {
				w[c.Name] = c.Candidate
			}
			if why := wrong(p, w); why != "" {
				t.Errorf("seed %d: not valid: %s", seed, why)
			}
		case errors.As(err, &u):
			refused++
			checkDerivation(t, u)
		default:
			t.Errorf("seed %d: %v", seed, err)
		}
	}
	if found == 0 || refused == 0 {
		t.Errorf("%d could be met and %d not: too easy or too hard", found, refused)
	}
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
