package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"

	"rideau/extension/depend"
	"rideau/extension/pack"
)

// Options are how a client reads.
type Options struct {
	// State is the folder where the newest versions seen are remembered, against
	// those who show an old state as the current one. Needed for what is signed.
	State string

	// Cache is the folder of downloads, complete or not. "" means that nothing is
	// kept, and that an interrupted download begins anew.
	Cache string

	// Name is how the user calls the registry. "" means its own name.
	Name string

	// Client does what goes over HTTP. nil means one that gives up on a server
	// that is silent for a minute.
	Client *http.Client

	// Waiting is called with the location when somebody there lets us wait for a few
	// seconds: a web server, object storage. nil means that nobody is told. It is
	// called from a goroutine of its own, and at most once a question.
	Waiting func(location string)

	// Now is the time by which things expire. nil means time.Now.
	Now func() time.Time
}

// A reader is one way in which a registry is kept.
type reader interface {
	name() string
	signed() bool
	// entries returns what there is, by name. It is not changed.
	entries() []Entry
	// releases returns the versions of a package, lowest first; none if there is
	// no such package.
	releases(ctx context.Context, name string) ([]*Release, error)
	fetch(ctx context.Context, r *Release) (*pack.Package, error)
	// archive returns the archive that fetch reads.
	archive(ctx context.Context, r *Release) ([]byte, error)
	close() error
}

// A Registry is packages to read: in a signed tree, a plain directory, or a
// PGXN mirror. Its methods may be called from several goroutines.
type Registry struct {
	from     reader
	location string
	alias    string

	mu   sync.Mutex
	read map[string][]*Release // of the packages that were asked for last
}

// maxRead is how many packages a Registry keeps the versions of: more than a
// resolver looks at, and no more than some megabytes.
const maxRead = 1000

// Open opens the signed registry at location: a directory, an http:// or
// https:// URL, s3://BUCKET/PREFIX, or file:// with gocloud's parameters. Its root
// must be signed by a key of trust; timestamp and index are verified before it
// returns. What is refused is a *[Refused].
func Open(ctx context.Context, location string, trust *Trust, o Options) (*Registry, error) {
	t, err := openTree(ctx, location, trust, o)
	if err != nil {
		return nil, err
	}
	if err := t.load(ctx, false); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return &Registry{from: t, location: t.location, alias: o.Name}, nil
}

func openTree(ctx context.Context, location string, trust *Trust, o Options) (*tree, error) {
	if o.State == "" {
		return nil, errors.New("no directory was given to remember the state of registries in")
	}
	if trust == nil {
		return nil, errors.New("no trusted keys were given")
	}
	st, location, err := openStore(ctx, location, o)
	if err != nil {
		return nil, err
	}
	return &tree{st: st, location: location, trust: trust, options: o, cache: cache{o.Cache}}, nil
}

// Close lets go of connections. What was read stays usable.
func (r *Registry) Close() error { return r.from.close() }

// Name is how the user calls the registry, or else how it calls itself.
func (r *Registry) Name() string {
	if r.alias != "" {
		return r.alias
	}
	return r.from.name()
}

// Location is where the registry is.
func (r *Registry) Location() string { return r.location }

// Signed reports whether everything that is read is signed by keys that the user
// trusts. What is not is to be used only because the user named it.
func (r *Registry) Signed() bool { return r.from.signed() }

// Policy returns who may sign what; the zero Policy where nothing is signed.
func (r *Registry) Policy() Policy {
	if t, ok := r.from.(*tree); ok {
		return t.root.Policy
	}
	return Policy{}
}

// Expires returns when the timestamp does, unless it is replaced before; the
// zero time where nothing is signed.
func (r *Registry) Expires() time.Time {
	if t, ok := r.from.(*tree); ok {
		return t.timestamp.Expires
	}
	return time.Time{}
}

// Names returns the names of all packages, sorted. A PGXN mirror over HTTP has
// no list of them.
func (r *Registry) Names() []string {
	var names []string
	for _, e := range r.from.entries() {
		names = append(names, e.Name)
	}
	return names
}

// Entry returns what the index says of a package.
func (r *Registry) Entry(name string) (Entry, bool) {
	all := r.from.entries()
	i, ok := slices.BinarySearchFunc(all, name, func(e Entry, name string) int { return strings.Compare(e.Name, name) })
	if !ok {
		return Entry{}, false
	}
	return all[i], true
}

// Providers returns the names of the packages of which a version provides the
// name, sorted.
func (r *Registry) Providers(name string) []string {
	var names []string
	for _, e := range r.from.entries() {
		if slices.Contains(e.Provides, name) {
			names = append(names, e.Name)
		}
	}
	return names
}

// Versions returns the versions of a package, lowest first, or a *[NotFound].
func (r *Registry) Versions(ctx context.Context, name string) ([]Release, error) {
	all, err := r.versions(ctx, name)
	if err != nil {
		return nil, err
	}
	out := make([]Release, len(all))
	for i, rel := range all {
		out[i] = *rel
	}
	return out, nil
}

func (r *Registry) versions(ctx context.Context, name string) ([]*Release, error) {
	r.mu.Lock()
	all, ok := r.read[name]
	r.mu.Unlock()
	if ok {
		return all, nil
	}
	all, err := r.from.releases(ctx, name)
	if err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, &NotFound{Name: name, Where: []string{r.Name()}}
	}
	for _, rel := range all {
		rel.Registry = r.Name()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.read == nil {
		r.read = map[string][]*Release{}
	}
	if len(r.read) >= maxRead {
		for old := range maps.Keys(r.read) {
			delete(r.read, old)
			break
		}
	}
	r.read[name] = all
	return all, nil
}

// Order returns the order of a package's versions, see [depend.Order].
func Order(releases []Release) *depend.Order {
	list := make([]*Release, len(releases))
	for i := range releases {
		list[i] = &releases[i]
	}
	return orderOf(list)
}

// Release returns one version of a package, the highest for "", or a *[NotFound].
func (r *Registry) Release(ctx context.Context, name, version string) (Release, error) {
	all, err := r.versions(ctx, name)
	if err != nil {
		return Release{}, err
	}
	if version == "" {
		return *all[len(all)-1], nil
	}
	var names []string
	for _, rel := range all {
		if rel.Version == version {
			return *rel, nil
		}
		names = append(names, rel.Version)
	}
	return Release{}, &NotFound{name, version, names, []string{r.Name()}}
}

// Fetch returns a version of a package, the highest for "". Its archive is the
// one that was signed, and what is signed of it is what its control file says.
func (r *Registry) Fetch(ctx context.Context, name, version string) (*pack.Package, error) {
	rel, err := r.Release(ctx, name, version)
	if err != nil {
		return nil, err
	}
	return r.from.fetch(ctx, &rel)
}

// Archive returns the archive of a version of a package, verified as by Fetch
// and not read.
func (r *Registry) Archive(ctx context.Context, name, version string) ([]byte, error) {
	rel, err := r.Release(ctx, name, version)
	if err != nil {
		return nil, err
	}
	return r.from.archive(ctx, &rel)
}

func readArchive(data []byte) (*pack.Package, error) { return pack.ReadArchive(bytes.NewReader(data)) }

// describes checks that a package is what a release says of it, in all that a
// choice between versions was made by.
func (r *Release) describes(p *pack.Package) error {
	is := releaseOf(p, r.Size)
	for _, f := range []struct{ key, signed, got string }{
		{"name", r.Name, is.Name},
		{"version", r.Version, is.Version},
		{"extversion", r.ExtVersion, is.ExtVersion},
		{"postgres", r.Postgres.String(), is.Postgres.String()},
		{"depends", r.Depends.String(), is.Depends.String()},
		{"conflicts", r.Conflicts.String(), is.Conflicts.String()},
		{"breaks", r.Breaks.String(), is.Breaks.String()},
		{"provides", fmt.Sprint(r.Provides), fmt.Sprint(is.Provides)},
	} {
		if f.signed != f.got {
			return fmt.Errorf("the package's control file has %s %q, and %q was signed", f.key, f.got, f.signed)
		}
	}
	return nil
}

// A Match is a package that a search found.
type Match struct {
	Registry string
	Entry
	rank int
}

// Search returns the packages of which every word of query is in the name, the
// comment, or what they provide; best first, and by name. An empty query finds
// all of them.
func (r *Registry) Search(query string) []Match { return Set{r}.Search(query) }

// A Set is the registries that a user has, in the user's order.
type Set []*Registry

// Search is that of all registries together.
func (s Set) Search(query string) []Match {
	words := strings.Fields(strings.ToLower(query))
	var found []Match
	for _, r := range s {
		for _, e := range r.from.entries() {
			if rank := rankOf(&e, words); rank >= 0 {
				found = append(found, Match{r.Name(), e, rank})
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Match) int {
		if a.rank != b.rank {
			return b.rank - a.rank
		}
		return strings.Compare(a.Name, b.Name)
	})
	return found
}

// rankOf says how well a package answers: -1 is not at all. A name that is the
// word is worth more than one that begins with it, than one that has it, than a
// word of the comment, than a part of one.
func rankOf(e *Entry, words []string) int {
	name, comment := strings.ToLower(e.Name), ""
	rank := 0
	for _, w := range words {
		if comment == "" {
			comment = strings.ToLower(e.Comment)
		}
		switch {
		case name == w:
			rank += 100
		case strings.HasPrefix(name, w):
			rank += 50
		case strings.Contains(name, w):
			rank += 30
		case slices.Contains(e.Provides, w):
			rank += 30
		case hasWord(comment, w):
			rank += 10
		case strings.Contains(comment, w):
			rank++
		default:
			return -1
		}
	}
	return rank
}

func hasWord(text, word string) bool {
	for rest := text; ; {
		i := strings.Index(rest, word)
		if i < 0 {
			return false
		}
		before, after := rest[:i], rest[i+len(word):]
		if !endsInWord(before) && !beginsWithWord(after) {
			return true
		}
		rest = rest[i+len(word):]
	}
}

func isWord(c rune) bool { return unicode.IsLetter(c) || unicode.IsDigit(c) || c == '_' }

func endsInWord(s string) bool {
	c, n := utf8.DecodeLastRuneInString(s)
	return n > 0 && isWord(c)
}

func beginsWithWord(s string) bool {
	c, n := utf8.DecodeRuneInString(s)
	return n > 0 && isWord(c)
}

// Find returns the registry that has the package: the one of "registry/name", or
// the only one that has the name. It is an *[Ambiguous] if several have it, and
// a *[NotFound] if none.
func (s Set) Find(ctx context.Context, name string) (*Registry, string, error) {
	if where, bare, ok := strings.Cut(name, "/"); ok {
		var in []*Registry
		for _, r := range s {
			if r.Name() == where {
				in = append(in, r)
			}
		}
		switch len(in) {
		case 0:
			return nil, "", fmt.Errorf("there is no registry %q", where)
		case 1:
			if ok, err := in[0].has(ctx, bare); err != nil {
				return nil, "", err
			} else if !ok {
				return nil, "", &NotFound{Name: bare, Where: []string{where}}
			}
			return in[0], bare, nil
		}
		return nil, "", fmt.Errorf("%d registries are called %q: give them other names", len(in), where)
	}
	var in []*Registry
	var names, asked []string
	for _, r := range s {
		asked = append(asked, r.Name())
		ok, err := r.has(ctx, name)
		if err != nil {
			return nil, "", err
		}
		if ok {
			in = append(in, r)
			names = append(names, r.Name())
		}
	}
	switch len(in) {
	case 0:
		return nil, "", &NotFound{Name: name, Where: asked}
	case 1:
		return in[0], name, nil
	}
	return nil, "", &Ambiguous{name, names}
}

// has asks the index where there is one.
func (r *Registry) has(ctx context.Context, name string) (bool, error) {
	if _, ok := r.Entry(name); ok {
		return true, nil
	}
	if _, ok := r.from.(*pgxn); !ok {
		return false, nil
	}
	_, err := r.versions(ctx, name)
	var none *NotFound
	if errors.As(err, &none) {
		return false, nil
	}
	return err == nil, err
}
