package registry

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"rideau/extension/pack"
)

// Names of files in a tree; all else is a blob, see blobName.
const currentName = "timestamp"

func rootName(n int64) string      { return fmt.Sprintf("%d.root", n) }
func timestampName(n int64) string { return fmt.Sprintf("%d.timestamp", n) }

// A tree is a signed registry: what was read and verified of it.
type tree struct {
	st       store
	location string
	trust    *Trust
	options  Options
	cache    cache

	root      *root
	rootText  []byte
	timestamp *timestamp
	stampText []byte
	index     *index
}

// now is the time by which documents expire.
func (t *tree) now() time.Time {
	if t.options.Now != nil {
		return t.options.Now()
	}
	return time.Now()
}

func (t *tree) refuse(file string, reason Reason, format string, args ...any) error {
	return &Refused{t.location, file, reason, fmt.Sprintf(format, args...)}
}

// locate tells a refusal where it happened.
func (t *tree) locate(err error) error {
	var r *Refused
	if errors.As(err, &r) && r.Location == "" {
		r.Location = t.location
	}
	return err
}

// load verifies root, timestamp and index, from the top, and remembers them.
// Lenient means that a timestamp or an index that expired is taken all the
// same: by somebody who is about to sign another.
func (t *tree) load(ctx context.Context, lenient bool) error { return t.locate(t.verify(ctx, lenient)) }

func (t *tree) verify(ctx context.Context, lenient bool) error {
	state := memories{t.options.State}
	mem, err := state.recall(t.location)
	if err != nil {
		return err
	}
	if err := t.loadRoot(ctx, &mem); err != nil {
		return err
	}
	// Even if what follows fails: a root that replaced a stolen key counts.
	if err := state.keep(ctx, mem, t.root.Version); err != nil {
		return err
	}
	now := t.now()
	if !lenient && !now.Before(t.root.Expires) {
		return t.refuse(rootName(t.root.Version), Expired, "on %s", date(t.root.Expires))
	}

	name, text, err := t.newestTimestamp(ctx)
	if err != nil {
		return err
	}
	payload, err := t.signedFor(ctx, name, text, lenient, func(p *Policy) Role { return p.Timestamp })
	if err != nil {
		return err
	}
	ts, err := parseTimestamp(payload)
	if err != nil {
		return t.refuse(name, Malformed, "%s", err)
	}
	sum := refOf(text).SHA256
	switch {
	case ts.ID != t.root.ID:
		return t.refuse(name, BadSignature, "it belongs to another registry, %s", ts.ID)
	case name != currentName && name != timestampName(ts.Version):
		return t.refuse(name, RolledBack, "it is timestamp %d", ts.Version)
	case ts.Version < mem.Timestamp:
		return t.refuse(name, RolledBack, "it is timestamp %d, and %d was seen before", ts.Version, mem.Timestamp)
	case ts.Version == mem.Timestamp && sum != mem.SHA256:
		return t.refuse(name, RolledBack, "it is another timestamp %d than was seen before", ts.Version)
	case ts.Index.Version < mem.Index:
		return t.refuse(name, RolledBack, "it names index %d, and %d was seen before", ts.Index.Version, mem.Index)
	case ts.Root > t.root.Version:
		return t.refuse(name, RolledBack, "it was made under root %d, and only roots up to %d are shown", ts.Root, t.root.Version)
	case !lenient && !now.Before(ts.Expires):
		return t.refuse(name, Expired, "on %s", date(ts.Expires))
	}

	file := blobName(ts.Index.SHA256)
	if t.index == nil || t.timestamp == nil || t.timestamp.Index.ref != ts.Index.ref {
		text, err := t.cache.blob(ctx, t.st, ts.Index.ref, maxIndex)
		if err != nil {
			return fmt.Errorf("could not read the index: %w", t.locate(err))
		}
		payload, err := t.signedFor(ctx, file, text, lenient, func(p *Policy) Role { return p.Index })
		if err != nil {
			return err
		}
		x, err := parseIndex(payload)
		if err != nil {
			return t.refuse(file, Malformed, "%s", err)
		}
		t.index = x
	}
	switch x := t.index; {
	case x.ID != t.root.ID:
		return t.refuse(file, BadSignature, "it belongs to another registry, %s", x.ID)
	case x.Version != ts.Index.Version:
		return t.refuse(file, RolledBack, "it is index %d, and the timestamp names %d", x.Version, ts.Index.Version)
	case !lenient && !now.Before(x.Expires):
		return t.refuse(file, Expired, "on %s", date(x.Expires))
	}
	t.timestamp, t.stampText = ts, text
	mem.Timestamp, mem.SHA256, mem.Index = ts.Version, sum, ts.Index.Version
	return state.keep(ctx, mem, t.root.Version)
}

func date(t time.Time) string { return t.UTC().Format("2006-01-02 15:04 UTC") }

// loadRoot finds the newest root. It begins with the one that is remembered, or
// with the first that a trusted key signed, and goes on one at a time, each
// signed by as many keys of the one before as that asks for.
func (t *tree) loadRoot(ctx context.Context, mem *memory) error {
	trusted, err := t.trust.List()
	if err != nil {
		return err
	}
	var last *root
	if len(mem.Root) > 0 && slices.ContainsFunc(trusted, func(k TrustedKey) bool { return encodeKey(k.Key) == mem.Anchor }) {
		r, _, err := t.readRoot("the remembered root", mem.Root)
		if err != nil {
			return err
		}
		last, t.rootText = r, mem.Root
	}
	first := int64(1)
	if last != nil {
		first = last.Version + 1
	}
	var seen []string // who signed the roots that nobody vouches for
	for n := first; ; n++ {
		if n >= first+maxRoots {
			return t.refuse(rootName(n), Oversized, "there are more than %d roots", maxRoots)
		}
		name := rootName(n)
		text, err := readSmall(ctx, t.st, name, maxRoot)
		// A web server may say so of what is not there, and one who hides a root says
		// whatever he likes: the timestamp names the newest.
		if n > 1 && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)) {
			break
		}
		if err != nil {
			return fmt.Errorf("could not open registry %q: %w", t.location, t.locate(err))
		}
		r, signatures, err := t.readRoot(name, text)
		if err != nil {
			return err
		}
		if r.Version != n {
			return t.refuse(name, RolledBack, "it is root %d", r.Version)
		}
		_, payload, err := splitSigned(text)
		if err != nil {
			return t.refuse(name, Malformed, "%s", err)
		}
		if last == nil {
			anchor := ""
			for _, k := range trusted {
				isRoot := slices.ContainsFunc(r.Policy.Root.Keys, func(o PublicKey) bool { return sameKey(o, k.Key) })
				if isRoot && len(signers(signatures, payload, []PublicKey{k.Key})) > 0 {
					anchor = encodeKey(k.Key)
					break
				}
			}
			if anchor == "" {
				seen = append(seen, fmt.Sprintf("root %d by %s", n, claimed(signatures)))
				continue
			}
			// What is remembered stands, unless trust in it was taken back.
			mem.Anchor = anchor
		} else {
			if r.ID != last.ID {
				return t.refuse(name, BadSignature, "it belongs to another registry, %s", r.ID)
			}
			was := last.Policy.Root
			if got := len(signers(signatures, payload, was.Keys)); got < was.Threshold {
				return t.refuse(name, BadSignature, "%d of the %d signatures that root %d asks for", got, was.Threshold, last.Version)
			}
		}
		last, t.rootText = r, text
	}
	if last == nil {
		if len(trusted) == 0 {
			return t.refuse(rootName(1), Untrusted, "no key is trusted yet; signed: %s", strings.Join(seen, "; "))
		}
		return t.refuse(rootName(1), Untrusted, "none of the trusted keys signed it; signed: %s", strings.Join(seen, "; "))
	}
	t.root, mem.Root = last, t.rootText
	return nil
}

// readRoot reads a root and checks that its own keys signed it.
func (t *tree) readRoot(name string, text []byte) (*root, [][]byte, error) {
	signatures, payload, err := splitSigned(text)
	if err != nil {
		return nil, nil, t.refuse(name, Malformed, "%s", err)
	}
	r, err := parseRoot(payload)
	if err != nil {
		return nil, nil, t.refuse(name, Malformed, "%s", err)
	}
	role := r.Policy.Root
	if got := len(signers(signatures, payload, role.Keys)); got < role.Threshold {
		return nil, nil, t.refuse(name, BadSignature, "%d of the %d signatures that it asks for itself", got, role.Threshold)
	}
	return r, signatures, nil
}

// newestTimestamp returns the newest timestamp there is, not verified. The file
// that names it may lag behind by those that were numbered since: see
// Writer.commit.
func (t *tree) newestTimestamp(ctx context.Context) (name string, text []byte, err error) {
	name = currentName
	text, err = readSmall(ctx, t.st, name, maxTimestamp)
	if err != nil {
		return "", nil, fmt.Errorf("could not open registry %q: %w", t.location, t.locate(err))
	}
	_, payload, err := splitSigned(text)
	if err != nil {
		return "", nil, t.refuse(name, Malformed, "%s", err)
	}
	// Its number only, by which nothing is lost if it is wrong.
	var ts struct {
		Version int64 `json:"version"`
	}
	if err := decode(payload, &ts); err != nil {
		return "", nil, t.refuse(name, Malformed, "%s", err)
	}
	if err := checkNumber(ts.Version); err != nil {
		return "", nil, t.refuse(name, Malformed, "%s", err)
	}
	for n := ts.Version + 1; n <= ts.Version+maxAhead; n++ {
		next, err := readSmall(ctx, t.st, timestampName(n), maxTimestamp)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return name, text, nil
		}
		if err != nil {
			return "", nil, fmt.Errorf("could not open registry %q: %w", t.location, t.locate(err))
		}
		name, text = timestampName(n), next
	}
	return "", nil, t.refuse(currentName, Oversized, "more than %d timestamps follow it", maxAhead)
}

// signedBy returns what a text says if enough keys of a role signed it.
func (t *tree) signedBy(name string, text []byte, role Role) ([]byte, error) {
	signatures, payload, err := splitSigned(text)
	if err != nil {
		return nil, t.refuse(name, Malformed, "%s", err)
	}
	if got := len(signers(signatures, payload, role.Keys)); got < role.Threshold {
		return nil, t.refuse(name, BadSignature, "%d of the %d signatures needed; it is signed by %s", got, role.Threshold, claimed(signatures))
	}
	return payload, nil
}

// signedFor is signedBy for a role of the newest root. A writer also takes what
// the root before asked for: when a root was replaced by somebody who did not get
// to sign index and timestamp again, somebody else must be able to.
func (t *tree) signedFor(ctx context.Context, name string, text []byte, lenient bool, role func(*Policy) Role) ([]byte, error) {
	payload, err := t.signedBy(name, text, role(&t.root.Policy))
	if err == nil || !lenient || t.root.Version == 1 {
		return payload, err
	}
	before, err2 := t.rootBefore(ctx)
	if err2 != nil {
		return nil, errors.Join(err, err2)
	}
	if payload, err2 := t.signedBy(name, text, role(&before.Policy)); err2 == nil {
		return payload, nil
	}
	return nil, err
}

// rootBefore reads the root before the newest. It is the right one if its own
// keys signed it, and signed the newest.
func (t *tree) rootBefore(ctx context.Context) (*root, error) {
	name := rootName(t.root.Version - 1)
	text, err := readSmall(ctx, t.st, name, maxRoot)
	if err != nil {
		return nil, err
	}
	before, _, err := t.readRoot(name, text)
	if err != nil {
		return nil, err
	}
	signatures, payload, err := splitSigned(t.rootText)
	if err != nil {
		return nil, err
	}
	role := before.Policy.Root
	if before.ID != t.root.ID || before.Version != t.root.Version-1 || len(signers(signatures, payload, role.Keys)) < role.Threshold {
		return nil, t.refuse(name, BadSignature, "root %d does not follow from it", t.root.Version)
	}
	return before, nil
}

func (t *tree) name() string {
	return t.root.Policy.Name
}
func (t *tree) signed() bool     { return true }
func (t *tree) entries() []Entry { return t.index.Entries }
func (t *tree) close() error     { return t.st.close() }

// releases reads the statements on a package. Each must be signed by a key that
// may sign for it, and together they must be what the index says.
func (t *tree) releases(ctx context.Context, name string) ([]*Release, error) {
	e := t.index.find(name)
	if e == nil {
		return nil, nil
	}
	statements, err := t.statements(ctx, e)
	if err != nil {
		return nil, err
	}
	file := blobName(e.releases.SHA256)
	keys := t.root.Policy.PublishersOf(name)
	var all []*Release
	for i, s := range statements {
		r, err := t.statement(file, name, s, keys)
		if err != nil {
			return nil, err
		}
		if i >= len(e.Versions) || r.Version != e.Versions[i] {
			return nil, t.refuse(file, Malformed, "version %q of package %q is not what the index lists there", r.Version, name)
		}
		all = append(all, r)
	}
	if len(all) != len(e.Versions) {
		return nil, t.refuse(file, Malformed, "it has %d versions of package %q and the index %d", len(all), name, len(e.Versions))
	}
	return all, nil
}

func (t *tree) statements(ctx context.Context, e *Entry) ([]signedText, error) {
	text, err := t.cache.blob(ctx, t.st, e.releases, maxPackage)
	if err != nil {
		return nil, fmt.Errorf("could not read the versions of package %q: %w", e.Name, t.locate(err))
	}
	statements, err := splitStatements(text)
	if err != nil {
		return nil, t.refuse(blobName(e.releases.SHA256), Malformed, "package %q: %s", e.Name, err)
	}
	return statements, nil
}

// statement verifies one release.
func (t *tree) statement(file, name string, s signedText, keys []PublicKey) (*Release, error) {
	by := signers(s.signatures, s.payload, keys)
	if len(by) == 0 {
		// Nothing that it says is known to be true: name what the index named.
		reason := BadSignature
		if len(signers(s.signatures, s.payload, t.allPublishers())) > 0 {
			reason = NotDelegated
		}
		return nil, t.refuse(file, reason, "package %q is signed by %s; those who may are %s", name, claimed(s.signatures), keyIDs(keys))
	}
	r, err := parseRelease(s.payload)
	if err != nil {
		return nil, t.refuse(file, Malformed, "package %q: %s", name, err)
	}
	if r.Name != name {
		return nil, t.refuse(file, Malformed, "package %q stands where %q belongs", r.Name, name)
	}
	r.Registry = t.name()
	for _, k := range by {
		r.Signers = append(r.Signers, KeyID(k))
	}
	return r, nil
}

func (t *tree) allPublishers() []PublicKey {
	var keys []PublicKey
	for _, d := range t.root.Policy.Publishers {
		keys = append(keys, d.Keys...)
	}
	return keys
}

func keyIDs(keys []PublicKey) string {
	if len(keys) == 0 {
		return "nobody"
	}
	var ids []string
	for _, k := range keys {
		ids = append(ids, KeyID(k))
	}
	return strings.Join(ids, ", ")
}

func (t *tree) archive(ctx context.Context, r *Release) ([]byte, error) {
	var sum digest
	if err := sum.UnmarshalText([]byte(r.SHA256)); err != nil {
		return nil, err
	}
	data, err := t.cache.blob(ctx, t.st, ref{sum, r.Size}, maxArchive)
	if err != nil {
		return nil, fmt.Errorf("could not fetch package %q, version %q: %w", r.Name, r.Version, t.locate(err))
	}
	return data, nil
}

func (t *tree) fetch(ctx context.Context, r *Release) (*pack.Package, error) {
	data, err := t.archive(ctx, r)
	if err != nil {
		return nil, err
	}
	p, err := readArchive(data)
	if err == nil {
		err = r.describes(p)
	}
	if err != nil {
		return nil, &Refused{t.location, "blobs/sha256/" + r.SHA256[:2] + "/" + r.SHA256[2:], Malformed, err.Error()}
	}
	return p, nil
}
