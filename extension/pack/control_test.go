package pack

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"rideau/extension/depend"
)

// The control file of the post of 2010.
const post = `name = foo
version = 1.0
custom_variable_classes = 'foo'
depends  = bar (>= 1.1), baz
conflicts = bla (< 0.8)
`

func TestParseControl(t *testing.T) {
	t.Parallel()
	c, err := ParseControl("control", []byte(post))
	if err != nil {
		t.Fatal(err)
	}
	want := &Control{Name: "foo", Version: "1.0", ExtVersion: "1.0", Kind: "extension", Preload: "none", Superuser: true,
		VariableClasses: []string{"foo"}, Text: []byte(post),
		Depends:   depend.List{{{Name: "bar", Range: depend.Range{{Op: ">=", Version: "1.1"}}}}, {{Name: "baz"}}},
		Conflicts: depend.List{{{Name: "bla", Range: depend.Range{{Op: "<", Version: "0.8"}}}}},
	}
	if !reflect.DeepEqual(c, want) {
		t.Errorf("got  %+v\nwant %+v", c, want)
	}
	all := `# everything
name = 'my ext'	# a comment
version = 1.2.0-rc1
extversion '1.2'
comment = 'it''s \'all\'\n\101'
license = PostgreSQL, or so
kind = module
superuser = off
trusted = ON
schema = "quoted" # as it is
encoding = 'iso-8859-1'
postgres = >= 13,
	!= 14.0, # not that one

	< 19
depends = a # first
recommends = a, # first
  b | c@server,
  d[x] (~> 1.2)
suggests = 'e, f'
conflicts =
breaks = g@node
replaces = h (< 2)
provides = i, j (= 1.0)
preload = shared
restart = yes
os_depends = libfoo2, python3 (>= 3.9)
custom_variable_classes = 'foo, bar'
module_pathname = '$libdir/foo'
no_relocate = 'a, "B c"'
`
	all = strings.Replace(all, "conflicts =\n", "", 1)
	if c, err = ParseControl("control", []byte(all)); err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprintf("%q %q %q %q %q %q %v %v %v %q %q [%s] [%s] [%s] [%s] [%s] [%s] %v %q %v %q %q %q %q", c.Name, c.Version, c.ExtVersion, c.Comment, c.License, c.Kind,
		c.Superuser, c.Trusted, c.Relocatable, c.Schema, c.Encoding, c.Postgres, c.Depends, c.Recommends, c.Suggests, c.Breaks, c.Replaces, c.Provides,
		c.Preload, c.Restart, c.OSDepends, c.VariableClasses, c.ModulePathname, c.NoRelocate)
	wantAll := `"my ext" "1.2.0-rc1" "1.2" "it's 'all'\nA" "PostgreSQL, or so" "module" false true false "\"quoted\"" "LATIN1" [>= 13, != 14.0, < 19] [a] ` +
		`[a, b | c@server, d[x] (~> 1.2)] [e, f] [g@node] [h (< 2)] [i j (= 1.0)] "shared" true ["libfoo2" "python3 (>= 3.9)"] ["foo" "bar"] "$libdir/foo" ["a" "B c"]`
	if got != wantAll {
		t.Errorf("got  %s\nwant %s", got, wantAll)
	}
	checkRender(t, c)
}

// checkRender checks that a control file is written as it is read.
func checkRender(t *testing.T, c *Control) {
	t.Helper()
	again, err := ParseControl("again", c.render())
	if err != nil {
		t.Fatalf("%v\n%s", err, c.render())
	}
	plain := *c
	plain.Text, again.Text = nil, nil
	// A reader of lists makes none of the empty list; so may a writer.
	if fmt.Sprintf("%+v", *again) != fmt.Sprintf("%+v", plain) {
		t.Fatalf("written and read again:\n%+v\nfirst:\n%+v\n%s", *again, plain, plain.render())
	}
}

func TestControlErrors(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct{ text, want string }{
		{"", "control:1:1: parameter \"name\" is missing\ncontrol:1:1: parameter \"version\" is missing"},
		{"name = foo\nversion = 1\ndepend = bar", `control:3:1: unknown parameter "depend": did you mean "depends"?`},
		{"name = foo\nversion = 1\nrequires = bar", `control:3:1: unknown parameter "requires": did you mean "depends"?`},
		{"name = foo\nversion = 1\n  Licence = bar", `control:3:3: unknown parameter "Licence": did you mean "license"?`},
		{"name = foo\nversion = 1\ncolour = bar", `control:3:1: unknown parameter "colour"`},
		{"name = foo\nversion = 1\nversion = 2", `control:3:1: parameter "version" is given a second time, after line 2`},
		{"name = foo--bar\nversion = 1-", "control:1:8: "},
		{"name = foo\nversion = 1\ndepends = bar (>= 1.1, baz", "control:3:"},
		{"name = foo\nversion = 1\ndepends = bar,\n  # é\n  baz (> )", "control:5:10: depends: "},
		{"name = foo\nversion = 1\ndepends = 'é, bar (> )'", "control:3:"},
		{"name = foo\nversion = 1\ndepends = foo (> 1)", `control:3:1: "foo" cannot be in its own depends`},
		{"name = foo\nversion = 1\nconflicts = bla\nconflicts = foo", "control:4:1: "},
		{"name = foo\nversion = 1\nrelocatable = maybe", `control:3:15: parameter "relocatable" must be true or false, not "maybe"`},
		{"name = foo\nversion = 1\nrelocatable = true\nschema = s", `control:4:1: parameter "schema" cannot be given when "relocatable" is true`},
		{"name = foo\nversion = 1\nkind = plugin", `control:3:8: parameter "kind" must be one of extension, module, library, not "plugin"`},
		{"name = foo\nversion = 1\nencoding = EBCDIC", `control:3:12: "EBCDIC" is not the name of an encoding that a server can have`},
		{"name = foo\nversion = 1\ncomment = 'a' b", "control:3:15: nothing but a comment may stand behind a quoted value"},
		{"name = foo\nversion = 1\ncomment = 'a", "control:3:11: quoted value is not closed on its line"},
		{"name = foo\nversion = 1\ncomment = # a", `control:3:1: parameter "comment" has no value`},
		{"name = foo\nversion = 1\ncomment = ''", `control:3:12: parameter "comment" is empty`},
		{"name = foo\nversion = 1\n= 1", "control:3:1: a line must begin with the name of a parameter"},
		{"name = foo\nversion = 1\nos_depends = a,,b", `control:3:16: parameter "os_depends" has an empty place in its list`},
		{"name = foo\nversion = 1\ncustom_variable_classes = a, b.c", `control:3:30: "b.c" cannot be the prefix of parameters`},
		{"name = foo\nversion = 1\nprovides = a (> 1)", "control:3:12: provides: "},
		{"name = foo\nversion = 1\nmodule_pathname = \"a'b\"", "control:3:19: "},
		{"name = foo\nversion = 1\ncomment = \xff", "control:3:11: byte 0xff is not UTF-8"},
		{"name = foo\nversion = 1\ncomment = 'a\\0'", `control:3:12: the value of "comment" is not UTF-8 text`},
		{"name = foo\nversion = 1\ncomment = 'a\\377'", `control:3:12: the value of "comment" is not UTF-8 text`},
		{"name = foo\x00", "control:1:11: zero byte"},
	} {
		c, err := ParseControl("control", []byte(tc.text))
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q\n got %+v, %v\nwant %s", tc.text, c, err, tc.want)
			continue
		}
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%q: error of type %T", tc.text, err)
		}
	}
}

func TestParseConf(t *testing.T) {
	t.Parallel()
	text := "# foo's settings\nfoo.a = 4\nfoo.b = 'it''s'\nwork_mem 10MB # ok\n#@scope role Reporting\nFOO.a = 1.5e3\n#@scope role \"My Role\"\nfoo.a = on\n#@scope system\nshared_preload_libraries = 'foo, bar'\n#@scope database\nfoo.c = -1"
	got, err := ParseConf("foo.conf", []byte(text), []string{"foo"})
	if err != nil {
		t.Fatal(err)
	}
	want := []Setting{
		{ScopeDatabase, "", "foo.a", "4", 2}, {ScopeDatabase, "", "foo.b", "it's", 3}, {ScopeDatabase, "", "work_mem", "10MB", 4},
		{ScopeRole, "reporting", "FOO.a", "1.5e3", 6}, {ScopeRole, "My Role", "foo.a", "on", 8},
		{ScopeSystem, "", "shared_preload_libraries", "foo, bar", 10}, {ScopeDatabase, "", "foo.c", "-1", 12},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
	for _, tc := range []struct{ text, want string }{
		{"\n bar.a = 1", `foo.conf:2:2: parameter "bar.a" has the prefix "bar", which is not in custom_variable_classes (foo)`},
		{"foo.a = b.c", `foo.conf:1:9: syntax error near "b.c"`},
		{"foo.a", "foo.conf:1:6: syntax error near the end of the line"},
		{"foo.a = 1 2", `foo.conf:1:11: syntax error near "2"`},
		{"foo.a = 'x", `foo.conf:1:9: syntax error near "'"`},
		{"foo.a = 1\nFoo.A = 2", `foo.conf:2:1: parameter "Foo.A" is set a second time, after line 1`},
		{"include 'x'", "foo.conf:1:1: include cannot be used in the settings of an extension"},
		{"foo.a = 'a\\nb'", `foo.conf:1:10: the value of "foo.a" contains a line end`},
		{"#@scope cluster", `foo.conf:1:1: #@scope must be database, role NAME or system, not "cluster"`},
		{"#@scope role", `foo.conf:1:1: #@scope must be`},
		{"#@scope role a, b", `foo.conf:1:1: #@scope role needs the name of one role, not a, b`},
		{"#@scoop system", `foo.conf:1:1: unknown comment #@scoop: did you mean #@scope?`},
	} {
		got, err := ParseConf("foo.conf", []byte(tc.text), []string{"foo"})
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q\n got %+v, %v\nwant %s", tc.text, got, err, tc.want)
		}
	}
}

// inside checks that an error points into the text.
func inside(t *testing.T, text []byte, err error) {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error of type %T: %v", err, err)
	}
	lines := bytes.Split(text, []byte("\n"))
	if e.Line < 1 || e.Line > len(lines) || e.Column < 1 || e.Column > len([]rune(string(lines[e.Line-1])))+1 {
		t.Fatalf("error outside of the text: %v", err)
	}
}

func FuzzParseControl(f *testing.F) {
	f.Add([]byte(post))
	f.Add([]byte("name = a\nversion = '1'\ndepends = b,\n #\n c | \"d e\"@server (>= 1, < 2)\nprovides = x (= 1)\nno_relocate='a,\"B\"\"c\"'\ncomment = '\\001'"))
	f.Add([]byte("#@depends bar (>= 1.1)\ndefault_version = '1.0'\nrequires = 'a, \"b\"'"))
	f.Fuzz(func(t *testing.T, text []byte) {
		if c, err := ParseControl("f", text); err != nil {
			inside(t, text, err)
		} else {
			checkRender(t, c)
			n := &native{control: Control{Name: c.Name, Superuser: true, Kind: KindExtension, Preload: PreloadNone}}
			if err := n.parse("native", c.native(), false); err != nil {
				t.Fatalf("%v\n%s", err, c.native())
			}
			got := n.finish()
			plain := *c
			plain.Text = nil
			if fmt.Sprintf("%+v", *got) != fmt.Sprintf("%+v", plain) {
				t.Fatalf("through a native control file:\n%+v\nfirst:\n%+v\n%s", *got, plain, c.native())
			}
		}
		n := &native{control: Control{Name: "x"}}
		if err := n.parse("f", text, false); err != nil {
			inside(t, text, err)
		}
	})
}

func FuzzParseConf(f *testing.F) {
	f.Add([]byte("foo.a = 1\n#@scope role x\nfoo.b = 'it''s \\101'\n#@scope system\nx = on # y"))
	f.Fuzz(func(t *testing.T, text []byte) {
		list, err := ParseConf("f", text, []string{"foo"})
		if err != nil {
			inside(t, text, err)
			return
		}
		// The settings, written plainly, are the same settings.
		var b bytes.Buffer
		for _, s := range list {
			scope := string(s.Scope)
			if s.Role != "" {
				scope += ` "` + strings.ReplaceAll(s.Role, `"`, `""`) + `"`
			}
			fmt.Fprintf(&b, "#@scope %s\n%s = %s\n", scope, s.Name, quoteValue(s.Value))
		}
		again, err := ParseConf("again", b.Bytes(), []string{"foo"})
		if err != nil {
			t.Fatalf("%v\n%s", err, b.Bytes())
		}
		for i := range again {
			again[i].Line = list[i].Line
		}
		if !reflect.DeepEqual(again, list) {
			t.Fatalf("got %+v\nfirst %+v", again, list)
		}
	})
}
