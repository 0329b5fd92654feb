package resolve_test

import (
	"context"
	"errors"
	"fmt"

	"rideau/extension/depend"
	"rideau/extension/resolve"
)

// A directory is a Source: what somebody published.
type directory map[string][]resolve.Candidate

func (d directory) Candidates(name string) ([]resolve.Candidate, error) { return d[name], nil }
func (d directory) Providers(string) []string                           { return nil }

// foo 1.0 depends on bar (>= 1.1) and baz, and conflicts with bla (< 0.8).
func Example() {
	list := func(text string) depend.List {
		l, err := depend.ParseList(text)
		if err != nil {
			panic(err)
		}
		return l
	}
	known := directory{
		"foo": {{Version: "1.0", Depends: list("bar (>= 1.1), baz"), Conflicts: list("bla (< 0.8)")}},
		"bar": {{Version: "1.0"}, {Version: "1.1"}},
		"baz": {{Version: "0.3"}},
	}
	problem := &resolve.Problem{
		Source:    known,
		Installed: map[string]resolve.Candidate{"bar": {Version: "1.0"}},
		Requests:  []resolve.Request{{Relation: depend.Relation{Name: "foo"}}},
	}
	choices, err := resolve.Resolve(context.Background(), problem)
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, c := range choices {
		fmt.Printf("%s %q -> %q because of %v\n", c.Name, c.Was, c.Version, c.Because)
	}

	problem.Installed["bla"] = resolve.Candidate{Version: "0.7"}
	_, err = resolve.Resolve(context.Background(), problem)
	var unsolvable *resolve.Unsolvable
	if errors.As(err, &unsolvable) {
		fmt.Println(unsolvable.Explain())
		fmt.Println("hint:", unsolvable.Hint())
	}
	// Output:
	// bar "1.0" -> "1.1" because of [foo]
	// baz "" -> "0.3" because of [foo]
	// foo "" -> "1.0" because of [asked for]
	// bla 0.7 is installed, and foo 1.0 conflicts with bla (< 0.8): foo cannot be installed.
	// hint: Uninstall bla. bla 0.8 or later would do, but the newest known is 0.7.
}
