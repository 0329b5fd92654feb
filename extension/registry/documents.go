package registry

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"path"
	"slices"
	"strings"
	"time"

	"rideau/extension/depend"
	"rideau/extension/pack"
)

// format is the number of the layout that this package writes, and the highest
// that it reads.
const format = 1

// The types of documents. A signature covers the type, so a document cannot be
// passed off as one of another kind that the same key may sign.
const (
	typeRoot      = "root"
	typeTimestamp = "timestamp"
	typeIndex     = "index"
	typeRelease   = "release"
)

// What may be read before anything is known of it, and what may be read at all
// of what a signed document announces.
const (
	maxRoot      = 1 << 20
	maxTimestamp = 64 << 10
	maxIndex     = 256 << 20
	maxPackage   = 32 << 20
	maxArchive   = 1 << 30

	maxRoots    = 1 << 12 // rotations of the root that a reader follows
	maxAhead    = 1 << 12 // timestamps that "timestamp" may lag behind
	maxVersion  = 1 << 53 // JSON's integers end here in most languages
	maxVersions = 10_000  // of one package
)

type header struct {
	Type   string `json:"type"`
	Format int    `json:"format"`
}

func typeOf(payload []byte) string {
	var h header
	if json.Unmarshal(payload, &h) != nil {
		return ""
	}
	return h.Type
}

func (h header) check(kind string) error {
	if h.Type != kind {
		return fmt.Errorf("it is of type %q and not %q", h.Type, kind)
	}
	if h.Format < 1 || h.Format > format {
		return fmt.Errorf("it has format %d, and this program knows no later one than %d", h.Format, format)
	}
	return nil
}

// A digest is a SHA-256.
type digest [sha256.Size]byte

func (d digest) String() string               { return hex.EncodeToString(d[:]) }
func (d digest) MarshalText() ([]byte, error) { return []byte(d.String()), nil }
func (d *digest) UnmarshalText(text []byte) error {
	raw, err := hex.DecodeString(string(text))
	if err != nil || len(raw) != len(d) || string(text) != strings.ToLower(string(text)) {
		return fmt.Errorf("%.80q is not a SHA-256 in lower case hexadecimal", text)
	}
	copy(d[:], raw)
	return nil
}

// A ref names content: what it must hash to, and how long it is.
type ref struct {
	SHA256 digest `json:"sha256"`
	Size   int64  `json:"size"`
}

func refOf(data []byte) ref { return ref{sha256.Sum256(data), int64(len(data))} }

func (r ref) check(limit int64) error {
	if r.Size < 0 || r.Size > limit {
		return fmt.Errorf("a size of %d bytes is refused, the most is %d", r.Size, limit)
	}
	return nil
}

// blobName returns where in a tree the content with this digest is.
func blobName(d digest) string {
	s := d.String()
	return "blobs/sha256/" + s[:2] + "/" + s[2:]
}

// A Role is keys, and how many of them must sign.
type Role struct {
	Keys      []PublicKey
	Threshold int // 0 means 1
}

// A Delegation lets any one of its keys sign releases of the packages that its
// patterns name: "foo", "pg_*" (see path.Match).
type Delegation struct {
	Keys  []PublicKey
	Names []string
}

// A Policy is what the root of a registry says: its name, who may sign what, and
// for how long a signature holds.
type Policy struct {
	Name       string // how people call it, in "name/package"
	Root       Role   // may replace this policy
	Index      Role   // say which releases there are
	Timestamp  Role   // say which index is the current one; default the index's
	Publishers []Delegation

	// How long each document is valid, in whole days. Defaults: two years, half
	// a year, four weeks. Who controls the host but no key can hide what is new
	// for as long as a timestamp is valid, and not longer.
	RootLifetime, IndexLifetime, TimestampLifetime time.Duration
}

const day = 24 * time.Hour

func (p *Policy) fill() {
	for _, r := range []*Role{&p.Root, &p.Index, &p.Timestamp} {
		if r.Threshold == 0 {
			r.Threshold = 1
		}
	}
	if len(p.Timestamp.Keys) == 0 {
		p.Timestamp = p.Index
	}
	def := func(d *time.Duration, n time.Duration) {
		if *d == 0 {
			*d = n * day
		}
	}
	def(&p.RootLifetime, 730)
	def(&p.IndexLifetime, 182)
	def(&p.TimestampLifetime, 28)
}

func (p *Policy) validate() error {
	if err := checkKeyName(p.Name); err != nil {
		return fmt.Errorf("the registry has an %w", err)
	}
	for _, r := range []struct {
		name string
		role Role
	}{{"root", p.Root}, {"index", p.Index}, {"timestamp", p.Timestamp}} {
		if len(r.role.Keys) > maxSignatures {
			return fmt.Errorf("role %q has %d keys, the most is %d", r.name, len(r.role.Keys), maxSignatures)
		}
		if n := r.role.Threshold; n < 1 || n > len(r.role.Keys) {
			return fmt.Errorf("role %q needs %d signatures and has %d keys", r.name, n, len(r.role.Keys))
		}
		for i, k := range r.role.Keys {
			if slices.ContainsFunc(r.role.Keys[:i], func(o PublicKey) bool { return sameKey(o, k) }) {
				return fmt.Errorf("role %q has key %s twice", r.name, KeyID(k))
			}
		}
	}
	for i, d := range p.Publishers {
		if len(d.Keys) == 0 || len(d.Names) == 0 {
			return fmt.Errorf("delegation %d has no keys or no names", i+1)
		}
		if len(d.Keys) > maxSignatures {
			return fmt.Errorf("delegation %d has %d keys, the most is %d", i+1, len(d.Keys), maxSignatures)
		}
		for _, n := range d.Names {
			if _, err := path.Match(n, ""); err != nil || n == "" {
				return fmt.Errorf("delegation %d has the invalid pattern %q", i+1, n)
			}
		}
	}
	for _, d := range []time.Duration{p.RootLifetime, p.IndexLifetime, p.TimestampLifetime} {
		if d < day || d > 100*365*day || d%day != 0 {
			return fmt.Errorf("a lifetime of %s is refused: whole days, and at most a hundred years", d)
		}
	}
	return nil
}

// PublishersOf returns the keys that may sign releases of a package.
func (p *Policy) PublishersOf(name string) []PublicKey {
	var keys []PublicKey
	for _, d := range p.Publishers {
		if slices.ContainsFunc(d.Names, func(pattern string) bool {
			ok, err := path.Match(pattern, name)
			return ok && err == nil
		}) {
			keys = append(keys, d.Keys...)
		}
	}
	return keys
}

// A root is the document at the top: everything else is signed by keys that it
// lists. A registry's roots are numbered from 1 and each is signed by as many
// keys of the one before as that asks for, and of its own.
type root struct {
	ID      string // of the registry, the same in all its roots
	Version int64
	Expires time.Time
	Policy  Policy
}

type rootJSON struct {
	header
	ID         string            `json:"registry"`
	Name       string            `json:"name"`
	Version    int64             `json:"version"`
	Expires    time.Time         `json:"expires"`
	Keys       map[string]string `json:"keys"`
	Root       roleJSON          `json:"root"`
	Index      roleJSON          `json:"index"`
	Timestamp  roleJSON          `json:"timestamp"`
	Publishers []delegationJSON  `json:"publishers"`
	Days       struct {
		Root      int64 `json:"root"`
		Index     int64 `json:"index"`
		Timestamp int64 `json:"timestamp"`
	} `json:"days"`
}

type roleJSON struct {
	Keys      []string `json:"keys"`
	Threshold int      `json:"threshold"`
}

type delegationJSON struct {
	Keys  []string `json:"keys"`
	Names []string `json:"names"`
}

func parseRoot(payload []byte) (*root, error) {
	var j rootJSON
	if err := decode(payload, &j); err != nil {
		return nil, err
	}
	if err := j.check(typeRoot); err != nil {
		return nil, err
	}
	keys := map[string]PublicKey{}
	for id, text := range j.Keys {
		k, err := ParsePublicKey(text)
		if err != nil {
			return nil, err
		}
		if KeyID(k) != id {
			return nil, fmt.Errorf("key %s goes by %.40q", KeyID(k), id)
		}
		for _, o := range keys {
			if sameKey(o, k) {
				return nil, fmt.Errorf("keys %s and %s are one", KeyID(o), KeyID(k))
			}
		}
		keys[id] = k
	}
	var unknown error
	take := func(ids []string) []PublicKey {
		var list []PublicKey
		for _, id := range ids {
			k, ok := keys[id]
			if !ok {
				unknown = fmt.Errorf("key %.40q is not listed", id)
			}
			list = append(list, k)
		}
		return list
	}
	r := &root{ID: j.ID, Version: j.Version, Expires: j.Expires, Policy: Policy{
		Name:              j.Name,
		Root:              Role{take(j.Root.Keys), j.Root.Threshold},
		Index:             Role{take(j.Index.Keys), j.Index.Threshold},
		Timestamp:         Role{take(j.Timestamp.Keys), j.Timestamp.Threshold},
		RootLifetime:      days(j.Days.Root),
		IndexLifetime:     days(j.Days.Index),
		TimestampLifetime: days(j.Days.Timestamp),
	}}
	for _, d := range j.Publishers {
		r.Policy.Publishers = append(r.Policy.Publishers, Delegation{take(d.Keys), d.Names})
	}
	if unknown != nil {
		return nil, unknown
	}
	if raw, err := hex.DecodeString(r.ID); err != nil || len(raw) != 16 {
		return nil, fmt.Errorf("invalid registry id %.40q", r.ID)
	}
	if err := checkNumber(r.Version); err != nil {
		return nil, err
	}
	return r, r.Policy.validate()
}

// days is n days, or a duration that validate refuses.
func days(n int64) time.Duration {
	if n < 1 || n > 100*365 {
		return 0
	}
	return time.Duration(n) * day
}

func (r *root) encode() ([]byte, error) {
	if err := r.Policy.validate(); err != nil {
		return nil, err
	}
	j := rootJSON{header: header{typeRoot, format}, ID: r.ID, Name: r.Policy.Name, Version: r.Version, Expires: r.Expires, Keys: map[string]string{}}
	var clash error
	ids := func(keys []PublicKey) []string {
		list := []string{}
		for _, k := range keys {
			id, text := KeyID(k), encodeKey(k)
			if old, ok := j.Keys[id]; ok && old != text {
				clash = fmt.Errorf("two different keys have the id %s", id)
			}
			j.Keys[id] = text
			list = append(list, id)
		}
		return list
	}
	p := r.Policy
	j.Root = roleJSON{ids(p.Root.Keys), p.Root.Threshold}
	j.Index = roleJSON{ids(p.Index.Keys), p.Index.Threshold}
	j.Timestamp = roleJSON{ids(p.Timestamp.Keys), p.Timestamp.Threshold}
	j.Publishers = []delegationJSON{}
	for _, d := range p.Publishers {
		j.Publishers = append(j.Publishers, delegationJSON{ids(d.Keys), d.Names})
	}
	if clash != nil {
		return nil, clash
	}
	j.Days.Root, j.Days.Index, j.Days.Timestamp = int64(p.RootLifetime/day), int64(p.IndexLifetime/day), int64(p.TimestampLifetime/day)
	text, err := json.MarshalIndent(j, "", "  ") // the one document that people read
	return append(text, '\n'), err
}

// A timestamp says which index is the current one. It is the only document that
// is ever replaced, and so the moment at which all that was written before
// begins to count.
type timestamp struct {
	header
	ID      string    `json:"registry"`
	Version int64     `json:"version"`
	Expires time.Time `json:"expires"`
	Root    int64     `json:"root"` // there is a root of this version: hiding it is noticed
	Index   struct {
		Version int64 `json:"version"`
		ref
	} `json:"index"`
}

func parseTimestamp(payload []byte) (*timestamp, error) {
	var t timestamp
	if err := decode(payload, &t); err != nil {
		return nil, err
	}
	if err := t.check(typeTimestamp); err != nil {
		return nil, err
	}
	return &t, errors.Join(checkNumber(t.Version), checkNumber(t.Index.Version), checkNumber(t.Root), t.Index.check(maxIndex))
}

func checkNumber(n int64) error {
	if n < 1 || n > maxVersion {
		return fmt.Errorf("invalid version number %d", n)
	}
	return nil
}

// An Entry is what the index says of a package.
type Entry struct {
	Name     string   `json:"name"`
	Comment  string   `json:"comment,omitempty"`
	Latest   string   `json:"latest"`   // highest version
	Versions []string `json:"versions"` // lowest first
	Provides []string `json:"provides,omitempty"`

	releases ref // the signed statements on its versions
}

type entryJSON struct {
	Entry
	ref
}

func (e *Entry) check() error {
	if err := depend.CheckName(e.Name); err != nil {
		return err
	}
	if len(e.Versions) == 0 || len(e.Versions) > maxVersions {
		return fmt.Errorf("package %q has %d versions", e.Name, len(e.Versions))
	}
	seen := make(map[string]bool, len(e.Versions))
	for _, v := range e.Versions {
		if err := depend.CheckVersion(v); err != nil {
			return fmt.Errorf("package %q: %w", e.Name, err)
		}
		if seen[v] {
			return fmt.Errorf("package %q has version %q twice", e.Name, v)
		}
		seen[v] = true
	}
	if !seen[e.Latest] {
		return fmt.Errorf("package %q has no version %q, said to be the latest", e.Name, e.Latest)
	}
	for _, p := range e.Provides {
		if err := depend.CheckName(p); err != nil {
			return fmt.Errorf("package %q: %w", e.Name, err)
		}
	}
	if err := e.releases.check(maxPackage); err != nil {
		return fmt.Errorf("package %q: %w", e.Name, err)
	}
	return nil
}

// An index lists the packages, by name.
type index struct {
	header
	ID      string
	Version int64
	Expires time.Time
	Entries []Entry
}

// parseIndex reads an index one package at a time: what is kept of it is what
// an Entry keeps, and a version that many packages have is kept once.
func parseIndex(payload []byte) (*index, error) {
	x := &index{}
	words := map[string]string{}
	intern := func(s string) string {
		if w, ok := words[s]; ok {
			return w
		}
		words[s] = s
		return s
	}
	d := json.NewDecoder(bytes.NewReader(payload))
	if err := delimiter(d, '{'); err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return nil, jsonError(err)
		}
		key, ok := token.(string)
		if !ok || seen[key] {
			return nil, fmt.Errorf("unexpected or repeated key %v", token)
		}
		seen[key] = true
		switch key {
		case "type":
			err = d.Decode(&x.Type)
		case "format":
			err = d.Decode(&x.Format)
		case "registry":
			err = d.Decode(&x.ID)
		case "version":
			err = d.Decode(&x.Version)
		case "expires":
			err = d.Decode(&x.Expires)
		case "packages":
			if err = delimiter(d, '['); err != nil {
				return nil, err
			}
			for d.More() {
				var e entryJSON
				if err := d.Decode(&e); err != nil {
					return nil, jsonError(err)
				}
				e.releases = e.ref
				if err := e.Entry.check(); err != nil {
					return nil, err
				}
				if n := len(x.Entries); n > 0 && x.Entries[n-1].Name >= e.Name {
					return nil, fmt.Errorf("package %q does not belong after %q", e.Name, x.Entries[n-1].Name)
				}
				for i, v := range e.Versions {
					e.Versions[i] = intern(v)
				}
				e.Versions = slices.Clip(e.Versions)
				e.Latest = intern(e.Latest)
				x.Entries = append(x.Entries, e.Entry)
			}
			err = delimiter(d, ']')
		default:
			var skip json.RawMessage
			err = d.Decode(&skip)
		}
		if err != nil {
			return nil, jsonError(err)
		}
	}
	if err := delimiter(d, '}'); err != nil {
		return nil, err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows the JSON object")
	}
	x.Entries = slices.Clip(x.Entries)
	return x, errors.Join(x.check(typeIndex), checkNumber(x.Version))
}

func delimiter(d *json.Decoder, want json.Delim) error {
	token, err := d.Token()
	if err != nil {
		return jsonError(err)
	}
	if token != want {
		return fmt.Errorf("invalid JSON: %v where %v was expected", token, want)
	}
	return nil
}

// encode writes one package a line.
func (x *index) encode() ([]byte, error) {
	var out bytes.Buffer
	head, err := json.Marshal(struct {
		header
		ID      string    `json:"registry"`
		Version int64     `json:"version"`
		Expires time.Time `json:"expires"`
	}{header{typeIndex, format}, x.ID, x.Version, x.Expires})
	if err != nil {
		return nil, err
	}
	out.Write(head[:len(head)-1])
	out.WriteString(`,"packages":[`)
	for i := range x.Entries {
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteByte('\n')
		line, err := json.Marshal(entryJSON{x.Entries[i], x.Entries[i].releases})
		if err != nil {
			return nil, err
		}
		out.Write(line)
	}
	out.WriteString("\n]}\n")
	return out.Bytes(), nil
}

// find returns the entry of that name, or nil.
func (x *index) find(name string) *Entry {
	i, ok := slices.BinarySearchFunc(x.Entries, name, func(e Entry, name string) int { return strings.Compare(e.Name, name) })
	if !ok {
		return nil
	}
	return &x.Entries[i]
}

// A Release is one version of a package: what its control file says of it that
// somebody must know who chooses between versions, and which archive it is.
type Release struct {
	Name, Version, ExtVersion       string
	Comment, License, Schema, Kind  string
	Relocatable, Trusted, Superuser bool
	Postgres                        depend.Range
	Depends, Recommends, Suggests   depend.List
	Conflicts, Breaks, Replaces     depend.List
	Provides                        []pack.Provide
	Preload                         string
	Restart                         bool
	OSDepends, VariableClasses      []string
	Versions                        []string      // that its scripts know
	Edges                           []depend.Edge // update scripts
	Files                           []string      // that must be on a node, by their paths
	SHA256                          string        // of the archive
	Size                            int64         // of the archive, in bytes

	Registry string   // the name of the registry it was read from
	Signers  []string // ids of the keys that signed it; nil where nothing is signed
	Already  bool     // what was to be added was there: see [Writer.Add]
}

type releaseJSON struct {
	header
	Name        string        `json:"name"`
	Version     string        `json:"version"`
	ExtVersion  string        `json:"extversion,omitempty"`
	Comment     string        `json:"comment,omitempty"`
	License     string        `json:"license,omitempty"`
	Schema      string        `json:"schema,omitempty"`
	Kind        string        `json:"kind,omitempty"`
	Relocatable bool          `json:"relocatable,omitempty"`
	Trusted     bool          `json:"trusted,omitempty"`
	Superuser   bool          `json:"superuser"`
	Postgres    string        `json:"postgres,omitempty"`
	Depends     string        `json:"depends,omitempty"`
	Recommends  string        `json:"recommends,omitempty"`
	Suggests    string        `json:"suggests,omitempty"`
	Conflicts   string        `json:"conflicts,omitempty"`
	Breaks      string        `json:"breaks,omitempty"`
	Replaces    string        `json:"replaces,omitempty"`
	Provides    []provideJSON `json:"provides,omitempty"`
	Preload     string        `json:"preload,omitempty"`
	Restart     bool          `json:"restart,omitempty"`
	OSDepends   []string      `json:"os_depends,omitempty"`
	Classes     []string      `json:"custom_variable_classes,omitempty"`
	Versions    []string      `json:"versions,omitempty"`
	Edges       [][2]string   `json:"updates,omitempty"`
	Files       []string      `json:"files,omitempty"`
	Archive     struct {
		SHA256 digest `json:"sha256"`
		Size   int64  `json:"size"`
	} `json:"archive"`
}

type provideJSON struct {
	Name    string `json:"name"`
	Version string `json:"version,omitempty"`
}

// releaseOf describes a package.
func releaseOf(p *pack.Package, size int64) *Release {
	c := p.Control
	r := &Release{
		Name: c.Name, Version: c.Version, ExtVersion: c.ExtVersion,
		Comment: c.Comment, License: c.License, Schema: c.Schema, Kind: c.Kind,
		Relocatable: c.Relocatable, Trusted: c.Trusted, Superuser: c.Superuser,
		Postgres: c.Postgres,
		Depends:  c.Depends, Recommends: c.Recommends, Suggests: c.Suggests,
		Conflicts: c.Conflicts, Breaks: c.Breaks, Replaces: c.Replaces,
		Provides: c.Provides, Preload: c.Preload, Restart: c.Restart,
		OSDepends: c.OSDepends, VariableClasses: c.VariableClasses,
		Versions: p.Versions(), Edges: p.Edges(), SHA256: p.SHA256, Size: size,
	}
	for _, f := range p.Files {
		r.Files = append(r.Files, f.Path)
	}
	slices.Sort(r.Files)
	return r
}

// encode writes a release in one line.
func (r *Release) encode() ([]byte, error) {
	j := releaseJSON{
		header: header{typeRelease, format},
		Name:   r.Name, Version: r.Version, ExtVersion: r.ExtVersion,
		Comment: r.Comment, License: r.License, Schema: r.Schema, Kind: r.Kind,
		Relocatable: r.Relocatable, Trusted: r.Trusted, Superuser: r.Superuser,
		Postgres: r.Postgres.String(),
		Depends:  r.Depends.String(), Recommends: r.Recommends.String(), Suggests: r.Suggests.String(),
		Conflicts: r.Conflicts.String(), Breaks: r.Breaks.String(), Replaces: r.Replaces.String(),
		Preload: r.Preload, Restart: r.Restart,
		OSDepends: r.OSDepends, Classes: r.VariableClasses, Versions: r.Versions, Files: r.Files,
	}
	for _, p := range r.Provides {
		j.Provides = append(j.Provides, provideJSON{p.Name, p.Version})
	}
	for _, e := range r.Edges {
		j.Edges = append(j.Edges, [2]string{e.From, e.To})
	}
	if err := j.Archive.SHA256.UnmarshalText([]byte(r.SHA256)); err != nil {
		return nil, err
	}
	j.Archive.Size = r.Size
	line, err := json.Marshal(j)
	return append(line, '\n'), err
}

func parseRelease(payload []byte) (*Release, error) {
	var j releaseJSON
	if err := decode(payload, &j); err != nil {
		return nil, err
	}
	if err := j.check(typeRelease); err != nil {
		return nil, err
	}
	r := &Release{
		Name: j.Name, Version: j.Version, ExtVersion: j.ExtVersion,
		Comment: j.Comment, License: j.License, Schema: j.Schema, Kind: j.Kind,
		Relocatable: j.Relocatable, Trusted: j.Trusted, Superuser: j.Superuser,
		Preload: j.Preload, Restart: j.Restart,
		OSDepends: j.OSDepends, VariableClasses: j.Classes, Versions: j.Versions, Files: j.Files,
		SHA256: j.Archive.SHA256.String(), Size: j.Archive.Size,
	}
	if err := depend.CheckName(r.Name); err != nil {
		return nil, err
	}
	if err := depend.CheckVersion(r.Version); err != nil {
		return nil, err
	}
	if r.ExtVersion != "" {
		if err := depend.CheckVersion(r.ExtVersion); err != nil {
			return nil, err
		}
	}
	if err := (ref{j.Archive.SHA256, j.Archive.Size}).check(maxArchive); err != nil {
		return nil, err
	}
	if j.Postgres != "" {
		var err error
		if r.Postgres, err = depend.ParseRange(j.Postgres); err != nil {
			return nil, fmt.Errorf("postgres: %w", err)
		}
	}
	for _, l := range []struct {
		key, text string
		list      *depend.List
	}{
		{"depends", j.Depends, &r.Depends}, {"recommends", j.Recommends, &r.Recommends}, {"suggests", j.Suggests, &r.Suggests},
		{"conflicts", j.Conflicts, &r.Conflicts}, {"breaks", j.Breaks, &r.Breaks}, {"replaces", j.Replaces, &r.Replaces},
	} {
		list, err := depend.ParseList(l.text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", l.key, err)
		}
		*l.list = list
	}
	for _, p := range j.Provides {
		if err := depend.CheckName(p.Name); err != nil {
			return nil, err
		}
		r.Provides = append(r.Provides, pack.Provide{Name: p.Name, Version: p.Version})
	}
	for _, e := range j.Edges {
		r.Edges = append(r.Edges, depend.Edge{From: e[0], To: e[1]})
	}
	return r, nil
}

// summarize returns the index's entry for a package of these releases, and
// orders them, lowest first.
func summarize(releases []*Release) Entry {
	o := orderOf(releases)
	slices.SortStableFunc(releases, func(a, b *Release) int {
		if c := o.Compare(a.Version, b.Version); c != 0 {
			return c
		}
		return strings.Compare(a.Version, b.Version) // spellings of one version
	})
	last := releases[len(releases)-1]
	e := Entry{Name: last.Name, Comment: last.Comment, Latest: last.Version}
	provides := map[string]bool{}
	for _, r := range releases {
		e.Versions = append(e.Versions, r.Version)
		for _, p := range r.Provides {
			provides[p.Name] = true
		}
	}
	e.Provides = slices.Sorted(maps.Keys(provides))
	return e
}

// orderOf is the order of the versions of a package: update scripts count only
// where they speak of releases, which they do when extversion is the version.
func orderOf(releases []*Release) *depend.Order {
	var versions []string
	var edges []depend.Edge
	for _, r := range releases {
		versions = append(versions, r.Version)
		if r.ExtVersion == "" || r.ExtVersion == r.Version {
			edges = append(edges, r.Edges...)
		}
	}
	return depend.NewOrder(versions, edges)
}

// decode is json.Unmarshal with errors that do not speak of Go's types.
func decode(payload []byte, v any) error { return jsonError(json.Unmarshal(payload, v)) }

func jsonError(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fmt.Errorf("invalid JSON at byte %d: %s", syntax.Offset, syntax.Error())
	case errors.As(err, &kind):
		return fmt.Errorf("invalid JSON: %q has a value that is a %s", kind.Field, kind.Value)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("invalid JSON: it ends too early")
	}
	return err
}
