package pack

import (
	"archive/zip"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"

	"rideau/extension/depend"
)

// A BuildError says that a source tree has to be built before it can be packed.
type BuildError struct{ Name, Why string }

func (e *BuildError) Error() string {
	return fmt.Sprintf("extension %q must be built before it can be packed: %s", e.Name, e.Why)
}

// A meta is what we read of a PGXN META.json, of version 1 or 2.
type meta struct {
	Spec struct {
		Version string `json:"version"`
	} `json:"meta-spec"`
	Version  string          `json:"version"`
	Abstract string          `json:"abstract"`
	License  json.RawMessage `json:"license"`

	// version 1
	Provides map[string]struct {
		File     string `json:"file"`
		Version  string `json:"version"`
		Abstract string `json:"abstract"`
	} `json:"provides"`
	Prereqs map[string]phase `json:"prereqs"`

	// version 2
	Contents struct {
		Extensions map[string]struct {
			Control  string `json:"control"`
			SQL      string `json:"sql"`
			Abstract string `json:"abstract"`
		} `json:"extensions"`
		Modules map[string]struct {
			Preload string `json:"preload"`
		} `json:"modules"`
	} `json:"contents"`
	Dependencies struct {
		Postgres struct {
			Version version `json:"version"`
		} `json:"postgres"`
		Packages map[string]phase `json:"packages"`
	} `json:"dependencies"`

	// what the ranges above say, by relation
	lists    map[string]depend.List
	os       []string
	postgres depend.Range
	two      bool
}

// A phase has the relations of one phase: requires, recommends, suggests and
// conflicts, each with names and ranges.
type phase map[string]map[string]version

// A version is a range, or the number 0 for any.
type version string

func (v *version) UnmarshalJSON(data []byte) error {
	var s string
	if json.Unmarshal(data, &s) == nil {
		*v = version(s)
		return nil
	}
	var n json.Number
	if err := json.Unmarshal(data, &n); err != nil {
		return fmt.Errorf("range %s is neither a string nor a number", data)
	}
	*v = version(n)
	return nil
}

// parse reads PGXN's ranges: conditions with commas between them, a version
// alone being the least, 0 any.
func (v version) parse() (depend.Range, error) {
	var r depend.Range
	if strings.TrimSpace(string(v)) == "0" || v == "" {
		return nil, nil
	}
	for part := range strings.SplitSeq(string(v), ",") {
		part = strings.TrimSpace(part)
		if part != "" && strings.IndexByte("<>=!", part[0]) < 0 {
			part = ">= " + part
		}
		c, err := depend.ParseRange(part)
		if err != nil {
			return nil, fmt.Errorf("range %q: %w", string(v), err)
		}
		r = append(r, c...)
	}
	return r, nil
}

// relations are the words of META.json that we heed.
var relations = []string{"requires", "recommends", "suggests", "conflicts"}

// readMeta reads META.json, nil if there is none.
func (t tree) readMeta() (*meta, error) {
	f := t["META.json"]
	if f == nil || f.Data == nil {
		return nil, nil
	}
	m := &meta{lists: map[string]depend.List{}}
	if err := json.Unmarshal(f.Data, m); err != nil {
		return nil, jsonError(f, err)
	}
	phases := []phase{m.Prereqs["runtime"]}
	switch {
	case strings.HasPrefix(m.Spec.Version, "1."), m.Spec.Version == "" && m.Provides != nil:
	case strings.HasPrefix(m.Spec.Version, "2."):
		m.two = true
		phases = []phase{m.Dependencies.Packages["run"]}
		var err error
		if m.postgres, err = m.Dependencies.Postgres.Version.parse(); err != nil {
			return nil, &Error{File: f.Path, Message: "dependencies.postgres: " + err.Error()}
		}
	default:
		return nil, &Error{File: f.Path, Message: fmt.Sprintf("version %q of PGXN's specification is not known", m.Spec.Version)}
	}
	for _, ph := range phases {
		for _, relation := range relations {
			for _, name := range slices.Sorted(maps.Keys(ph[relation])) {
				if err := m.relation(relation, name, ph[relation][name]); err != nil {
					return nil, &Error{File: f.Path, Message: fmt.Sprintf("%s of %q: %s", relation, name, err)}
				}
			}
		}
	}
	m.postgres = shortVersions(m.postgres)
	return m, nil
}

// relation adds one relation.
func (m *meta) relation(relation, name string, v version) error {
	r, err := v.parse()
	if err != nil {
		return err
	}
	if m.two {
		// A purl: pkg:TYPE/NAME. What is no extension is the system's.
		kind, rest, _ := strings.Cut(strings.TrimPrefix(name, "pkg:"), "/")
		if kind != "pgxn" && kind != "postgres" {
			if relation == "requires" {
				m.os = append(m.os, rest)
			}
			return nil
		}
		name = rest[strings.LastIndexByte(rest, '/')+1:]
	} else if strings.EqualFold(name, "PostgreSQL") {
		if relation == "requires" {
			m.postgres = r
		}
		return nil
	}
	if err := depend.CheckName(name); err != nil {
		return err
	}
	m.lists[relation] = append(m.lists[relation], depend.Alternatives{{Name: name, Range: r}})
	return nil
}

// shortVersions cuts the zeros off that SemVer asks for and servers do not have:
// ">= 13.0.0" would not allow 13.
func shortVersions(r depend.Range) depend.Range {
	for i := range r {
		for strings.HasSuffix(r[i].Version, ".0") && (r[i].Op == depend.GreaterOrEqual || r[i].Op == depend.Less) {
			r[i].Version = strings.TrimSuffix(r[i].Version, ".0")
		}
	}
	return r
}

// apply adds to a control file what META.json knows and it does not.
func (m *meta) apply(n *native) {
	c := &n.control
	for name, p := range m.Provides {
		if strings.EqualFold(name, c.Name) && !n.hints["version"] && depend.CheckVersion(p.Version) == nil {
			c.Version = p.Version
		}
	}
	if m.two && !n.hints["version"] && depend.CheckVersion(m.Version) == nil {
		c.Version = m.Version
	}
	if c.Comment == "" {
		c.Comment = m.Abstract
	}
	if c.License == "" {
		c.License = license(m.License)
	}
	if !n.hints["postgres"] && m.postgres != nil {
		c.Postgres = m.postgres
	}
	for relation, field := range map[string]*depend.List{"requires": &c.Depends, "recommends": &c.Recommends, "suggests": &c.Suggests, "conflicts": &c.Conflicts} {
		for _, a := range m.lists[relation] {
			known := slices.ContainsFunc(*field, func(o depend.Alternatives) bool {
				return slices.ContainsFunc(o, func(r depend.Relation) bool { return r.Name == a[0].Name })
			})
			if !known && a[0].Name != c.Name {
				*field = append(*field, a)
			}
		}
	}
	if !n.hints["os_depends"] && m.os != nil {
		c.OSDepends = m.os
	}
	if !n.hints["preload"] {
		for _, module := range m.Contents.Modules {
			switch {
			case module.Preload == "server":
				c.Preload = PreloadShared
			case module.Preload == "session" && c.Preload == PreloadNone:
				c.Preload = PreloadSession
			}
		}
	}
}

// license reads a license: a word, several, or names with addresses.
func license(raw json.RawMessage) string {
	var one string
	var several []string
	var named map[string]string
	switch {
	case len(raw) == 0:
	case json.Unmarshal(raw, &one) == nil:
		return one
	case json.Unmarshal(raw, &several) == nil:
		return strings.Join(several, ", ")
	case json.Unmarshal(raw, &named) == nil:
		return strings.Join(slices.Sorted(maps.Keys(named)), ", ")
	}
	return ""
}

var (
	assignment = regexp.MustCompile(`^\s*(?:override\s+)?(MODULES|MODULE_big)\s*[:+?]?=\s*(.*?)\s*$`)
	wildcard   = regexp.MustCompile(`\$\(wildcard\s+([^)]+)\)`)
	buildRule  = regexp.MustCompile(`^([^#\t:=][^:=]*--[^:=]*\.sql)\s*:\s*([^=].*?)\s*$`)
	copies     = regexp.MustCompile(`^[-@]*\s*(cp|install)\s+(-\S+\s+)*(\$<|\$\^|\S*/?\S+\.sql)\s+(\$@|\S+)\s*$|^[-@]*\s*cat\s+(\$<|\$\^|\S+\.sql)\s*>\s*(\$@|\S+)\s*$`)
	variable   = regexp.MustCompile(`\$[({](EXTENSION|EXTVERSION|EXT|MODULE|NAME)[)}]`)
)

// built does what make would do, where that is nothing but copying, and refuses
// what needs more: a compiler, or a script that is generated.
func (t tree) built(p *Package, name string, c *Control) error {
	if t["Cargo.toml"] != nil {
		return &BuildError{Name: name, Why: "it is written in Rust (Cargo.toml)"}
	}
	var makefile *File
	for n, f := range t {
		if isMakefile(n) {
			makefile = f
		}
	}
	if makefile == nil {
		return nil
	}
	lines := strings.Split(strings.ReplaceAll(string(makefile.Data), "\\\n", " "), "\n")
	for _, l := range lines {
		m := assignment.FindStringSubmatch(l)
		if m == nil || !t.compiles(m[2]) {
			continue
		}
		if slices.ContainsFunc(slices.Collect(maps.Keys(t)), func(n string) bool { return strings.HasPrefix(n, "lib/") && isLibrary(n) }) {
			continue // it has been built
		}
		return &BuildError{Name: name, Why: fmt.Sprintf("%s says %s = %s, which needs a compiler", makefile.Path, m[1], m[2])}
	}
	if c.ExtVersion == "" || p.script("", c.ExtVersion) != nil {
		return nil
	}
	for _, from := range []string{"sql/" + name + ".sql", name + ".sql"} {
		f := t[from]
		if f == nil {
			continue
		}
		for i, l := range lines {
			m := buildRule.FindStringSubmatch(l)
			if m == nil {
				continue
			}
			var recipe []string
			for _, r := range lines[i+1:] {
				if !strings.HasPrefix(r, "\t") {
					break
				}
				recipe = append(recipe, strings.TrimSpace(r))
			}
			source := variable.ReplaceAllString(m[2], name)
			if len(recipe) != 1 || !copies.MatchString(recipe[0]) || source != from && source != "%.sql" {
				return &BuildError{Name: name, Why: fmt.Sprintf("%s makes %s from %s by more than copying", makefile.Path, strings.TrimSpace(m[1]), m[2])}
			}
			p.Scripts = append(p.Scripts, Script{To: c.ExtVersion, File: from, SQL: f.Data})
			return nil
		}
	}
	if _, err := (&Package{Control: &Control{Name: name}, Scripts: p.Scripts}).Path("", c.ExtVersion); err != nil {
		return &BuildError{Name: name, Why: fmt.Sprintf("there is no script for version %q, and %s does not make it from sql/%s.sql by copying", c.ExtVersion, makefile.Path, name)}
	}
	return nil
}

// compiles says whether the value of MODULES or MODULE_big is anything: many
// trees of nothing but SQL have it from a template, as what is found in src/.
func (t tree) compiles(value string) bool {
	value, _, _ = strings.Cut(value, "#")
	value = strings.TrimSpace(value)
	patterns := wildcard.FindAllStringSubmatch(value, -1)
	if len(patterns) == 0 {
		return value != ""
	}
	for _, p := range patterns {
		for pattern := range strings.FieldsSeq(p[1]) {
			for name := range t {
				if ok, err := path.Match(pattern, name); ok && err == nil {
					return true
				}
			}
		}
	}
	return false
}

// ReadZip reads a distribution of PGXN: a zip file with one folder, which has a
// source tree. It returns the package of each extension in it, by name. What has
// to be built is refused with a [*BuildError].
func ReadZip(r io.ReaderAt, size int64) ([]*Package, error) {
	z, err := zip.NewReader(r, size)
	if err != nil {
		return nil, fmt.Errorf("could not read zip file: %w", err)
	}
	if len(z.File) > maxEntries {
		return nil, fmt.Errorf("zip file has more than %d entries", maxEntries)
	}
	t, l, top := tree{}, newLimit(), ""
	for _, f := range z.File {
		name := strings.TrimSuffix(f.Name, "/")
		if err := checkPath(name); err != nil {
			return nil, err
		}
		first, rest, inFolder := strings.Cut(name, "/")
		if top == "" {
			top = first
		}
		isDir := strings.HasSuffix(f.Name, "/")
		if first != top || !inFolder && !isDir {
			return nil, fmt.Errorf("zip file has more than one folder at its top: %q and %q", top, first)
		}
		if isDir {
			continue
		}
		if _, twice := t[rest]; twice {
			return nil, fmt.Errorf("zip file has %q twice", f.Name)
		}
		t[rest] = &File{Path: rest}
		if !wanted(rest) {
			continue
		}
		if !f.Mode().IsRegular() {
			return nil, fmt.Errorf("%q in the zip file is not a regular file", f.Name)
		}
		content, err := f.Open()
		if err != nil {
			return nil, fmt.Errorf("could not read %q in the zip file: %w", f.Name, err)
		}
		data, err := l.readAll(rest, content)
		content.Close()
		if err != nil {
			return nil, err
		}
		t[rest] = &File{Path: rest, Mode: plainMode(f.Mode()), Data: bytes.Clone(data)}
	}
	if t["control"] != nil {
		p, err := t.post()
		if err != nil {
			return nil, err
		}
		return []*Package{p}, nil
	}
	names, err := t.names()
	if err != nil {
		return nil, err
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("zip file has no control file in %q", top)
	}
	var list []*Package
	for _, name := range names {
		p, err := t.native(name)
		if err != nil {
			return nil, err
		}
		list = append(list, p)
	}
	return list, nil
}
