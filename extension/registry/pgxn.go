package registry

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"rideau/extension/depend"
	"rideau/extension/pack"
)

// A pgxn is a mirror of PGXN, the PostgreSQL Extension Network. Its index.json has
// templates of paths; extension/NAME.json says which distributions have an
// extension in which version, and META.json what the SHA-1 of the archive of a
// distribution is.
type pgxn struct {
	st        store
	location  string
	templates map[string]string
	list      []Entry // where the mirror is a directory
}

// What may be read of a mirror, none of which is signed.
const (
	maxPGXNDocument = 4 << 20
	maxPGXNArchive  = 256 << 20
)

// OpenPGXN opens a mirror of PGXN, at an http:// or https:// URL or in a directory.
// Nothing there is signed, and SHA-1 is what it has for checksums: it is for
// importing packages, by a user who named it. It has sources; a package that
// must be built is refused when it is fetched (*[pack.BuildError]).
//
// A [Release] of it says nothing of what it depends on: that is in the archive.
func OpenPGXN(ctx context.Context, location string, o Options) (*Registry, error) {
	st, location, err := openStore(ctx, location, o)
	if err != nil {
		return nil, err
	}
	m := &pgxn{st: st, location: location}
	if err := m.open(ctx); err != nil {
		return nil, errors.Join(err, st.close())
	}
	return &Registry{from: m, location: location, alias: o.Name}, nil
}

func (m *pgxn) open(ctx context.Context) error {
	text, err := readSmall(ctx, m.st, "index.json", maxPGXNDocument)
	if err != nil {
		return fmt.Errorf("could not open PGXN mirror %q: %w", m.location, err)
	}
	if err := decode(text, &m.templates); err != nil {
		return m.refuse("index.json", Malformed, err)
	}
	for _, key := range []string{"meta", "download", "extension"} {
		if m.templates[key] == "" {
			return m.refuse("index.json", Malformed, fmt.Errorf("it has no template %q", key))
		}
	}
	dir, ok := m.st.(dirStore)
	if !ok {
		return nil
	}
	files, err := os.ReadDir(filepath.Join(string(dir), "extension"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok {
			continue
		}
		releases, err := m.releases(ctx, name)
		if err != nil {
			return err
		}
		if len(releases) > 0 {
			m.list = append(m.list, summarize(releases))
		}
	}
	slices.SortFunc(m.list, func(a, b Entry) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

func (m *pgxn) refuse(file string, reason Reason, err error) error {
	return &Refused{m.location, file, reason, err.Error()}
}

// expand fills a template in: "/dist/{dist}/{version}/META.json". PGXN's paths
// are in lower case. What is filled in must be one part of a path.
func (m *pgxn) expand(key string, values map[string]string) (string, error) {
	name := m.templates[key]
	for k, v := range values {
		for _, c := range v {
			if c < ' ' || strings.ContainsRune(`/\%?#:*"<>|`, c) || c == 0x7f {
				return "", m.refuse(key, Malformed, fmt.Errorf("%q cannot be part of a path", v))
			}
		}
		if v == "" || v[0] == '.' {
			return "", m.refuse(key, Malformed, fmt.Errorf("%q cannot be part of a path", v))
		}
		name = strings.ReplaceAll(name, "{"+k+"}", strings.ToLower(v))
	}
	clean := path.Clean("/" + name)
	if strings.ContainsAny(name, `{}\%?#`) || strings.Contains(name, "//") || clean != "/"+strings.TrimPrefix(name, "/") {
		return "", m.refuse("index.json", Malformed, fmt.Errorf("cannot use the template %q for %q", m.templates[key], key))
	}
	return clean[1:], nil
}

// get reads one of the mirror's documents.
func (m *pgxn) get(ctx context.Context, into any, key string, values map[string]string) error {
	name, err := m.expand(key, values)
	if err != nil {
		return err
	}
	text, err := readSmall(ctx, m.st, name, maxPGXNDocument)
	if err != nil {
		return err
	}
	if err := decode(text, into); err != nil {
		return m.refuse(name, Malformed, err)
	}
	return nil
}

func (m *pgxn) name() string     { return "pgxn" }
func (m *pgxn) signed() bool     { return false }
func (m *pgxn) entries() []Entry { return m.list }
func (m *pgxn) close() error     { return m.st.close() }

type pgxnExtension struct {
	Extension string `json:"extension"`
	Versions  map[string][]struct {
		Dist    string `json:"dist"`
		Version string `json:"version"`
	} `json:"versions"`
}

func (m *pgxn) extension(ctx context.Context, name string) (*pgxnExtension, error) {
	var x pgxnExtension
	err := m.get(ctx, &x, "extension", map[string]string{"extension": name})
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return &x, err
}

func (m *pgxn) releases(ctx context.Context, name string) ([]*Release, error) {
	x, err := m.extension(ctx, name)
	if err != nil || x == nil {
		return nil, err
	}
	if err := depend.CheckName(x.Extension); err != nil {
		return nil, m.refuse(name, Malformed, err)
	}
	var all []*Release
	for v, dists := range x.Versions {
		if err := depend.CheckVersion(v); err != nil {
			return nil, m.refuse(name, Malformed, err)
		}
		if len(dists) > 0 {
			all = append(all, &Release{Name: x.Extension, Version: v})
		}
	}
	if len(all) > 0 {
		summarize(all) // orders them
	}
	return all, nil
}

// fetch reads the newest distribution that has this version.
func (m *pgxn) fetch(ctx context.Context, r *Release) (*pack.Package, error) {
	x, err := m.extension(ctx, r.Name)
	if err != nil {
		return nil, err
	}
	if x == nil || len(x.Versions[r.Version]) == 0 {
		return nil, &NotFound{Name: r.Name, Version: r.Version, Where: []string{m.location}}
	}
	dist := x.Versions[r.Version][0] // the newest comes first
	values := map[string]string{"dist": dist.Dist, "version": dist.Version}
	var meta struct {
		SHA1 string `json:"sha1"`
	}
	if err := m.get(ctx, &meta, "meta", values); err != nil {
		return nil, fmt.Errorf("could not read what PGXN knows of distribution %q, version %q: %w", dist.Dist, dist.Version, err)
	}
	name, err := m.expand("download", values)
	if err != nil {
		return nil, err
	}
	data, err := readSmall(ctx, m.st, name, maxPGXNArchive)
	if err != nil {
		return nil, fmt.Errorf("could not fetch distribution %q, version %q: %w", dist.Dist, dist.Version, err)
	}
	if sum := sha1.Sum(data); hex.EncodeToString(sum[:]) != strings.ToLower(meta.SHA1) {
		return nil, m.refuse(name, Mismatch, fmt.Errorf("its SHA-1 is %x, and META.json has %.60q", sum, meta.SHA1))
	}
	packages, err := pack.ReadZip(bytes.NewReader(data), int64(len(data)))
	if err != nil {
		return nil, fmt.Errorf("could not read distribution %q, version %q: %w", dist.Dist, dist.Version, err)
	}
	var names []string
	for _, p := range packages {
		if strings.EqualFold(p.Control.Name, r.Name) {
			return p, nil
		}
		names = append(names, p.Control.Name)
	}
	return nil, fmt.Errorf("distribution %q, version %q, has no extension %q, only %s", dist.Dist, dist.Version, r.Name, strings.Join(names, ", "))
}

func (m *pgxn) archive(ctx context.Context, r *Release) ([]byte, error) {
	p, err := m.fetch(ctx, r)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	_, err = p.WriteArchive(&b)
	return b.Bytes(), err
}
