package pack

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"rideau/extension/depend"
)

// What a package may be at most. The largest that are known have a library of
// some ten megabytes and a few hundred upgrade scripts.
const (
	maxTotal   = 512 << 20 // bytes of all files together
	maxFile    = 256 << 20 // of one file
	maxText    = 1 << 20   // of a control file, settings, META.json
	maxEntries = 20_000
	maxPath    = 240
	maxDepth   = 12
)

// A tree is what a package is read from: files by their paths. Those that a
// package has no use for have no data.
type tree map[string]*File

// wanted says whether a file of a directory can be part of a package.
func wanted(name string) bool {
	dir, base := path.Split(name)
	switch path.Ext(base) {
	case ".sql", ".control":
		return true
	case ".conf", ".json":
		return dir == ""
	}
	switch {
	case dir == "":
		return base == "control" || isMakefile(base) || isLegal(base)
	default:
		return strings.HasPrefix(name, "lib/") || strings.HasPrefix(name, "share/") || strings.HasPrefix(name, "doc/")
	}
}

func isMakefile(base string) bool { return base == "Makefile" || base == "GNUmakefile" }

// isLegal says whether it is a text that must go wherever the package goes.
func isLegal(base string) bool {
	for _, p := range []string{"LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"} {
		if strings.HasPrefix(strings.ToUpper(base), p) {
			return true
		}
	}
	return false
}

// A limit counts what is read, and says how much may be.
type limit struct{ read, total, file, entries int64 }

func newLimit() *limit { return &limit{total: maxTotal, file: maxFile, entries: maxEntries} }

func (l *limit) readAll(name string, r io.Reader) ([]byte, error) {
	most := l.file
	switch path.Ext(name) {
	case ".control", ".conf", ".json", "":
		if !strings.Contains(name, "/") {
			most = min(most, maxText)
		}
	}
	data, err := io.ReadAll(io.LimitReader(r, min(most, l.total-l.read)+1))
	if err != nil {
		return nil, fmt.Errorf("could not read %s: %w", name, err)
	}
	l.read += int64(len(data))
	switch {
	case int64(len(data)) > most:
		return nil, &Error{File: name, Message: fmt.Sprintf("file is larger than %d bytes", most)}
	case l.read > l.total:
		return nil, &Error{File: name, Message: fmt.Sprintf("package is larger than %d bytes", l.total)}
	}
	return data, nil
}

// walk reads a directory. Folders that begin with a dot are left out.
func walk(fsys fs.FS) (tree, error) {
	t, l := tree{}, newLimit()
	err := fs.WalkDir(fsys, ".", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name != "." && strings.HasPrefix(d.Name(), "."):
			if d.IsDir() {
				return fs.SkipDir
			}
			return nil
		case d.IsDir():
			if strings.Count(name, "/") >= maxDepth {
				return fs.SkipDir
			}
			return nil
		case len(t) >= maxEntries:
			return fmt.Errorf("directory has more than %d files: it is no package", maxEntries)
		case !wanted(name):
			t[name] = &File{Path: name}
			return nil
		}
		return t.load(fsys, name, l)
	})
	return t, err
}

// load reads one file of a directory, through symbolic links.
func (t tree) load(fsys fs.FS, name string, l *limit) error {
	f, err := fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		if info.IsDir() {
			return nil // a link to a folder
		}
		return &Error{File: name, Message: "not a regular file"}
	}
	data, err := l.readAll(name, f)
	if err != nil {
		return err
	}
	t[name] = &File{Path: name, Mode: plainMode(info.Mode()), Data: data}
	return nil
}

// ReadDir reads a package that is laid out as the post has it: control,
// install.sql, and as there are upgrade/1.0--1.1.sql, uninstall.sql, NAME.conf,
// objects.json, lib/ and share/. Scripts are checked, see [Package.Check].
func ReadDir(fsys fs.FS) (*Package, error) {
	t, err := walk(fsys)
	if err != nil {
		return nil, err
	}
	return t.post()
}

// ReadNative reads a package from the files that a server has, or a source tree
// has for it: NAME.control, secondary control files, NAME--*.sql (also in folders
// such as sql/), and META.json beside them.
//
// Lines of the control file that begin with #@ are comments to the server and
// parameters to us: "#@depends bar (>= 1.1), baz".
//
// A directory with the control files of several extensions is read for nothing
// but this one's scripts and control files. The scripts are not checked.
//
// It can also be a server's share directory, which has extension/NAME.control:
// the only one in which scripts can be found that are elsewhere, because the
// control file has a directory. An absolute one is read from this machine, as the
// server would.
func ReadNative(fsys fs.FS, name string) (*Package, error) {
	if err := depend.CheckName(name); err != nil {
		return nil, err
	}
	if isShare(fsys, name) {
		return readShare(fsys, name)
	}
	entries, err := fs.ReadDir(fsys, ".")
	if err != nil {
		return nil, err
	}
	controls := 0
	for _, e := range entries {
		if isControl(e.Name()) {
			controls++
		}
	}
	if controls == 1 {
		t, err := walk(fsys)
		if err != nil {
			return nil, err
		}
		return t.native(name)
	}
	t, l := tree{}, newLimit()
	if slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name+".control" }) {
		if err := t.load(fsys, name+".control", l); err != nil {
			return nil, err
		}
	}
	if err := t.versions(fsys, name, entries, l); err != nil {
		return nil, err
	}
	return t.native(name)
}

// versions loads the scripts and the secondary control files of one extension.
func (t tree) versions(fsys fs.FS, name string, entries []fs.DirEntry, l *limit) error {
	for _, e := range entries {
		n := e.Name()
		if strings.HasPrefix(n, name+"--") && (strings.HasSuffix(n, ".sql") || strings.HasSuffix(n, ".control")) {
			if err := t.load(fsys, n, l); err != nil {
				return err
			}
		}
	}
	return nil
}

// home is the folder of the share directory that has the control files.
const home = "extension"

// isShare says whether it is a share directory that has the extension, and not
// itself the folder of its control file.
func isShare(fsys fs.FS, name string) bool {
	if _, err := fs.Stat(fsys, name+".control"); err == nil {
		return false
	}
	_, err := fs.Stat(fsys, path.Join(home, name+".control"))
	return err == nil
}

// readShare reads an extension as a server finds it: its control file in the
// folder extension, and in the folder that it names, or else beside it, scripts
// and secondary control files.
func readShare(share fs.FS, name string) (*Package, error) {
	t, l := tree{}, newLimit()
	file := name + ".control"
	folder, err := fs.Sub(share, home)
	if err != nil {
		return nil, err
	}
	if err := t.load(folder, file, l); err != nil {
		return nil, err
	}
	if t[file] == nil {
		return nil, &Error{File: file, Message: "is a folder"}
	}
	var n native
	if err := n.parse(file, t[file].Data, false); err != nil {
		return nil, err
	}
	switch dir := n.directory; {
	case dir == "":
	case filepath.IsAbs(dir):
		folder = os.DirFS(dir)
	case !fs.ValidPath(dir):
		return nil, &Error{File: file, Message: fmt.Sprintf("its scripts are in folder %q, outside of the share directory", dir)}
	default:
		if folder, err = fs.Sub(share, dir); err != nil {
			return nil, err
		}
	}
	entries, err := fs.ReadDir(folder, ".")
	if err != nil {
		return nil, fmt.Errorf("could not read the folder of the scripts of %s, %q: %w", file, n.directory, err)
	}
	if err := t.versions(folder, name, entries, l); err != nil {
		return nil, err
	}
	return t.native(name)
}

// isControl says whether it is the name of a primary control file.
func isControl(base string) bool {
	return strings.HasSuffix(base, ".control") && base != ".control" && !strings.Contains(base, "--")
}

// Read reads a package of whichever layout it is.
func Read(fsys fs.FS) (*Package, error) {
	t, err := walk(fsys)
	if err != nil {
		return nil, err
	}
	return t.one()
}

// one reads the one package that a tree is.
func (t tree) one() (*Package, error) {
	if t["control"] != nil {
		return t.post()
	}
	names, err := t.names()
	switch {
	case err != nil:
		return nil, err
	case len(names) == 0:
		return nil, &Error{File: "control", Message: "no control file: neither this one nor a NAME.control"}
	case len(names) > 1:
		return nil, fmt.Errorf("directory has the control files of several extensions, name the one that is meant: %s", strings.Join(names, ", "))
	}
	return t.native(names[0])
}

// names are the extensions that have a native control file, in the tree's root
// or where META.json says.
func (t tree) names() ([]string, error) {
	set := map[string]bool{}
	for name := range t {
		if isControl(name) && !strings.Contains(name, "/") {
			set[strings.TrimSuffix(name, ".control")] = true
		}
	}
	m, err := t.readMeta()
	if err != nil {
		return nil, err
	}
	if m != nil {
		for name, c := range m.Contents.Extensions {
			if t[path.Clean(c.Control)] != nil {
				set[name] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(set)), nil
}

// roots are what the root of a package of the post's layout can have.
var roots = []string{"control", "install.sql", "uninstall.sql", "objects.json", "upgrade", "lib", "share", "doc"}

// post reads the post's layout.
func (t tree) post() (*Package, error) {
	text := t["control"]
	if text == nil {
		return nil, &Error{File: "control", Message: "file is missing"}
	}
	c, err := parseControl("control", text.Data)
	p := &Package{Control: c}
	w := wrong{control: err}
	fail := func(in *[]error, file, format string, args ...any) {
		*in = append(*in, &Error{File: file, Message: fmt.Sprintf(format, args...)})
	}
	misspelt := map[string]bool{} // what was probably meant by another name
	for _, name := range slices.Sorted(maps.Keys(t)) {
		f := t[name]
		first, rest, inFolder := strings.Cut(name, "/")
		switch {
		case name == "install.sql":
			p.Scripts = append(p.Scripts, Script{To: c.ExtVersion, File: name, SQL: f.Data})
		case first == "upgrade" && inFolder:
			s, err := upgradeScript(c.Name, rest)
			if err != nil {
				fail(&w.scripts, name, "%s", err)
				continue
			}
			s.File, s.SQL = name, f.Data
			if o := p.script(s.From, s.To); o != nil {
				fail(&w.scripts, name, "is the same upgrade as %s", o.File)
				continue
			}
			p.Scripts = append(p.Scripts, s)
		case inFolder:
			if meant := near(first, roots); meant != "" && meant != first && !misspelt[first+"/"] {
				misspelt[first+"/"] = true // each of its files says so
				fail(&w.files, first, "unknown folder: did you mean %q?", meant)
			}
		case strings.HasSuffix(name, ".conf") && name != c.Name+".conf" && c.Name != "":
			fail(&w.conf, name, "settings of package %q must be in %s.conf", c.Name, c.Name)
		case strings.HasSuffix(name, ".control") || strings.HasSuffix(name, ".sql") && name != "uninstall.sql":
			meant := near(name, roots)
			if meant != "" {
				misspelt[meant] = true
				fail(&w.files, name, "unknown file: did you mean %q?", meant)
			} else {
				fail(&w.files, name, "unknown file: scripts are install.sql, uninstall.sql and upgrade/FROM--TO.sql")
			}
		}
	}
	if t["install.sql"] == nil && !misspelt["install.sql"] && c.Kind != KindLibrary {
		fail(&w.scripts, "install.sql", "file is missing")
	}
	t.rest(p, &w)
	for name, f := range t {
		if f.Data != nil && (strings.HasPrefix(name, "lib/") || strings.HasPrefix(name, "share/")) {
			p.Files = append(p.Files, *f)
		}
	}
	p.check(&w, true)
	if err := w.err(); err != nil {
		return nil, err
	}
	return p, nil
}

// wrong is what was found wrong with a directory, all of it, in the order in which
// people are told.
type wrong struct {
	control              error // and then less is known of the rest
	scripts, conf, files []error
}

func (w *wrong) err() error {
	return errors.Join(slices.Concat([]error{w.control}, w.scripts, w.conf, w.files)...)
}

// check checks that scripts are UTF-8, unless the control file says that they are
// something else, and with sql also what [Package.Check] does.
func (p *Package) check(w *wrong, sql bool) {
	p.sort()
	for _, s := range p.Scripts {
		c := p.ControlOf(s.To)
		other := c.Encoding != "" && c.Encoding != "UTF8"
		if w.control != nil { // the line that is wrong may have said so
			other = other || bytes.Contains(c.Text, []byte("encoding"))
		}
		if src := (&source{file: s.File, text: s.SQL}); !other && !src.check() {
			w.add(&w.scripts, src.err())
		} else if sql {
			w.add(&w.scripts, c.checkSQL(s.File, s.SQL, w.control == nil))
		}
	}
	if p.Uninstall != nil && sql {
		w.add(&w.scripts, p.Control.checkSQL("uninstall.sql", p.Uninstall, w.control == nil))
	}
}

func (w *wrong) add(in *[]error, err error) {
	if err != nil {
		*in = append(*in, err)
	}
}

// upgradeScript reads the name of a file in upgrade/: FROM--TO.sql, which may
// begin with the extension's name as the server's do.
func upgradeScript(name, file string) (Script, error) {
	base, isSQL := strings.CutSuffix(file, ".sql")
	parts := strings.Split(base, "--")
	if len(parts) == 3 && parts[0] == name {
		parts = parts[1:]
	}
	if !isSQL || len(parts) != 2 {
		return Script{}, fmt.Errorf("the name of an upgrade must be FROM--TO.sql")
	}
	for _, v := range parts {
		if err := depend.CheckVersion(v); err != nil {
			return Script{}, err
		}
	}
	if parts[0] == parts[1] {
		return Script{}, fmt.Errorf("upgrade leads from version %q to itself", parts[0])
	}
	return Script{From: parts[0], To: parts[1]}, nil
}

// rest reads what both layouts have in the same way.
func (t tree) rest(p *Package, w *wrong) {
	if f := t["uninstall.sql"]; f != nil {
		p.Uninstall = f.Data
	}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		if name != p.Control.Name+".conf" && (p.Control.Name != "" || strings.Contains(name, "/") || path.Ext(name) != ".conf") {
			continue
		}
		var err error
		p.Conf, err = parseConf(name, t[name].Data, p.Control.VariableClasses, w.control == nil)
		w.add(&w.conf, err)
		p.ConfText = t[name].Data
	}
	if f := t["objects.json"]; f != nil {
		d := json.NewDecoder(bytes.NewReader(f.Data))
		d.DisallowUnknownFields()
		if err := d.Decode(&p.Objects); err != nil {
			w.files = append(w.files, jsonError(f, err))
		} else if _, err := d.Token(); !errors.Is(err, io.EOF) {
			w.files = append(w.files, &Error{File: f.Path, Message: "something stands behind the list of objects"})
		}
		if p.Objects == nil {
			p.Objects = []Object{}
		}
	}
	for name, f := range t {
		switch {
		case f.Data == nil:
		case strings.HasPrefix(name, "doc/"):
			p.Files = append(p.Files, *f)
		case isLegal(name) && !strings.Contains(name, "/") && t["doc/"+name] == nil:
			p.Files = append(p.Files, File{Path: "doc/" + name, Mode: 0o644, Data: f.Data})
		}
	}
}

// jsonError gives an error of encoding/json a line and column where it has one.
func jsonError(f *File, err error) error {
	s := &source{file: f.Path, text: f.Data}
	var syntax *json.SyntaxError
	var wrong *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return s.at(int(syntax.Offset), "%s", err)
	case errors.As(err, &wrong):
		return s.at(int(wrong.Offset), "%s cannot be %s", wrong.Field, wrong.Value)
	}
	return &Error{File: f.Path, Message: err.Error()}
}

// native reads the server's layout.
func (t tree) native(name string) (*Package, error) {
	file := name + ".control"
	m, err := t.readMeta()
	if err != nil {
		return nil, err
	}
	if m != nil && m.Contents.Extensions[name].Control != "" {
		if at := path.Clean(m.Contents.Extensions[name].Control); t[at] != nil {
			file = at
		}
	}
	f := t[file]
	if f == nil {
		return nil, &Error{File: file, Message: "file is missing"}
	}
	n := &native{control: Control{Name: name, Superuser: true, Kind: KindExtension, Preload: PreloadNone, Text: f.Data}}
	w := wrong{control: n.parse(file, f.Data, false)}
	n.control.Text = withoutDirectory(file, f.Data)
	p := &Package{native: true}
	t.scripts(p, name, &w)
	if err := t.built(p, name, &n.control); err != nil && w.err() == nil {
		return nil, err
	}
	if w.control != nil {
		// Which version is meant may not be known: look at what does not need it.
		p.Control = n.finish()
		t.rest(p, &w)
		p.check(&w, true)
		return nil, w.err()
	}
	if len(p.Scripts) == 0 && n.directory != "" {
		return nil, &Error{File: file, Message: fmt.Sprintf("its scripts are not here but in folder %q of the server's share directory (parameter \"directory\"): read that directory, the one above %q, which has both", n.directory, home)}
	}
	p.Control = &n.control
	if !n.hasVersion {
		// Who creates it must name a version then. The latest is ours to choose.
		versions := p.Versions()
		if len(versions) == 0 {
			w.control = &Error{File: file, Message: "there is no default_version, and no script installs one"}
			return nil, w.err()
		}
		n.control.ExtVersion = versions[len(versions)-1]
	}
	if m != nil {
		m.apply(n)
		p.meta = t["META.json"].Data
	}
	for _, name := range slices.Sorted(maps.Keys(t)) {
		a, base := t[name], path.Base(name)
		version, isAux := strings.CutPrefix(strings.TrimSuffix(base, ".control"), n.control.Name+"--")
		if !isAux || !strings.HasSuffix(base, ".control") {
			continue
		}
		second := *n
		if err := second.parse(name, a.Data, true); err != nil {
			w.control = errors.Join(w.control, err)
			continue
		}
		if p.secondary == nil {
			p.secondary, p.aux = map[string]*Control{}, map[string][]byte{}
		}
		p.secondary[version] = second.finish()
		p.aux[version] = a.Data
	}
	p.Control = n.finish()
	if c := p.secondary[p.Control.ExtVersion]; c != nil {
		c.Text = p.Control.Text
		p.Control = c
	}
	t.rest(p, &w)
	for name, f := range t {
		if f.Data != nil && (strings.HasPrefix(name, "share/") || strings.HasPrefix(name, "lib/") && isLibrary(name)) {
			p.Files = append(p.Files, *f)
		}
	}
	p.sort()
	if w.err() == nil {
		if _, err := p.Path("", p.Control.ExtVersion); err != nil {
			return nil, err
		}
	}
	p.check(&w, w.err() != nil)
	if err := w.err(); err != nil {
		return nil, err
	}
	return p, nil
}

func isLibrary(name string) bool {
	switch path.Ext(name) {
	case ".so", ".dylib", ".dll":
		return true
	}
	return false
}

// scripts finds the scripts of a native package. In a source tree they may be
// anywhere but among the tests.
func (t tree) scripts(p *Package, name string, w *wrong) {
	for _, file := range slices.Sorted(maps.Keys(t)) {
		f := t[file]
		dir, base := path.Split(file)
		rest, isScript := strings.CutPrefix(strings.TrimSuffix(base, ".sql"), name+"--")
		if !isScript || !strings.HasSuffix(base, ".sql") || isTests(dir) {
			continue
		}
		s := Script{To: rest, File: file, SQL: f.Data}
		if from, to, upgrade := strings.Cut(rest, "--"); upgrade {
			if strings.Contains(to, "--") {
				continue // the server ignores it, too
			}
			s.From, s.To = from, to
		}
		if o := p.script(s.From, s.To); o != nil {
			if bytes.Equal(o.SQL, s.SQL) {
				continue
			}
			w.scripts = append(w.scripts, &Error{File: file, Message: fmt.Sprintf("is the same script as %s, and differs", o.File)})
			continue
		}
		p.Scripts = append(p.Scripts, s)
	}
}

func isTests(dir string) bool {
	for part := range strings.SplitSeq(dir, "/") {
		switch part {
		case "test", "tests", "t", "expected", "results":
			return true
		}
	}
	return false
}
