package extension

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"rideau/extension/depend"
	"rideau/extension/pack"
	"rideau/extension/registry"
)

func TestChooseMode(t *testing.T) {
	owner := Role{Name: "app", Owner: true, CanCreate: true}
	super := Role{Name: "postgres", Superuser: true, CanCreate: true}
	nobody := Role{Name: "guest"}
	files := &Available{Version: "1.0", Superuser: true}
	trusted := &Available{Version: "1.0", Superuser: true, Trusted: true}
	sql := &release{registry.Release{Name: "foo", Version: "1.0"}, nil}
	lib := &release{registry.Release{Name: "foo", Version: "1.0", Files: []string{"lib/foo.so"}}, nil}
	module := &release{registry.Release{Name: "foo", Version: "1.0", Kind: pack.KindModule}, nil}
	native := &Installed{Name: "foo", Version: "0.9", Mode: Native}
	asModule := &Installed{Name: "foo", Version: "0.9", Mode: Module}
	tests := []struct {
		why     string
		version int
		role    Role
		of      offer
		wanted  Mode
		reach   bool
		want    Mode   // or
		refused string // a part of the reason
	}{
		{"files, and a superuser", 15, super, offer{files: files}, Auto, false, Native, ""},
		{"files that want a superuser, and a plain owner", 15, owner, offer{files: files}, Auto, false, "", "wants a superuser"},
		{"files that are trusted, and a plain owner", 15, owner, offer{files: trusted}, Auto, false, Native, ""},
		{"trusted, and a role that may create nothing", 15, nobody, offer{files: trusted}, Auto, false, "", "has no CREATE"},
		{"a package, and a plain owner", 15, owner, offer{release: sql}, Auto, false, Module, ""},
		{"a package, and a superuser before 18", 15, super, offer{release: sql}, Auto, false, Module, ""},
		{"a package, and a superuser of 18", 18, super, offer{release: sql}, Auto, false, Path, ""},
		{"a module, and a superuser of 18", 18, super, offer{release: module}, Auto, false, Module, ""},
		{"a package, a plain owner of 18", 18, owner, offer{release: sql}, Auto, false, Module, ""},
		{"a library before 18", 15, super, offer{release: lib}, Auto, false, "", "only when asked for with --mode graft"},
		{"a library before 18, asked for", 15, super, offer{release: lib}, Graft, false, Graft, ""},
		{"graft, and a plain owner", 15, owner, offer{release: sql}, Graft, false, "", "needs a superuser"},
		{"a library of 18", 18, super, offer{release: lib}, Auto, false, Path, ""},
		{"path before 18", 17, super, offer{release: sql}, Path, false, "", "looks for control files in one place"},
		{"an update by the server's files", 15, super, offer{files: files, installed: native}, Auto, true, Native, ""},
		{"an update that the server's files do not have", 15, super, offer{release: sql, installed: native}, Auto, false, "", "these do not lead to 1.0"},
		{"the same on 18", 18, super, offer{release: sql, installed: native}, Auto, false, Path, ""},
		{"a module stays a module", 18, super, offer{release: sql, installed: asModule}, Auto, false, Module, ""},
		{"a module does not become native", 15, super, offer{files: files, installed: asModule}, Native, false, "", "uninstall it first"},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			tt.of.name, tt.of.version = "foo", "1.0"
			for _, r := range []*release{sql, lib, module} {
				r.shelf = new(registry.Registry)
			}
			o := &Observed{Version: tt.version * 10000, Role: tt.role, Database: "app"}
			got, err := chooseMode(o, tt.of, tt.wanted, tt.reach, Config{}.enforced)
			switch {
			case tt.want != "" && (err != nil || got.Mode != tt.want || got.Why == ""):
				t.Errorf("mode %q because %q, error %v; want %q", got.Mode, got.Why, err, tt.want)
			case tt.want == "" && (err == nil || !strings.Contains(err.Error(), tt.refused)):
				t.Errorf("mode %q, error %v; want an error about %q", got.Mode, err, tt.refused)
			}
		})
	}
}

func TestParseWish(t *testing.T) {
	for text, want := range map[string]string{
		"foo": "foo ", "foo=1.0": "foo = 1.0", "foo>=1.1,<2": "foo >= 1.1, < 2", "foo (>= 1.1)": "foo >= 1.1", "foo~>1.2": "foo ~> 1.2", "pg_x-y!=1": "pg_x-y != 1",
	} {
		w, err := ParseWish(text)
		if got := w.Name + " " + w.Range.String(); err != nil || got != want {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{"", "=1.0", "foo=", "foo 1.0", "a/b", "foo>=1,"} {
		if w, err := ParseWish(text); err == nil {
			t.Errorf("%q: %+v, want an error", text, w)
		}
	}
}

// What ALTER SYSTEM gets wrong if a list is written as one string, the server
// finds out when it does not start.
func TestLists(t *testing.T) {
	for text, want := range map[string][]string{
		"": nil, "a": {"a"}, "a, b ,c": {"a", "b", "c"}, `"a,b", c`: {"a,b", "c"}, `"say ""hi"""`: {`say "hi"`},
	} {
		got, err := splitLibraries(text)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("%q: %q, %v; want %q", text, got, err, want)
		}
	}
	for _, text := range []string{",", "a,", "a,,b", `"a`, `"a" b`} {
		if got, err := splitLibraries(text); err == nil {
			t.Errorf("%q: %q, want an error", text, got)
		}
	}
	c := SystemChange{Name: sharedPreload, Values: mergeList([]string{"pg_stat_statements", "o'clock"}, []string{"foo", "pg_stat_statements"}), List: true}
	if got, want := c.SQL(), `ALTER SYSTEM SET "shared_preload_libraries" = 'pg_stat_statements', 'o''clock', 'foo'`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got, want := withElement("$libdir", ownLibraries, "/data/rideau/lib"), "$libdir:/data/rideau/lib"; got != want {
		t.Errorf("library path %q, want %q", got, want)
	}
	if got := withElement("$libdir:/x", ownLibraries, "/x"); got != "$libdir:/x" {
		t.Errorf("library path %q: the folder is there twice", got)
	}
}

func TestQuoting(t *testing.T) {
	for text, want := range map[string]string{"a": "'a'", "o'clock": "'o''clock'", `a\b'`: ` E'a\\b'''`} {
		if got := quoteLiteral(text); got != want {
			t.Errorf("literal %q: %s, want %s", text, got, want)
		}
	}
	if got, want := shellQuote("it's; rm"), `'it'\''s; rm'`; got != want {
		t.Errorf("shell %s, want %s", got, want)
	}
}

func TestTargetSchema(t *testing.T) {
	open := map[string]Schema{"public": {Owner: "postgres", Open: []string{"PUBLIC"}, Mine: true}}
	closed := map[string]Schema{"public": {Owner: "postgres", Mine: true}, "shared": {Owner: "app", Open: []string{"guest"}}}
	rel := func(schema string) offer {
		return offer{name: "foo", release: &release{registry.Release{Name: "foo", Schema: schema}, nil}}
	}
	tests := []struct {
		why     string
		schemas map[string]Schema
		of      offer
		mode    Mode
		req     Request
		want    string
		make    bool
		refused string
	}{
		{"public, which nobody else writes to", closed, rel(""), Module, install("foo"), "public", false, ""},
		{"public is open: one of its own", open, rel(""), Module, install("foo"), "foo", true, ""},
		{"public is open, and that is wanted", open, rel(""), Module, Request{AllowOpen: true}, "public", false, ""},
		{"public, in which we may not create", map[string]Schema{"public": {Owner: "postgres"}}, rel(""), Module, install("foo"), "foo", true, ""},
		{"an extension goes where core puts it", open, offer{name: "foo", files: &Available{}}, Native, install("foo"), "public", false, ""},
		{"its control file says where", closed, rel("bar"), Module, install("foo"), "bar", true, ""},
		{"somebody says elsewhere", closed, rel("bar"), Module, Request{Install: []Wish{{Name: "foo", Schema: "baz"}}}, "", false, "must be in schema"},
		{"somebody says where", closed, rel(""), Module, Request{Install: []Wish{{Name: "foo", Schema: "baz"}}}, "baz", true, ""},
		{"and others may create there", closed, rel(""), Module, Request{Install: []Wish{{Name: "foo", Schema: "shared"}}}, "", false, "guest may create"},
		{"the system's", closed, rel("pg_toast"), Module, install("foo"), "", false, "is the system's"},
	}
	for _, tt := range tests {
		t.Run(tt.why, func(t *testing.T) {
			got, missing, err := targetSchema(&Observed{Schemas: tt.schemas}, tt.of, tt.mode, tt.req, nil)
			switch {
			case tt.refused == "" && (err != nil || got != tt.want || missing != tt.make):
				t.Errorf("schema %q, to be made %v, error %v; want %q, %v", got, missing, err, tt.want, tt.make)
			case tt.refused != "" && (err == nil || !strings.Contains(err.Error(), tt.refused)):
				t.Errorf("schema %q, error %v; want an error about %q", got, err, tt.refused)
			}
		})
	}
}

func TestArrange(t *testing.T) {
	n := func(name, system, database string, standby bool) *node {
		return &node{o: &Observed{Node: name, SystemID: system, Database: database, Standby: standby}}
	}
	primary, standbys, err := arrange([]*node{n("a", "1", "app", true), n("b", "1", "app", false), n("c", "1", "app", true)})
	if err != nil || primary.o.Node != "b" || !slices.Equal(nodeNames(standbys), []string{"a", "c"}) {
		t.Errorf("primary %v, standbys %v, error %v", primary, nodeNames(standbys), err)
	}
	for want, nodes := range map[string][]*node{
		"are not of one pool":            {n("a", "1", "app", false), n("b", "2", "app", true)},
		"two of the nodes are primaries": {n("a", "1", "app", false), n("b", "1", "app", false)},
		"none of the nodes":              {n("a", "1", "app", true), n("b", "1", "app", true)},
		"the nodes lead to two":          {n("a", "1", "app", false), n("b", "1", "other", true)},
	} {
		if _, _, err := arrange(nodes); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one about %q", err, want)
		}
	}
}

func TestWishes(t *testing.T) {
	w, err := ParseWishes("extensions.toml", []byte(`
registries = ["https://extensions.example.org/"]
[database.app]
conninfo = "dbname=app"
[database.app.extensions]
hstore = "*"
foo = ">= 1.0, < 2"
exact = "1.5"
bar = { version = "~> 1.1", schema = "bar", mode = "module", hold = true }
`))
	if err != nil {
		t.Fatal(err)
	}
	req, d, err := w.Request("app")
	if err != nil {
		t.Fatal(err)
	}
	want := []Wish{
		{Name: "bar", Range: depend.Range{{Op: "~>", Version: "1.1"}}, Schema: "bar", Mode: Module},
		{Name: "exact", Range: depend.Range{{Op: "=", Version: "1.5"}}},
		{Name: "foo", Range: depend.Range{{Op: ">=", Version: "1.0"}, {Op: "<", Version: "2"}}},
		{Name: "hstore"},
	}
	if d.Conninfo != "dbname=app" || req.Held["bar"] == "" || !slices.EqualFunc(req.Install, want, func(a, b Wish) bool {
		return a.Name == b.Name && a.Range.String() == b.Range.String() && a.Schema == b.Schema && a.Mode == b.Mode
	}) {
		t.Errorf("wishes %+v, want %+v", req, want)
	}
	if _, _, err := w.Request("other"); err == nil || !strings.Contains(err.Error(), "there are app") {
		t.Errorf("error %v, want one that says what there is", err)
	}
	for text, want := range map[string]string{
		"[database.app.extensions]\nfoo = \">= \"":              "foo",
		"[database.app.extensions]\nfoo = { vers = \"1\" }":     `unknown key "vers"`,
		"[database.app.extensions]\nfoo = 1":                    "by a version",
		"[database.app.extensions]\nfoo = { mode = \"magic\" }": `no mode "magic"`,
		"registrys = []":   `unknown key "registrys"`,
		"registries = [\n": "extensions.toml:",
	} {
		if _, err := ParseWishes("extensions.toml", []byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one about %s", text, err, want)
		}
	}
}

func TestLockFile(t *testing.T) {
	l := &Locked{Wishes: "abc", Databases: map[string][]LockedVersions{"app": {{Name: "foo", Version: "1.0", Mode: Module, SHA256: "123"}}}}
	text, err := l.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	back, err := ParseLock("extensions.lock", text)
	if err != nil {
		t.Fatal(err)
	}
	req, err := back.Request("app", Request{NoConf: true})
	if err != nil {
		t.Fatal(err)
	}
	if w := req.Install[0]; w.Name != "foo" || w.Range.String() != "= 1.0" || w.SHA256 != "123" || !req.NoConf || back.Wishes != "abc" {
		t.Errorf("request %+v of\n%s", req, text)
	}
	if _, err := back.Request("other", Request{}); err == nil {
		t.Error("a database that the file does not have: no error")
	}
}

func TestBroken(t *testing.T) {
	list := func(text string) depend.List {
		l, err := depend.ParseList(text)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	o := &Observed{VersionText: "15.4", Installed: []Installed{
		{Name: "bar", Version: "1.0", Mode: Module},
		{Name: "bla", Version: "0.7", Mode: Module},
		{Name: "foo", Version: "1.0", Mode: Module, Depends: list("bar (>= 1.1), postgresql (>= 14)"), Conflicts: list("bla (< 0.8)")},
	}}
	p, err := newKnown(t.Context(), o, Config{}, func(string) Mode { return Auto }, nil).problem(nil, nil, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(broken(p), "\n")
	want := "foo 1.0 depends on bar (>= 1.1), which does not hold\nfoo 1.0 conflicts with bla (< 0.8), and bla 0.7 is installed"
	if got != want {
		t.Errorf("%s\nwant\n%s", got, want)
	}
}

// The errors must be found through whatever wraps them: cmd gives hints by type.
func TestErrorsAreTypes(t *testing.T) {
	inner := errors.New("inner")
	for _, err := range []error{&ScriptError{Err: inner}, &LockedError{Err: inner}} {
		if !errors.Is(err, inner) {
			t.Errorf("%T hides its cause", err)
		}
	}
}

// A manifest does not depend on where a package goes.
func TestSwapObject(t *testing.T) {
	for _, tt := range []struct {
		schema  string
		in, out pack.Object
	}{
		{"s", pack.Object{Type: "function", Names: []string{"s", "s"}, Args: []string{"s.t", "pg_catalog.text"}},
			pack.Object{Type: "function", Names: []string{"@extschema@", "s"}, Args: []string{"@extschema@.t", "pg_catalog.text"}}},
		{"pg_catalog", pack.Object{Type: "function", Names: []string{"pgq", "ticker"}, Args: []string{"pg_catalog.text"}},
			pack.Object{Type: "function", Names: []string{"pgq", "ticker"}, Args: []string{"pg_catalog.text"}}},
		{"btree", pack.Object{Type: "operator class", Names: []string{"btree", "btree", "ops"}, Args: nil},
			pack.Object{Type: "operator class", Names: []string{"btree", "@extschema@", "ops"}, Args: nil}},
		{"Odd", pack.Object{Type: "type", Names: []string{`"Odd".t[]`}, Args: nil}, pack.Object{Type: "type", Names: []string{"@extschema@.t[]"}, Args: nil}},
		{"s", pack.Object{Type: "language", Names: []string{"s"}, Args: nil}, pack.Object{Type: "language", Names: []string{"s"}, Args: nil}},
	} {
		got := swapObject(tt.in, tt.schema, targetSchemaName)
		if objectText(got) != objectText(tt.out) {
			t.Errorf("%s in schema %s: %s, want %s", objectText(tt.in), tt.schema, objectText(got), objectText(tt.out))
		}
		if back := swapObject(got, targetSchemaName, tt.schema); objectText(back) != objectText(tt.in) {
			t.Errorf("%s back in schema %s: %s, want %s", objectText(got), tt.schema, objectText(back), objectText(tt.in))
		}
	}
}

// The server's default, unless somebody asks for more: a restore would bring it.
func TestDefaultVersion(t *testing.T) {
	o := &Observed{Version: 150000, VersionText: "15.0", Role: Role{Superuser: true}, Available: map[string][]Available{
		"hll": {{Version: "2.10"}, {Version: "2.16", Default: true}, {Version: "2.17"}},
	}}
	paths := func(context.Context, string) (*paths, error) { return &paths{}, nil }
	for _, ranged := range []bool{false, true} {
		k := newKnown(t.Context(), o, Config{}, func(string) Mode { return Auto }, paths)
		k.ranges = map[string]bool{"hll": ranged}
		n, err := k.about("hll")
		if err != nil {
			t.Fatal(err)
		}
		newest := n.candidates[len(n.candidates)-1].Version
		if want := map[bool]string{false: "2.16", true: "2.17"}[ranged]; newest != want {
			t.Errorf("asked by version %v: the newest is %s, want %s", ranged, newest, want)
		}
	}
}
