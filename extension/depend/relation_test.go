package depend_test

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"rideau/extension/depend"
)

func TestParseList(t *testing.T) {
	t.Parallel()
	tests := []struct{ text, want string }{
		{"", ""},
		{" \n", ""},
		{"bar (>= 1.1), baz", "bar (>= 1.1), baz"}, // the post of 2010
		{"bla (< 0.8)", "bla (< 0.8)"},
		{"bar (>= 1.1), baz | qux@server", "bar (>= 1.1), baz | qux@server"},
		{"bar(>=1.1,<2)@node", "bar (>= 1.1, < 2)@node"},
		{"bar (<< 2) | bar (>> 3) | bar (== 2.5)", "bar (< 2) | bar (> 3) | bar (= 2.5)"},
		{"bar@db", "bar"},
		{"ip4r [ ipv6 ] ( ~> 2.4 )\n,\n\tbaz @ server", "ip4r[ipv6] (~> 2.4), baz@server"},
		{`my-ext, "my ext" (= "1 2")`, `my-ext, "my ext" (= "1 2")`},
		{`"plain"`, `plain`},
		{"été (!= 1.0~beta)", "été (!= 1.0~beta)"},
	}
	for _, tt := range tests {
		list, err := depend.ParseList(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
		} else if list.String() != tt.want {
			t.Errorf("%s was read as %s, want %s", tt.text, list, tt.want)
		}
	}
	list, err := depend.ParseList("a (>= 1.1), b[f] | c@server")
	want := depend.List{
		{{Name: "a", Range: depend.Range{{Op: ">=", Version: "1.1"}}}},
		{{Name: "b", Feature: "f"}, {Name: "c", Scope: depend.Server}},
	}
	if err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("got %#v, %v, want %#v", list, err, want)
	}
}

func TestParseListErrors(t *testing.T) {
	t.Parallel()
	tests := []struct {
		text   string
		offset int
		want   string
	}{
		{"bar,", 4, "expected a name before the end"},
		{"bar,,baz", 4, `expected a name, not ","`},
		{"bar baz", 4, `expected "," or "|", not "b"`},
		{"bar |", 5, "expected a name before the end"},
		{"bar (>= 1.1", 11, `expected "," or ")" before the end`},
		{"bar ()", 5, `expected an operator, not ")"`},
		{"bar (1.1)", 5, "expected an operator before the version"},
		{"bar (=> 1.1)", 5, `unknown operator "=>": write ">="`},
		{"bar (=< 1.1)", 5, `unknown operator "=<": write "<="`},
		{"bar (>= 1.1 < 2)", 12, `expected "," or ")", not "<"`},
		{"bar (>= )", 8, `expected a version, not ")"`},
		{"bar (~> beta)", 8, `"~>" needs a version that begins with a number`},
		{"bar (= 1--2)", 7, `must not contain "--"`},
		{"bar@cluster", 4, `unknown scope "cluster"`},
		{"bar@", 4, "expected a scope before the end"},
		{"bar[", 4, "expected a feature before the end"},
		{"bar[a", 5, `expected "]" before the end`},
		{"-bar", 0, `must not begin or end with "-"`},
		{"a/b", 0, "directory separator"},
		{`"bar`, 0, "unterminated quoted name"},
		{`""`, 0, "must not be empty"},
		{"b\x00r", 0, "must not contain the character U+0000"},
		{"b\xffr", 0, "must be valid UTF-8"},
		{"é é", 3, `expected "," or "|", not "é"`},
		{"bar # baz", 4, `expected "," or "|", not "#"`},
	}
	for _, tt := range tests {
		_, err := depend.ParseList(tt.text)
		var syntax *depend.SyntaxError
		if !errors.As(err, &syntax) {
			t.Errorf("%q: got %v, want a SyntaxError", tt.text, err)
			continue
		}
		if syntax.Offset != tt.offset || !strings.Contains(syntax.Message, tt.want) {
			t.Errorf("%q: got %q at byte %d, want %q at byte %d", tt.text, syntax.Message, syntax.Offset, tt.want, tt.offset)
		}
	}
	if _, err := depend.ParseRelation("bar, baz"); err == nil || err.Error() != `expected the end, not ",", at character 4` {
		t.Errorf("a list was read as a relation: %v", err)
	}
}

func TestParseRange(t *testing.T) {
	t.Parallel()
	r, err := depend.ParseRange(" >= 13, < 19 ")
	if err != nil || r.String() != ">= 13, < 19" {
		t.Errorf("got %q, %v", r, err)
	}
	if r, err := depend.ParseRange(""); err != nil || r != nil {
		t.Errorf("the empty text is %v, %v, want any version", r, err)
	}
	for _, bad := range []string{">= 13)", ">= 13,", "13"} {
		if r, err := depend.ParseRange(bad); err == nil {
			t.Errorf("%q was read as %s", bad, r)
		}
	}
}

func TestAllows(t *testing.T) {
	t.Parallel()
	tests := []struct{ text, allowed, refused string }{
		{"", "0 1 whatever", ""},
		{"< 1.1", "1.0 1.1-beta 0.9", "1.1 1.10 1.1-1"},
		{"<= 1.1", "1.0 1.1 1.1-beta", "1.1-1 1.2"},
		{"= 1.0", "1.0 1.00", "1 1.0.0 1.0-1 1.0rc1"},
		{"!= 1.0", "1 1.0.0 1.0-1", "1.0 1.00"},
		{">= 1.1", "1.1 1.1-1 1.10 2", "1.1-rc1 1.0"},
		{"> 1.1", "1.1-1 1.1.1 2", "1.1 1.1rc1"},
		{">= 1.1, < 2", "1.1 1.99 2-beta1", "1.0 2 2.1"},
		{"~> 1.2", "1.2 1.2.5 1.9 1.99.9", "1.1 1.2-rc1 2 2.0 2beta1 2-dev 2.0.1"},
		{"~> 1.2.3", "1.2.3 1.2.99 1.2.3-1", "1.2.2 1.3 1.3.0 1.3-rc1 1.3.0-rc1 2"},
		{"~> 1", "1 1.0 1.99", "0.9 2 2-rc1"},
		{"~> 1.9", "1.9 1.10", "2"},
		{"~> 1.99.1", "1.99.2", "1.100 1.98"},
		{"~> 1.2.3-beta1", "1.2.3-beta1 1.2.3-beta2 1.2.3 1.2.9", "1.2.3-alpha 1.3"},
		{"~> 1:1.2", "1:1.3", "1.3 1:2"},
	}
	for _, tt := range tests {
		r, err := depend.ParseRange(tt.text)
		if err != nil {
			t.Errorf("%s: %v", tt.text, err)
			continue
		}
		for _, v := range strings.Fields(tt.allowed) {
			if !r.Allows(v, nil) {
				t.Errorf("(%s) does not allow %s", tt.text, v)
			}
		}
		for _, v := range strings.Fields(tt.refused) {
			if r.Allows(v, nil) {
				t.Errorf("(%s) allows %s", tt.text, v)
			}
		}
	}

	o := depend.NewOrder([]string{"1.06", "1.1"}, []depend.Edge{{From: "1.06", To: "1.1"}})
	if r := (depend.Range{{Op: depend.Less, Version: "1.1"}}); !r.Allows("1.06", o) || r.Allows("1.06", nil) {
		t.Error("the order by update scripts is not what a range goes by")
	}
}

func TestCheckName(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"foo", "uuid-ossp", "pg_partman", "my ext", "Été", "a.b", "plpython3u", strings.Repeat("x", 63)} {
		if err := depend.CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", "-a", "a-", "a--b", "a/b", `a\b`, "..", ".", `a"b`, "a'b", "a\nb", "a\u202eb", " a", "a ", "\xff", strings.Repeat("x", 64)} {
		if err := depend.CheckName(bad); err == nil {
			t.Errorf("%q is accepted", bad)
		}
		if err := depend.CheckVersion(bad); err == nil && len(bad) < 64 {
			t.Errorf("%q is accepted as a version", bad)
		}
	}
	err := depend.CheckVersion("1--2")
	if want := `invalid extension version "1--2": must not contain "--"`; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

// words draws names and versions that CheckName and CheckVersion accept, with
// the characters of the grammar in them.
func words() *rapid.Generator[string] {
	return rapid.StringOfN(rapid.SampledFrom([]rune(`ab01.-_~<>=!|,()[]@# é`)), 1, 6, -1).
		Filter(func(s string) bool { return depend.CheckName(s) == nil })
}

func TestListRoundTrip(t *testing.T) {
	t.Parallel()
	constraint := rapid.Custom(func(t *rapid.T) depend.Constraint {
		c := depend.Constraint{
			Op:      depend.Op(rapid.SampledFrom([]string{"<", "<=", "=", ">=", ">", "!=", "~>"}).Draw(t, "op")),
			Version: words().Draw(t, "version"),
		}
		if c.Op == depend.Pessimistic {
			c.Version = fmt.Sprintf("%d.1-x", rapid.IntRange(0, 20).Draw(t, "major"))
		}
		return c
	})
	relation := rapid.Custom(func(t *rapid.T) depend.Relation {
		r := depend.Relation{
			Name:  words().Draw(t, "name"),
			Scope: rapid.SampledFrom([]depend.Scope{depend.Database, depend.Server, depend.Node}).Draw(t, "scope"),
			Range: rapid.SliceOfN(constraint, 0, 3).Draw(t, "range"),
		}
		if len(r.Range) == 0 {
			r.Range = nil
		}
		if rapid.Bool().Draw(t, "has a feature") {
			r.Feature = words().Draw(t, "feature")
		}
		return r
	})
	lists := rapid.SliceOfN(rapid.SliceOfN(relation, 1, 3), 1, 3)
	rapid.Check(t, func(t *rapid.T) {
		var list depend.List
		for _, a := range lists.Draw(t, "list") {
			list = append(list, a)
		}
		again, err := depend.ParseList(list.String())
		if err != nil || !reflect.DeepEqual(again, list) {
			t.Fatalf("%s is read as %s, %v", list, again, err)
		}
	})
}

func FuzzParseList(f *testing.F) {
	for _, s := range []string{
		"", "bar (>= 1.1), baz", "bla (< 0.8)", "bar (>= 1.1), baz | qux@server", "a[b](~> 1.2.3,!=1.5)@node",
		`"my ext" (= "1 2")`, "bar (1.1)", "a,", "a |", "a@", "é", "\xff", "a (>> 1) | b (<< 2)", "a (~> x)",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		list, err := depend.ParseList(text)
		if err != nil {
			var syntax *depend.SyntaxError
			if !errors.As(err, &syntax) || syntax.Offset < 0 || syntax.Offset > len(text) {
				t.Fatalf("ParseList(%q): %#v", text, err)
			}
			return
		}
		again, err := depend.ParseList(list.String())
		if err != nil || !reflect.DeepEqual(again, list) {
			t.Fatalf("ParseList(%q) = %s, which is read as %s, %v", text, list, again, err)
		}
		for _, alternatives := range list {
			for _, r := range alternatives {
				one, err := depend.ParseRelation(r.String())
				if err != nil || !reflect.DeepEqual(one, r) {
					t.Fatalf("ParseRelation(%s) = %s, %v", r, one, err)
				}
			}
		}
	})
}

func Example() {
	list, err := depend.ParseList("bar (>= 1.1), baz | qux@server")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(list)
	bar := list[0][0]
	for _, version := range []string{"1.0", "1.1-beta2", "1.1", "1.10"} {
		fmt.Println(bar.Name, version, bar.Range.Allows(version, nil))
	}
	// Output:
	// bar (>= 1.1), baz | qux@server
	// bar 1.0 false
	// bar 1.1-beta2 false
	// bar 1.1 true
	// bar 1.10 true
}
