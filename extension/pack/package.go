package pack

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"

	"rideau/extension/depend"
	"rideau/extension/script"
)

// A Script makes one version from nothing, or from another version.
type Script struct {
	From, To string // From is empty for a script that installs To
	File     string // as errors show it
	SQL      []byte
}

// An Object names what an installed extension consists of, as
// pg_identify_object_as_address does, with the target schema written
// @extschema@.
type Object struct {
	Type  string   `json:"type"`
	Names []string `json:"names"`
	Args  []string `json:"args"`
}

// A File is what a package has beside its SQL: "lib/foo.so" and "share/…" belong
// on every node, "doc/…" nowhere.
type File struct {
	Path string
	Mode fs.FileMode // 0644 or 0755
	Data []byte
}

// A Package is one release of one extension.
type Package struct {
	Control   *Control
	Scripts   []Script // sorted by From and To
	Uninstall []byte   // has the placeholders of a script; nil: the recorded objects are dropped
	Conf      []Setting
	ConfText  []byte
	Objects   []Object // nil: not known
	Files     []File   // sorted by Path
	SHA256    string   // of the archive that it came in, in hex; empty for a directory

	native    bool                // it is laid out as servers have it
	secondary map[string]*Control // controls of versions with a control file of their own
	aux       map[string][]byte   // and those files
	meta      []byte              // META.json
}

// A NoPathError says that no scripts lead from one version to another; from the
// empty version, that none install it.
type NoPathError struct{ Name, From, To string }

func (e *NoPathError) Error() string {
	if e.From == "" {
		return fmt.Sprintf("extension %q has no installation script nor update path for version %q", e.Name, e.To)
	}
	return fmt.Sprintf("extension %q has no update path from version %q to version %q", e.Name, e.From, e.To)
}

// ControlOf returns what is to be heeded when that version is installed or
// upgraded to: native packages can have a secondary control file for it.
func (p *Package) ControlOf(version string) *Control {
	if c := p.secondary[version]; c != nil {
		return c
	}
	return p.Control
}

// Edges are the upgrade scripts.
func (p *Package) Edges() []depend.Edge {
	var list []depend.Edge
	for _, s := range p.Scripts {
		if s.From != "" {
			list = append(list, depend.Edge{From: s.From, To: s.To})
		}
	}
	return list
}

// Versions are those that can be installed from nothing, lowest first. They are
// versions of the SQL, see [Control.ExtVersion].
func (p *Package) Versions() []string {
	g := p.graph()
	var list []string
	for v := range g.next {
		if _, ok := g.install(v); ok {
			list = append(list, v)
		}
	}
	slices.Sort(list)
	return depend.NewOrder(list, p.Edges()).Sorted()
}

// Path returns the scripts that lead from one version to another, or from
// nothing where from is empty; none if they are the same. It is the path that
// the server would take: the fewest scripts, and of those with as many the
// first by their names, but the last version to begin an installation with. An
// error is a [*NoPathError].
func (p *Package) Path(from, to string) ([]Script, error) {
	if from == to && from != "" {
		return nil, nil
	}
	g := p.graph()
	versions, ok := []string(nil), false
	if from == "" {
		versions, ok = g.install(to)
		versions = append([]string{""}, versions...)
	} else {
		versions, ok = g.path(from, to, false)
	}
	if !ok {
		return nil, &NoPathError{Name: p.Control.Name, From: from, To: to}
	}
	var list []Script
	for i := range versions[1:] {
		list = append(list, *p.script(versions[i], versions[i+1]))
	}
	return list, nil
}

func (p *Package) script(from, to string) *Script {
	for i := range p.Scripts {
		if p.Scripts[i].From == from && p.Scripts[i].To == to {
			return &p.Scripts[i]
		}
	}
	return nil
}

// A graph has the versions of a package and its upgrade scripts.
type graph struct {
	installable map[string]bool
	next        map[string][]string // every version is a key
}

func (p *Package) graph() *graph {
	g := &graph{installable: map[string]bool{}, next: map[string][]string{}}
	for _, s := range p.Scripts {
		g.next[s.To] = append(g.next[s.To], []string{}...)
		if s.From == "" {
			g.installable[s.To] = true
		} else {
			g.next[s.From] = append(g.next[s.From], s.To)
		}
	}
	return g
}

// path is the server's find_update_path: the versions from one to another with
// both ends, as few as there can be. Where two versions come before another at
// the same distance, the first by name is taken. With reject, versions that can
// be installed from nothing are not passed through.
func (g *graph) path(from, to string, reject bool) ([]string, bool) {
	if _, known := g.next[from]; !known {
		return nil, false
	}
	previous := map[string]string{from: ""}
	for ring := []string{from}; len(ring) > 0; {
		if _, found := previous[to]; found {
			break
		}
		found := map[string]string{}
		for _, v := range ring {
			for _, n := range g.next[v] {
				if _, nearer := previous[n]; nearer || reject && g.installable[n] {
					continue
				}
				if p, ok := found[n]; !ok || v < p {
					found[n] = v
				}
			}
		}
		maps.Copy(previous, found)
		ring = slices.Collect(maps.Keys(found))
	}
	if _, ok := previous[to]; !ok || from == to {
		return nil, false
	}
	list := []string{to}
	for v := to; v != from; {
		v = previous[v]
		list = append(list, v)
	}
	slices.Reverse(list)
	return list, true
}

// install is the server's find_install_path: the versions from one that can be
// installed to the one wanted.
func (g *graph) install(to string) ([]string, bool) {
	if g.installable[to] {
		return []string{to}, true
	}
	var best []string
	for _, from := range slices.Sorted(maps.Keys(g.installable)) {
		path, ok := g.path(from, to, true)
		// Of two as short the later name: the server compares them that way
		// round here.
		if ok && (best == nil || len(path) <= len(best)) {
			best = path
		}
	}
	return best, best != nil
}

// Native renders the files that a server needs to have it as an extension:
// NAME.control, NAME--1.0.sql, NAME--1.0--1.1.sql and so on. What the server has
// no parameter for stands in the control file in comments, see ReadNative. The
// server's older versions refuse no_relocate, so it is a comment, too, unless
// only newer ones are allowed.
func (p *Package) Native() (map[string][]byte, error) {
	c := p.Control
	if err := errors.Join(depend.CheckName(c.Name), depend.CheckVersion(c.ExtVersion)); err != nil {
		return nil, err
	}
	if c.Kind == KindLibrary {
		return nil, fmt.Errorf("package %q is a library: there is no extension to create", c.Name)
	}
	text := c.native()
	if p.native && c.Text != nil {
		text = c.Text
	}
	files := map[string][]byte{c.Name + ".control": text}
	for _, s := range p.Scripts {
		files[nativeName(c.Name, s)] = s.SQL
	}
	for version, text := range p.aux {
		files[c.Name+"--"+version+".control"] = text
	}
	return files, nil
}

func nativeName(name string, s Script) string {
	if s.From == "" {
		return name + "--" + s.To + ".sql"
	}
	return name + "--" + s.From + "--" + s.To + ".sql"
}

// Check reads every script as an installation would: that it can be cut into
// statements, controls no transaction, and uses no placeholder that nothing
// stands for. Errors are [*script.Error], joined.
func (p *Package) Check() error {
	var errs []error
	for _, s := range p.Scripts {
		errs = append(errs, p.ControlOf(s.To).checkSQL(s.File, s.SQL, true))
	}
	if p.Uninstall != nil {
		errs = append(errs, p.Control.checkSQL("uninstall.sql", p.Uninstall, true))
	}
	return errors.Join(errs...)
}

// checkSQL checks one script. That is not strict if the control file could not be
// read, which says what placeholders there are.
func (c *Control) checkSQL(file string, sql []byte, strict bool) error {
	sub := script.Substitution{File: file, Schema: "s", Relocatable: c.Relocatable, Owner: "o", ModulePathname: c.ModulePathname,
		Required: map[string]string{}, Strict: strict}
	for _, a := range c.Depends {
		for _, r := range a {
			sub.Required[r.Name] = "s"
		}
	}
	sql, err := script.Substitute(sql, sub)
	if err != nil {
		return err
	}
	list, err := script.Split(file, sql)
	if err != nil {
		return err
	}
	return script.CheckTransaction(list)
}

// layout lists all files of the package by path, as its archive has them.
func (p *Package) layout() (map[string]File, error) {
	c := p.Control
	files := map[string]File{}
	put := func(path string, data []byte) {
		if data != nil {
			files[path] = File{Path: path, Mode: 0o644, Data: data}
		}
	}
	installs := 0
	for _, s := range p.Scripts {
		if s.From == "" {
			installs++
		}
	}
	if p.native || installs > 1 {
		list, err := p.Native()
		if err != nil {
			return nil, err
		}
		for path, data := range list {
			put(path, append([]byte{}, data...))
		}
		put("META.json", p.meta)
	} else {
		text := c.Text
		if text == nil {
			text = c.render()
		}
		put("control", text)
		for _, s := range p.Scripts {
			path := "install.sql"
			if s.From != "" {
				path = "upgrade/" + s.From + "--" + s.To + ".sql"
			} else if s.To != c.ExtVersion {
				return nil, fmt.Errorf("package %q installs version %q, its control file says %q", c.Name, s.To, c.ExtVersion)
			}
			put(path, append([]byte{}, s.SQL...))
		}
	}
	put("uninstall.sql", p.Uninstall)
	put(c.Name+".conf", p.ConfText)
	if p.Objects != nil {
		data, err := json.MarshalIndent(p.Objects, "", "\t")
		if err != nil {
			return nil, err
		}
		put("objects.json", append(data, '\n'))
	}
	for _, f := range p.Files {
		if _, twice := files[f.Path]; twice {
			return nil, fmt.Errorf("package %q has two files %q", c.Name, f.Path)
		}
		f.Mode = plainMode(f.Mode)
		files[f.Path] = f
	}
	return files, nil
}

// plainMode keeps of a file's mode only whether it is a program.
func plainMode(m fs.FileMode) fs.FileMode {
	if m&0o100 != 0 {
		return 0o755
	}
	return 0o644
}

func (p *Package) sort() {
	slices.SortFunc(p.Scripts, func(a, b Script) int { return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To)) })
	slices.SortFunc(p.Files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
}
