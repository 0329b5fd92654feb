package pack

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"rideau/extension/depend"
)

// A Control is what a control file says. Its defaults are those of the server:
// Superuser is true, the other Booleans are false.
type Control struct {
	Name    string
	Version string // of the release
	// ExtVersion is what the database will call it, and what install.sql makes.
	// The same as Version unless said: some projects have releases that do not
	// change the SQL.
	ExtVersion string
	Comment    string
	License    string
	Schema     string // fixed target schema; empty: the user chooses
	Encoding   string // of the scripts, by the server's name; empty: UTF8
	Kind       string // KindExtension, KindModule or KindLibrary

	Relocatable, Trusted, Superuser bool

	Postgres                                                   depend.Range // versions of the server
	Depends, Recommends, Suggests, Conflicts, Breaks, Replaces depend.List
	Provides                                                   []Provide

	Preload         string // PreloadNone, PreloadSession or PreloadShared
	Restart         bool   // the server must be restarted for it to work
	OSDepends       []string
	VariableClasses []string // custom_variable_classes: prefixes of its parameters

	ModulePathname string   // what replaces MODULE_PATHNAME in scripts
	NoRelocate     []string // what it requires and must then stay in its schema; servers know it from 16 on

	Text []byte // the file as read; a native one's directory is commented out, as its scripts are in the package
}

// Values of [Control.Kind].
const (
	KindExtension = "extension" // an extension, in whatever way it can be installed
	KindModule    = "module"    // SQL objects that a plain owner may have without an extension
	KindLibrary   = "library"   // files only
)

// Values of [Control.Preload].
const (
	PreloadNone    = "none"
	PreloadSession = "session" // session_preload_libraries will do
	PreloadShared  = "shared"  // shared_preload_libraries
)

// A Provide is a name that an extension can be depended on by, beside its own.
// Version is empty where none is given.
type Provide struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
}

// String is the provide as a control file has it.
func (p Provide) String() string {
	r := depend.Relation{Name: p.Name}
	if p.Version != "" {
		r.Range = depend.Range{{Op: depend.Equal, Version: p.Version}}
	}
	return r.String()
}

// A key is one parameter of our control file.
type key struct {
	name  string
	list  bool // the value is a list, which may go on in the next line
	set   func(s *source, c *Control, e *entry)
	print func(c *Control) string // "" leaves the line out
}

// keys are all of them, in the order in which they are written.
var keys = []key{
	{"name", false, setText(func(c *Control) *string { return &c.Name }, depend.CheckName), func(c *Control) string { return word(c.Name) }},
	{"version", false, setText(func(c *Control) *string { return &c.Version }, depend.CheckVersion), func(c *Control) string { return word(c.Version) }},
	{"extversion", false, setText(func(c *Control) *string { return &c.ExtVersion }, depend.CheckVersion), func(c *Control) string {
		if c.ExtVersion == c.Version {
			return ""
		}
		return word(c.ExtVersion)
	}},
	{"comment", false, setText(func(c *Control) *string { return &c.Comment }, nil), func(c *Control) string { return line(c.Comment) }},
	{"license", false, setText(func(c *Control) *string { return &c.License }, nil), func(c *Control) string { return line(c.License) }},
	{"kind", false, setChoice(func(c *Control) *string { return &c.Kind }, KindExtension, KindModule, KindLibrary), func(c *Control) string { return but(c.Kind, KindExtension) }},
	{"schema", false, setText(func(c *Control) *string { return &c.Schema }, checkSchema), func(c *Control) string { return line(c.Schema) }},
	{"relocatable", false, setBool(func(c *Control) *bool { return &c.Relocatable }), func(c *Control) string { return flag(c.Relocatable, false) }},
	{"superuser", false, setBool(func(c *Control) *bool { return &c.Superuser }), func(c *Control) string { return flag(c.Superuser, true) }},
	{"trusted", false, setBool(func(c *Control) *bool { return &c.Trusted }), func(c *Control) string { return flag(c.Trusted, false) }},
	{"encoding", false, setEncoding, func(c *Control) string { return c.Encoding }},
	{"postgres", true, setRange, func(c *Control) string { return c.Postgres.String() }},
	{"depends", true, setList(func(c *Control) *depend.List { return &c.Depends }), func(c *Control) string { return c.Depends.String() }},
	{"recommends", true, setList(func(c *Control) *depend.List { return &c.Recommends }), func(c *Control) string { return c.Recommends.String() }},
	{"suggests", true, setList(func(c *Control) *depend.List { return &c.Suggests }), func(c *Control) string { return c.Suggests.String() }},
	{"conflicts", true, setList(func(c *Control) *depend.List { return &c.Conflicts }), func(c *Control) string { return c.Conflicts.String() }},
	{"breaks", true, setList(func(c *Control) *depend.List { return &c.Breaks }), func(c *Control) string { return c.Breaks.String() }},
	{"replaces", true, setList(func(c *Control) *depend.List { return &c.Replaces }), func(c *Control) string { return c.Replaces.String() }},
	{"provides", true, setProvides, func(c *Control) string {
		list := make([]string, len(c.Provides))
		for i, p := range c.Provides {
			list[i] = p.String()
		}
		return strings.Join(list, ", ")
	}},
	{"preload", false, setChoice(func(c *Control) *string { return &c.Preload }, PreloadNone, PreloadSession, PreloadShared), func(c *Control) string { return but(c.Preload, PreloadNone) }},
	{"restart", false, setBool(func(c *Control) *bool { return &c.Restart }), func(c *Control) string { return flag(c.Restart, false) }},
	{"os_depends", true, setWords(func(c *Control) *[]string { return &c.OSDepends }, nil), func(c *Control) string { return lines(c.OSDepends) }},
	{"custom_variable_classes", true, setWords(func(c *Control) *[]string { return &c.VariableClasses }, checkClass), func(c *Control) string { return lines(c.VariableClasses) }},
	{"module_pathname", false, setText(func(c *Control) *string { return &c.ModulePathname }, checkPathname), func(c *Control) string { return line(c.ModulePathname) }},
	{"no_relocate", true, setIdentifiers(func(c *Control) *[]string { return &c.NoRelocate }), func(c *Control) string {
		if len(c.NoRelocate) == 0 {
			return ""
		}
		return quoteValue(quoteIdentifiers(c.NoRelocate))
	}},
}

// elsewhere are names of parameters that other files have for ours.
var elsewhere = map[string]string{"requires": "depends", "default_version": "version", "conflict": "conflicts", "depend": "depends", "extension": "name", "module": "module_pathname"}

func keyNames() []string {
	names := make([]string, len(keys))
	for i, k := range keys {
		names[i] = k.name
	}
	return names
}

func findKey(name string) *key {
	for i := range keys {
		if keys[i].name == name {
			return &keys[i]
		}
	}
	return nil
}

// word prints a name or version: in quotes if it would not be read as it is.
func word(s string) string {
	if s == "" || strings.ContainsAny(s, "#'\"\\=") || strings.TrimSpace(s) != s {
		return line(s)
	}
	return s
}

func line(s string) string {
	if s == "" {
		return ""
	}
	return quoteValue(s)
}

func lines(list []string) string { return line(strings.Join(list, ", ")) }

func but(s, usual string) string {
	if s == usual {
		return ""
	}
	return s
}

func flag(b, usual bool) string {
	if b == usual {
		return ""
	}
	return fmt.Sprint(b)
}

func setText(field func(*Control) *string, check func(string) error) func(*source, *Control, *entry) {
	return func(s *source, c *Control, e *entry) {
		if e.value == "" {
			s.fail(e.offset(0), "parameter %q is empty", e.key)
			return
		}
		if check != nil {
			if err := check(e.value); err != nil {
				s.fail(e.offset(0), "%s", err)
				return
			}
		}
		*field(c) = e.value
	}
}

func setChoice(field func(*Control) *string, choices ...string) func(*source, *Control, *entry) {
	return func(s *source, c *Control, e *entry) {
		if !slices.Contains(choices, e.value) {
			s.fail(e.offset(0), "parameter %q must be one of %s, not %q", e.key, strings.Join(choices, ", "), e.value)
			return
		}
		*field(c) = e.value
	}
}

func setBool(field func(*Control) *bool) func(*source, *Control, *entry) {
	return func(s *source, c *Control, e *entry) {
		b, ok := parseBool(e.value)
		if !ok {
			s.fail(e.offset(0), "parameter %q must be true or false, not %q", e.key, e.value)
			return
		}
		*field(c) = b
	}
}

func setList(field func(*Control) *depend.List) func(*source, *Control, *entry) {
	return func(s *source, c *Control, e *entry) {
		list, err := depend.ParseList(e.value)
		if err != nil {
			s.failList(e, err)
			return
		}
		*field(c) = list
	}
}

// failList remembers an error of package depend.
func (s *source) failList(e *entry, err error) {
	var syntax *depend.SyntaxError
	if errors.As(err, &syntax) {
		s.fail(e.offset(syntax.Offset), "%s: %s", e.key, syntax.Message)
		return
	}
	s.fail(e.offset(0), "%s: %s", e.key, err)
}

func setRange(s *source, c *Control, e *entry) {
	r, err := depend.ParseRange(e.value)
	if err != nil {
		s.failList(e, err)
		return
	}
	c.Postgres = r
}

func setProvides(s *source, c *Control, e *entry) {
	list, err := depend.ParseList(e.value)
	if err != nil {
		s.failList(e, err)
		return
	}
	c.Provides = nil
	for _, alternatives := range list {
		r := alternatives[0]
		if len(alternatives) > 1 || r.Feature != "" || r.Scope != depend.Database || len(r.Range) > 1 || len(r.Range) == 1 && r.Range[0].Op != depend.Equal {
			s.fail(e.offset(0), "provides: %q must be a name, with or without a version: name (= 1.0)", alternatives)
			return
		}
		p := Provide{Name: r.Name}
		if len(r.Range) == 1 {
			p.Version = r.Range[0].Version
		}
		c.Provides = append(c.Provides, p)
	}
}

func setWords(field func(*Control) *[]string, check func(string) error) func(*source, *Control, *entry) {
	return func(s *source, c *Control, e *entry) {
		var list []string
		at := 0
		for part := range strings.SplitSeq(e.value, ",") {
			w := strings.TrimSpace(part)
			start := at + strings.Index(part, w)
			at += len(part) + 1
			if w == "" {
				s.fail(e.offset(start), "parameter %q has an empty place in its list", e.key)
				return
			}
			if check != nil {
				if err := check(w); err != nil {
					s.fail(e.offset(start), "%s", err)
					return
				}
			}
			list = append(list, w)
		}
		*field(c) = list
	}
}

func setIdentifiers(field func(*Control) *[]string) func(*source, *Control, *entry) {
	return func(s *source, c *Control, e *entry) {
		names, bad := identifiers(e.value)
		if bad >= 0 {
			s.fail(e.offset(bad), "parameter %q must be a list of extension names", e.key)
			return
		}
		for _, n := range names {
			if err := depend.CheckName(n); err != nil {
				s.fail(e.offset(0), "%s", err)
				return
			}
		}
		*field(c) = names
	}
}

func setEncoding(s *source, c *Control, e *entry) {
	name, ok := encodings[squeeze(e.value)]
	if !ok {
		s.fail(e.offset(0), "%q is not the name of an encoding that a server can have", e.value)
		return
	}
	c.Encoding = name
}

// squeeze is how the server compares names of encodings.
func squeeze(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '_' || r == '-' || r == ' ' || r == '.' || r == ':' {
			return -1
		}
		return r
	}, asciiLower(s))
}

// encodings are those that a server can have, by their squeezed names.
var encodings = func() map[string]string {
	m := map[string]string{"unicode": "UTF8", "iso88591": "LATIN1", "iso88592": "LATIN2", "iso88593": "LATIN3", "iso88594": "LATIN4",
		"iso88599": "LATIN5", "iso885910": "LATIN6", "iso885913": "LATIN7", "iso885914": "LATIN8", "iso885915": "LATIN9", "iso885916": "LATIN10",
		"alt": "WIN866", "win": "WIN1251", "koi8": "KOI8R", "tcvn": "WIN1258", "tcvn5712": "WIN1258", "vscii": "WIN1258", "abc": "WIN1258"}
	for n := range strings.FieldsSeq(`SQL_ASCII EUC_JP EUC_CN EUC_KR EUC_TW EUC_JIS_2004 UTF8 MULE_INTERNAL
		LATIN1 LATIN2 LATIN3 LATIN4 LATIN5 LATIN6 LATIN7 LATIN8 LATIN9 LATIN10
		WIN1256 WIN1258 WIN866 WIN874 KOI8R WIN1251 WIN1252 ISO_8859_5 ISO_8859_6 ISO_8859_7 ISO_8859_8
		WIN1250 WIN1253 WIN1254 WIN1255 WIN1257 KOI8U`) {
		m[squeeze(n)] = n
		if number, ok := strings.CutPrefix(n, "WIN"); ok {
			m["windows"+number] = n
		}
	}
	return m
}()

// checkClass returns why a word cannot be the prefix of parameters.
func checkClass(w string) error {
	if !classWord.MatchString(w) {
		return fmt.Errorf("%q cannot be the prefix of parameters", w)
	}
	return nil
}

func checkSchema(name string) error {
	if len(name) > depend.MaxName || strings.ContainsAny(name, "\n\r") {
		return fmt.Errorf("%q cannot be the name of a schema", name)
	}
	return nil
}

// checkPathname refuses what would end the string in which scripts have it.
func checkPathname(path string) error {
	if strings.ContainsAny(path, "'\\\n\r") {
		return fmt.Errorf("%q cannot be the path of a library", path)
	}
	return nil
}

// ParseControl reads a control file of the post's kind. The error has an
// [*Error] for each thing that is wrong, joined.
//
// A line is "key = value". A value is 'quoted' as in postgresql.conf, or bare:
// all up to the end of the line or a comment, which begins with #. A list may go
// on in the next line behind a comma. See the package's documentation for the
// keys.
func ParseControl(file string, text []byte) (*Control, error) {
	c, err := parseControl(file, text)
	if err != nil {
		return nil, err
	}
	return c, nil
}

// parseControl is ParseControl that returns what could be read, too.
func parseControl(file string, text []byte) (*Control, error) {
	s := &source{file: file, text: text}
	c := &Control{Superuser: true, Kind: KindExtension, Preload: PreloadNone, Text: text}
	if !s.check() {
		return c, s.err()
	}
	seen, misspelt := map[string]*entry{}, map[string]bool{}
	isList := func(name string) bool { k := findKey(name); return k != nil && k.list }
	for _, e := range s.pairs(isList) {
		k := findKey(e.key)
		switch {
		case k == nil:
			misspelt[s.unknown(&e)] = true
		case seen[e.key] != nil:
			s.fail(e.keyAt, "parameter %q is given a second time, after line %d", e.key, s.at(seen[e.key].keyAt, "").Line)
		default:
			k.set(s, c, &e)
		}
		if k != nil {
			seen[e.key] = &e
		}
	}
	s.consistent(c, seen)
	for _, name := range []string{"name", "version"} {
		if seen[name] == nil && !misspelt[name] {
			s.fail(0, "parameter %q is missing", name)
		}
	}
	if c.ExtVersion == "" {
		c.ExtVersion = c.Version
	}
	return c, s.err()
}

// unknown returns what was probably meant, or "".
func (s *source) unknown(e *entry) string {
	meant := elsewhere[asciiLower(e.key)]
	if meant == "" {
		meant = near(e.key, keyNames())
	}
	if meant != "" {
		s.fail(e.keyAt, "unknown parameter %q: did you mean %q?", e.key, meant)
		return meant
	}
	s.fail(e.keyAt, "unknown parameter %q", e.key)
	return ""
}

// consistent checks what concerns several parameters.
func (s *source) consistent(c *Control, seen map[string]*entry) {
	if c.Relocatable && c.Schema != "" {
		e := seen["schema"]
		s.fail(e.keyAt, "parameter \"schema\" cannot be given when \"relocatable\" is true")
	}
	for _, name := range []string{"depends", "conflicts"} {
		list := c.Depends
		if name == "conflicts" {
			list = c.Conflicts
		}
		for _, alternatives := range list {
			for _, r := range alternatives {
				// A conflict with other versions of oneself elsewhere makes sense.
				if r.Name == c.Name && r.Scope == depend.Database {
					s.fail(seen[name].keyAt, "%q cannot be in its own %s", c.Name, name)
				}
			}
		}
	}
}

// render writes a control file that ParseControl reads as c.
func (c *Control) render() []byte {
	var b bytes.Buffer
	for _, k := range keys {
		if v := k.print(c); v != "" {
			fmt.Fprintf(&b, "%s = %s\n", k.name, v)
		}
	}
	return b.Bytes()
}

// A native is a control file of the server's kind.
type native struct {
	control    Control
	hasVersion bool     // default_version is given
	requires   []string // as the server reads it
	directory  string   // of the scripts, in the share directory or absolute; empty: beside the control file
	hints      map[string]bool
}

// nativeKeys are what the server knows; those without a function are read
// where they are found.
var nativeKeys = map[string]func(*source, *Control, *entry){
	"directory":       nil,
	"default_version": nil,
	"requires":        nil,
	"module_pathname": func(_ *source, c *Control, e *entry) { c.ModulePathname = e.value },
	"comment":         func(_ *source, c *Control, e *entry) { c.Comment = e.value },
	"schema":          func(_ *source, c *Control, e *entry) { c.Schema = e.value },
	"relocatable":     setBool(func(c *Control) *bool { return &c.Relocatable }),
	"superuser":       setBool(func(c *Control) *bool { return &c.Superuser }),
	"trusted":         setBool(func(c *Control) *bool { return &c.Trusted }),
	"encoding":        setEncoding,
	"no_relocate":     setIdentifiers(func(c *Control) *[]string { return &c.NoRelocate }),
}

// hinted are the parameters of ours that a native control file can carry in
// comment lines that begin with #@: the ones the server has no place for.
var hinted = []string{"version", "license", "kind", "postgres", "depends", "recommends", "suggests", "conflicts", "breaks", "replaces",
	"provides", "preload", "restart", "os_depends", "custom_variable_classes", "no_relocate"}

// parse reads a native control file over what n already has; a secondary one
// may not say everything.
func (n *native) parse(file string, text []byte, secondary bool) error {
	s := &source{file: file, text: text}
	if !s.check() {
		return s.err()
	}
	at := map[string]*entry{}
	for _, e := range s.settings() {
		set, known := nativeKeys[e.key]
		at[e.key] = &e
		switch {
		case !known:
			meant := near(e.key, slices.Sorted(maps.Keys(nativeKeys)))
			if findKey(e.key) != nil && nativeKeys[e.key] == nil {
				s.fail(e.keyAt, "unknown parameter %q: the server would refuse the file; write it as a comment, #@%s", e.key, e.key)
			} else if meant != "" {
				s.fail(e.keyAt, "unknown parameter %q: did you mean %q?", e.key, meant)
			} else {
				s.fail(e.keyAt, "unknown parameter %q", e.key)
			}
		case secondary && (e.key == "directory" || e.key == "default_version"):
			s.fail(e.keyAt, "parameter %q cannot be set in a secondary control file", e.key)
		case set != nil:
			set(s, &n.control, &e)
		case e.key == "default_version":
			if err := depend.CheckVersion(e.value); err != nil {
				s.fail(e.offset(0), "%s", err)
			}
			n.control.ExtVersion, n.hasVersion = e.value, true
		case e.key == "directory":
			n.directory = e.value
			if !filepath.IsAbs(e.value) {
				n.directory = path.Clean(e.value)
			}
			if n.directory == home {
				n.directory = "" // where it would be looked for anyway
			}
		case e.key == "requires":
			setIdentifiers(func(*Control) *[]string { return &n.requires })(s, &n.control, &e)
		}
	}
	n.comments(s)
	if n.control.Relocatable && n.control.Schema != "" {
		e := at["schema"]
		if e == nil {
			e = at["relocatable"]
		}
		s.fail(e.keyAt, "parameter \"schema\" cannot be given when \"relocatable\" is true")
	}
	return s.err()
}

// withoutDirectory is a native control file for scripts that are beside it: a
// parameter "directory", which would send the server elsewhere, becomes a comment.
func withoutDirectory(file string, text []byte) []byte {
	b, done := bytes.Buffer{}, 0
	for _, e := range (&source{file: file, text: text}).settings() {
		if e.key == "directory" {
			b.Write(text[done:e.keyAt])
			b.WriteByte('#')
			done = e.keyAt
		}
	}
	if done == 0 && b.Len() == 0 {
		return text
	}
	b.Write(text[done:])
	return b.Bytes()
}

// comments reads the lines that begin with #@.
func (n *native) comments(s *source) {
	for pos := 0; pos < len(s.text); {
		end := s.lineEnd(pos)
		start := pos
		pos = end + 1
		if !bytes.HasPrefix(s.text[start:end], []byte("#@")) {
			continue
		}
		part := &source{file: s.file, text: s.text[start+2 : end]}
		entries := part.pairs(func(string) bool { return false })
		if first, _, _ := strings.Cut(strings.TrimSpace(string(part.text)), " "); slices.Contains(hinted, strings.TrimRight(first, "=")) {
			// Else it is a comment of somebody else's, which may look like anything.
			for _, err := range part.errs {
				var e *Error
				if errors.As(err, &e) {
					s.errs = append(s.errs, &Error{File: e.File, Line: s.at(start, "").Line, Column: e.Column + 2, Message: e.Message})
				}
			}
		}
		for _, e := range entries {
			for i := range e.at {
				e.at[i] += start + 2
			}
			e.keyAt += start + 2
			if slices.Contains(hinted, e.key) {
				findKey(e.key).set(s, &n.control, &e)
				if n.hints == nil {
					n.hints = map[string]bool{}
				}
				n.hints[e.key] = true
			} else if meant := near(e.key, hinted); meant != "" {
				s.fail(e.keyAt, "unknown parameter #@%s: did you mean #@%s?", e.key, meant)
			}
		}
	}
}

// finish makes the Control of it: what the server requires is depended upon.
func (n *native) finish() *Control {
	c := n.control
	c.Depends = slices.Clone(c.Depends)
	for _, name := range n.requires {
		if !slices.ContainsFunc(c.Depends, func(a depend.Alternatives) bool { return len(a) == 1 && a[0].Name == name }) {
			c.Depends = append(c.Depends, depend.Alternatives{{Name: name}})
		}
	}
	if c.Version == "" {
		c.Version = c.ExtVersion
	}
	return &c
}

// requires are the names that a native control file can require: dependencies
// in the same database without an alternative.
func (c *Control) requires() []string {
	var names []string
	for _, a := range c.Depends {
		if len(a) == 1 && a[0].Scope == depend.Database && !slices.Contains(names, a[0].Name) {
			names = append(names, a[0].Name)
		}
	}
	return names
}

// native renders a control file for the server. Servers refuse a parameter that
// they do not know, and one refused file hides all extensions of a server, so
// what they do not know stands in comments.
func (c *Control) native() []byte {
	var b bytes.Buffer
	put := func(name, value string) { fmt.Fprintf(&b, "%s = %s\n", name, value) }
	put("default_version", quoteValue(c.ExtVersion))
	if c.Comment != "" {
		put("comment", quoteValue(c.Comment))
	}
	if c.ModulePathname != "" {
		put("module_pathname", quoteValue(c.ModulePathname))
	}
	put("relocatable", fmt.Sprint(c.Relocatable))
	if c.Schema != "" {
		put("schema", quoteValue(c.Schema))
	}
	put("superuser", fmt.Sprint(c.Superuser))
	if c.Trusted {
		put("trusted", "true")
	}
	if c.Encoding != "" {
		put("encoding", quoteValue(c.Encoding))
	}
	if names := c.requires(); len(names) > 0 {
		put("requires", quoteValue(quoteIdentifiers(names)))
	}
	only16 := len(c.Postgres) > 0 && !slices.ContainsFunc([]string{"13", "13.99", "14", "14.99", "15", "15.99"}, func(v string) bool { return c.Postgres.Allows(v, nil) })
	for _, name := range hinted {
		v := findKey(name).print(c)
		switch {
		case v == "" || name == "version" && c.Version == c.ExtVersion:
		case name == "no_relocate" && only16:
			put(name, v)
		default:
			fmt.Fprintf(&b, "#@%s %s\n", name, v)
		}
	}
	return b.Bytes()
}
