package extension

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"rideau/extension/depend"
	"rideau/extension/registry"
)

// Wishes are extensions.toml: what somebody wants, in which databases.
//
//	registries = ["https://extensions.example.org/"]
//
//	[database.app]
//	conninfo = "host=db1 dbname=app"   # or -d on the command line
//	nodes = ["host=db2 dbname=app"]    # standbys of it
//
//	[database.app.extensions]
//	hstore = "*"
//	foo = ">= 1.0, < 2"
//	bar = { version = "~> 1.1", schema = "bar", mode = "module", hold = true }
type Wishes struct {
	Registries []string
	Databases  map[string]DatabaseWishes

	// SHA256 is of the file, so that a lock file knows which wishes it fulfils.
	SHA256 string
}

// DatabaseWishes are those for one database.
type DatabaseWishes struct {
	Conninfo   string
	Nodes      []string
	Extensions map[string]wishLine
}

// wishLine is a version, or a table.
type wishLine struct {
	Version string
	Schema  string
	Mode    Mode
	Hold    bool
}

// versions is the range that a wish means: "1.0" is that version only.
func (w wishLine) versions() (depend.Range, error) {
	text := w.Version
	if text == "*" || text == "" {
		return nil, nil
	}
	if !strings.ContainsAny(text[:1], "<>=!~") {
		text = "= " + text
	}
	return depend.ParseRange(text)
}

// ParseWishes reads extensions.toml. Errors name file, line and key.
func ParseWishes(file string, text []byte) (*Wishes, error) {
	w := &Wishes{Databases: map[string]DatabaseWishes{}}
	if err := readWishes(file, string(text), w); err != nil {
		return nil, err
	}
	w.SHA256 = hashOf(text)
	return w, nil
}

func tomlError(file string, err error) error {
	var parse toml.ParseError
	if errors.As(err, &parse) {
		return fmt.Errorf("%s:%d:%d: %s", file, parse.Position.Line, parse.Position.Col, cmp.Or(parse.Message, err.Error()))
	}
	return fmt.Errorf("%s: %w", file, err)
}

// Request is what is wished for one database: all of it installed, and within
// its range. What is installed and not in the file is left alone.
func (w *Wishes) Request(database string) (Request, DatabaseWishes, error) {
	d, ok := w.Databases[database]
	if !ok {
		return Request{}, d, fmt.Errorf("there is no [database.%s]; there are %s", database, strings.Join(names(w.Databases), ", "))
	}
	req := Request{Held: map[string]string{}}
	for _, name := range names(d.Extensions) {
		line := d.Extensions[name]
		wish := Wish{Name: name, Schema: line.Schema, Mode: line.Mode}
		var err error
		if wish.Range, err = line.versions(); err != nil {
			return req, d, fmt.Errorf("[database.%s.extensions] %s: %w", database, name, err)
		}
		if line.Hold {
			req.Held[name] = "extensions.toml says hold"
		}
		req.Install = append(req.Install, wish)
	}
	return req, d, nil
}

// A Lock file is extensions.lock: the exact versions and packages that fulfil
// the wishes, so that every database gets the same.
type Locked struct {
	Wishes    string                      `toml:"wishes"` // sha256 of extensions.toml
	Databases map[string][]LockedVersions `toml:"database"`
}

// LockedVersions is one extension of a lock file.
type LockedVersions struct {
	Name    string `toml:"name"`
	Version string `toml:"version"`
	Mode    Mode   `toml:"mode"`
	Schema  string `toml:"schema,omitempty"`
	Shelf   string `toml:"shelf,omitempty"`
	SHA256  string `toml:"sha256,omitempty"` // of the package; none for the server's own files
	// Libraries are those of the server's own files, with their sha256, where
	// they could be read: name=sha256.
	Libraries []string `toml:"libraries,omitempty"`
	// Objects is a hash over what the package says that it creates.
	Objects string `toml:"objects,omitempty"`
}

// ParseLock reads extensions.lock.
func ParseLock(file string, text []byte) (*Locked, error) {
	var l Locked
	meta, err := toml.Decode(string(text), &l)
	if err != nil {
		return nil, tomlError(file, err)
	}
	if unknown := meta.Undecoded(); len(unknown) > 0 {
		return nil, fmt.Errorf("%s: unknown key %q", file, unknown[0].String())
	}
	return &l, nil
}

// Marshal writes a lock file.
func (l *Locked) Marshal() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString("# Written by rideau extension lock. Keep it beside extensions.toml, under version control.\n\n")
	err := toml.NewEncoder(&b).Encode(l)
	return b.Bytes(), err
}

// Lock resolves the wishes for the database of the session, and says exactly
// what fulfils them. Nothing is changed on the server.
func (s *Session) Lock(ctx context.Context, req Request) ([]LockedVersions, error) {
	p, err := s.Plan(ctx, req)
	if err != nil {
		return nil, err
	}
	var locked []LockedVersions
	for i := range p.Steps {
		st := &p.Steps[i]
		l := LockedVersions{Name: st.Name, Version: st.To, Mode: st.Mode, Schema: st.Schema, Shelf: st.Shelf, SHA256: st.SHA256}
		if st.pkg != nil && st.pkg.Objects != nil {
			h := sha256.New()
			for _, o := range st.pkg.Objects {
				fmt.Fprintln(h, objectText(o))
			}
			l.Objects = hex.EncodeToString(h.Sum(nil))
		}
		locked = append(locked, l)
	}
	for _, name := range p.wanted(req) {
		in, ok := s.primary.o.Find(name)
		if !ok || !slices.Contains(p.Kept, name) {
			continue
		}
		l := LockedVersions{Name: name, Version: in.Version, Mode: in.Mode, Schema: in.Schema, SHA256: in.SHA256}
		if l.Shelf, err = s.origin(ctx, in); err != nil {
			return nil, err
		}
		locked = append(locked, l)
	}
	for i := range locked {
		if l := &locked[i]; l.Mode == Native {
			if l.Libraries, err = s.libraryHashes(ctx, l.Name); err != nil {
				return nil, err
			}
		}
	}
	slices.SortFunc(locked, func(a, b LockedVersions) int { return strings.Compare(a.Name, b.Name) })
	return locked, nil
}

// origin names the shelf that has the very package of which something is
// installed; none if that is not known any more.
func (s *Session) origin(ctx context.Context, in *Installed) (string, error) {
	if in.SHA256 == "" {
		return "", nil
	}
	for _, shelf := range s.cfg.Shelves {
		releases, err := shelf.Versions(ctx, in.Name)
		var none *registry.NotFound
		if errors.As(err, &none) {
			continue
		} else if err != nil {
			return "", fmt.Errorf("%s: %w", shelf.Name(), err)
		}
		for i := range releases {
			r := &release{releases[i], shelf}
			if r.called() != in.Version {
				continue
			}
			digest := r.SHA256
			if digest == "" { // a plain directory
				pkg, err := shelf.Fetch(ctx, in.Name, r.Version)
				if err != nil {
					return "", fmt.Errorf("%s: %w", shelf.Name(), err)
				}
				if digest, err = digestOf(pkg); err != nil {
					return "", err
				}
			}
			if digest == in.SHA256 {
				return shelf.Name(), nil
			}
		}
	}
	return "", nil
}

// wanted are the names that were wished for and those that they need: what else
// is installed is nobody's wish.
func (p *Plan) wanted(req Request) []string {
	var list []string
	for _, w := range slices.Concat(req.Install, req.Upgrade) {
		list = append(list, w.Name)
	}
	for more := true; more; {
		more = false
		for _, name := range names(p.because) {
			if !slices.Contains(list, name) && slices.ContainsFunc(p.because[name], func(by string) bool { return slices.Contains(list, by) }) {
				list, more = append(list, name), true
			}
		}
	}
	return list
}

func (s *Session) libraryHashes(ctx context.Context, name string) ([]string, error) {
	libs, known, err := s.primary.serverLibraries(ctx, name)
	if err != nil || !known {
		return nil, err
	}
	var list []string
	for _, lib := range libs {
		file, sum, err := s.primary.library(ctx, lib)
		if err != nil {
			return nil, err
		}
		if sum == "" {
			return nil, fmt.Errorf("%s needs the library %q, and %s does not find it", name, lib, s.primary.o.Node)
		}
		list = append(list, filepath.Base(file)+"="+sum)
	}
	return list, nil
}

// Request is what a lock file asks for: exactly these versions, these packages.
func (l *Locked) Request(database string, wished Request) (Request, error) {
	list, ok := l.Databases[database]
	if !ok {
		return Request{}, fmt.Errorf("the lock file has nothing about database %q", database)
	}
	req := wished
	req.Install, req.Upgrade = nil, nil
	for _, v := range list {
		req.Install = append(req.Install, Wish{
			Name: v.Name, Range: depend.Range{{Op: "=", Version: v.Version}}, Schema: v.Schema, Mode: v.Mode, SHA256: v.SHA256,
		})
	}
	return req, nil
}

// CheckLibraries compares the server's own libraries with those that were there
// when the lock file was written.
func (s *Session) CheckLibraries(ctx context.Context, list []LockedVersions) ([]string, error) {
	var differ []string
	for _, l := range list {
		if len(l.Libraries) == 0 {
			continue
		}
		now, err := s.libraryHashes(ctx, l.Name)
		if err != nil {
			return nil, err
		}
		if now != nil && !slices.Equal(now, l.Libraries) {
			differ = append(differ, l.Name)
		}
	}
	return differ, nil
}
