package resolve

import (
	"context"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"rideau/extension/depend"
)

var update = flag.Bool("update", false, "write what is chosen into the scenes")

// TestScenes reads scenes from testdata: what is known, installed and asked for,
// a line of dashes, and what becomes of it. If one fails, run with -update and
// read the difference: it is a change in what happens to people's databases.
func TestScenes(t *testing.T) {
	t.Parallel()
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenes: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scenes := strings.Split(strings.TrimSpace(string(text)), "\n\n")
		for i, scene := range scenes {
			given, want, ok := strings.Cut(scene, "\n----")
			if !ok {
				t.Fatalf("%s: no line of dashes in\n%s", file, scene)
			}
			got := play(t, given)
			if want = strings.TrimSpace(want); got != want && !*update {
				t.Errorf("%s:\n%s\n---- got\n%s\n---- want\n%s", file, given, got, want)
			}
			scenes[i] = strings.TrimSpace(given) + "\n----\n" + got
		}
		if *update {
			if err := os.WriteFile(file, []byte(strings.Join(scenes, "\n\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// shelf is a Source in memory.
type shelf struct {
	candidates map[string][]Candidate
	providers  map[string][]string
	near       map[string][]string
	asked      int
}

func newShelf() *shelf {
	return &shelf{candidates: map[string][]Candidate{}, providers: map[string][]string{}, near: map[string][]string{}}
}

func (s *shelf) add(name string, c Candidate) {
	s.candidates[name] = append(s.candidates[name], c)
	for _, p := range c.Provides {
		s.providers[p.Name] = append(s.providers[p.Name], name)
	}
}

func (s *shelf) Candidates(name string) ([]Candidate, error) {
	s.asked++
	return s.candidates[name], nil
}
func (s *shelf) Providers(name string) []string { return s.providers[name] }
func (s *shelf) Near(name string) []string      { return s.near[name] }

func play(t *testing.T, given string) string {
	t.Helper()
	source := newShelf()
	p := &Problem{Source: source, Installed: map[string]Candidate{}, Held: map[string]string{}}
	lost := map[string]bool{}
	p.Reachable = func(name, from, to string) bool { return !lost[name+" "+from+" -> "+to] }
	for _, line := range strings.Split(given, "\n") {
		verb, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		switch verb {
		case "#", "":
		case "known":
			name, c := candidate(t, rest)
			source.add(name, c)
		case "installed":
			name, c := candidate(t, rest)
			p.Installed[name] = c
		case "held":
			name, why, _ := strings.Cut(rest, ": ")
			p.Held[name] = why
		case "near":
			name, others, _ := strings.Cut(rest, ": ")
			source.near[name] = strings.Split(others, ", ")
		case "fact":
			what, where, _ := strings.Cut(rest, ": ")
			f := strings.Fields(what)
			fact := Fact{Scope: depend.Scope(f[0]), Name: f[1], Where: where}
			if len(f) > 2 {
				fact.Version = f[2]
			}
			p.Facts = append(p.Facts, fact)
		case "no":
			lost[strings.TrimPrefix(rest, "update ")] = true
		case "install", "upgrade":
			what, why, _ := strings.Cut(rest, " because ")
			r, err := depend.ParseRelation(what)
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
			p.Requests = append(p.Requests, Request{Relation: r, Newest: verb == "upgrade", Reason: why})
		case "uninstall":
			p.Remove = append(p.Remove, rest)
		default:
			t.Fatalf("what is %q?", line)
		}
	}
	choices, err := Resolve(t.Context(), p)
	var unsolvable *Unsolvable
	if errors.As(err, &unsolvable) {
		text := unsolvable.Explain()
		if !strings.HasSuffix(strings.TrimSuffix(text, "."), err.Error()) {
			t.Errorf("the error is %q, and not the last line of\n%s", err, text)
		}
		if h := unsolvable.Hint(); h != "" {
			text += "\nhint: " + h
		}
		return text
	}
	if err != nil {
		return "error: " + err.Error()
	}
	var lines []string
	for _, c := range choices {
		var line string
		switch {
		case c.Version == "":
			line = "uninstall " + c.Name + " " + c.Was
		case c.Was == "":
			line = "install " + c.Name + " " + c.Version
		case c.Was == c.Version:
			line = "keep " + c.Name + " " + c.Version
		default:
			line = "update " + c.Name + " " + c.Was + " -> " + c.Version
		}
		if len(c.Because) > 0 {
			line += " (" + strings.Join(c.Because, ", ") + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// candidate reads "foo 1.0 from X: depends bar, baz; conflicts bla; provides q = 1".
func candidate(t *testing.T, text string) (string, Candidate) {
	t.Helper()
	head, tail, _ := strings.Cut(text, ": ")
	head, from, _ := strings.Cut(head, " from ")
	name, version, _ := strings.Cut(head, " ")
	c := Candidate{Version: version, From: from}
	for _, part := range strings.Split(tail, "; ") {
		verb, rest, _ := strings.Cut(part, " ")
		if verb == "provides" {
			for _, p := range strings.Split(rest, ", ") {
				n, v, _ := strings.Cut(p, " = ")
				c.Provides = append(c.Provides, Provide{Name: n, Version: v})
			}
			continue
		}
		list, err := depend.ParseList(rest)
		if err != nil {
			t.Fatalf("%s: %v", text, err)
		}
		switch verb {
		case "depends":
			c.Depends = list
		case "conflicts":
			c.Conflicts = list
		case "":
		default:
			t.Fatalf("what is %q?", part)
		}
	}
	return name, c
}

func TestDependents(t *testing.T) {
	t.Parallel()
	installed := map[string]Candidate{}
	for _, line := range []string{
		"bar 1.1", "foo 1.0: depends bar (>= 1.1)", "top 1: depends foo, bar", "alt 1: depends bar | baz", "baz 1",
		"old 1: depends bar (>= 2)", "free 1",
	} {
		name, c := candidate(t, line)
		installed[name] = c
	}
	got := strings.Join(Dependents(&Problem{Installed: installed}, "bar"), " ")
	// alt has baz, and old had nothing to lose.
	if want := "top foo"; got != want {
		t.Errorf("without bar, %q break, want %q", got, want)
	}
}

func TestResolveStops(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Resolve(ctx, pigeons(9)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
}

type brokenSource struct{ *shelf }

var errBroken = errors.New("no such directory")

func (brokenSource) Candidates(string) ([]Candidate, error) { return nil, errBroken }

func TestSourceFails(t *testing.T) {
	t.Parallel()
	p := &Problem{Source: brokenSource{newShelf()}, Requests: []Request{{Relation: depend.Relation{Name: "foo"}}}}
	_, err := Resolve(t.Context(), p)
	if want := `could not look up extension "foo": no such directory`; !errors.Is(err, errBroken) || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}
