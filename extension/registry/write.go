package registry

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"rideau/extension/pack"
	"rideau/internal/durable"
)

// A Writer changes a signed registry: in a directory, or in object storage that
// can create an object only if there is none (S3 can). Several may work on one
// registry at once: each change is made on top of the others, or fails.
//
// It verifies the registry as a reader does before it adds to it: what somebody
// slipped in is not signed by the next who publishes.
type Writer struct {
	t    *tree
	st   writable
	also *Policy // whose roles sign too, while the root is replaced
}

// Init makes a registry at location, with no packages in it. Keys must be enough
// for all roles of the policy. Nobody trusts it yet, its maker neither: see
// [Trust.Add].
func Init(ctx context.Context, location string, p Policy, o Options, keys ...SecretKey) error {
	p.fill()
	if err := p.validate(); err != nil {
		return fmt.Errorf("could not make a registry: %w", err)
	}
	st, location, err := openStore(ctx, location, o)
	if err != nil {
		return err
	}
	err = initTree(ctx, st, location, p, o, keys)
	return errors.Join(err, st.close())
}

func initTree(ctx context.Context, st store, location string, p Policy, o Options, keys []SecretKey) error {
	w, ok := st.(writable)
	if !ok {
		return fmt.Errorf("cannot write to registry %q", location)
	}
	if d, ok := st.(dirStore); ok {
		if err := mkdirAll(string(d), 0o755); err != nil {
			return err
		}
	}
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return err
	}
	t := &tree{st: st, location: location, options: o}
	r := &root{ID: hex.EncodeToString(id[:]), Version: 1, Expires: t.expiry(p.RootLifetime), Policy: p}
	text, err := r.encode()
	if err != nil {
		return err
	}
	if text, err = t.signFor("the root", text, p.Root, keys); err != nil {
		return err
	}
	// Storage that overwrites what is there would do so before we know.
	if _, err := readSmall(ctx, st, rootName(1), maxRoot); err == nil {
		return begun(ctx, st, location)
	} else if !errors.Is(err, fs.ErrNotExist) && !isRefused(err) {
		return fmt.Errorf("could not make a registry: %w", err)
	}
	// The root first, by which two who make a registry in one place are told
	// apart; without a timestamp it cannot be opened.
	if err := w.create(ctx, rootName(1), text); err != nil {
		if !errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("could not make a registry: %w", err)
		}
		return begun(ctx, st, location)
	}
	if err := createsOnce(ctx, w, location, rootName(1), text); errors.As(err, new(*overwritesError)) {
		return errors.Join(err, w.remove(ctx, rootName(1)))
	} else if err != nil {
		return fmt.Errorf("could not make a registry: %w", err)
	}
	t.root = r
	x := &index{header: header{typeIndex, format}, ID: r.ID}
	return (&Writer{t: t, st: w}).write(ctx, x, nil, keys)
}

// begun says what is there instead of a registry to be made.
func begun(ctx context.Context, st store, location string) error {
	if _, err := readSmall(ctx, st, currentName, maxTimestamp); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("a registry was begun at %q and not finished: remove its file %q to begin again", location, rootName(1))
	}
	return fmt.Errorf("there is a registry at %q already", location)
}

// OpenWriter opens the registry at location to change it. An index or timestamp
// that has expired is no obstacle: it can be replaced.
func OpenWriter(ctx context.Context, location string, trust *Trust, o Options) (*Writer, error) {
	t, err := openTree(ctx, location, trust, o)
	if err != nil {
		return nil, err
	}
	st, ok := t.st.(writable)
	if !ok {
		return nil, errors.Join(fmt.Errorf("cannot write to registry %q: publish to the directory that is served, or to object storage", t.location), t.close())
	}
	if err := t.load(ctx, true); err != nil {
		return nil, errors.Join(err, t.close())
	}
	if err := createsOnce(ctx, st, t.location, currentName, t.stampText); err != nil {
		return nil, errors.Join(err, t.close())
	}
	return &Writer{t: t, st: st}, nil
}

// Close lets go of connections.
func (w *Writer) Close() error { return w.t.close() }

// Policy returns who may sign what, as of the newest root.
func (w *Writer) Policy() Policy { return w.t.root.Policy }

func (t *tree) expiry(after time.Duration) time.Time {
	return t.now().Add(after).UTC().Truncate(time.Second)
}

// signFor signs text with those of keys that a role has, and requires that they
// are enough.
func (t *tree) signFor(what string, text []byte, role Role, keys []SecretKey) ([]byte, error) {
	n := 0
	var err error
	for _, want := range role.Keys {
		for _, k := range keys {
			if !sameKey(public(k), want) || KeyID(public(k)) != KeyID(want) {
				continue
			}
			if text, err = sign(text, k, t.now()); err != nil {
				return nil, err
			}
			n++
			break
		}
	}
	if n < role.Threshold {
		return nil, fmt.Errorf("could not sign %s of registry %q: %d of the %d keys needed were given, of %s", what, t.location, n, role.Threshold, keyIDs(role.Keys))
	}
	return text, nil
}

// Describe returns the statement on an archive that a publisher signs with
// [Sign], where the key is, and that [Writer.Add] takes.
func Describe(archive []byte) ([]byte, error) {
	if len(archive) > maxArchive {
		return nil, fmt.Errorf("an archive of %d bytes is refused, the most is %d", len(archive), maxArchive)
	}
	p, err := readArchive(archive)
	if err != nil {
		return nil, err
	}
	r := releaseOf(p, int64(len(archive)))
	r.SHA256 = refOf(archive).SHA256.String()
	line, err := r.encode()
	if err != nil {
		return nil, err
	}
	// What would not be read again must not be signed.
	_, err = parseRelease(line)
	return line, err
}

// Publish signs an archive with those of keys that may, and adds it. Keys must
// be enough for the index and the timestamp too.
func (w *Writer) Publish(ctx context.Context, archive []byte, keys ...SecretKey) (*Release, error) {
	statement, err := Describe(archive)
	if err != nil {
		return nil, err
	}
	r, err := parseRelease(statement)
	if err != nil {
		return nil, err
	}
	may := w.t.root.Policy.PublishersOf(r.Name)
	n := 0
	for _, k := range keys {
		if slices.ContainsFunc(may, func(o PublicKey) bool { return sameKey(o, public(k)) }) {
			if statement, err = sign(statement, k, w.t.now()); err != nil {
				return nil, err
			}
			n++
		}
	}
	if n == 0 {
		return nil, w.t.refuse(r.Name, NotDelegated, "none of the keys given may sign package %q; those that may are %s", r.Name, keyIDs(may))
	}
	return w.Add(ctx, archive, statement, keys...)
}

// Add adds an archive with the statement that its publisher signed. A version
// that is there stays as it is: to add it again does nothing, what is returned says
// Already, and to add another archive under its name is an error.
func (w *Writer) Add(ctx context.Context, archive, statement []byte, keys ...SecretKey) (*Release, error) {
	texts, err := splitStatements(statement)
	if err == nil && len(texts) != 1 {
		err = fmt.Errorf("it has %d statements and not one", len(texts))
	}
	if err != nil {
		return nil, fmt.Errorf("could not read the statement: %w", err)
	}
	var added *Release
	err = w.commit(ctx, keys, func(t *tree) (*change, error) {
		// Who may sign is known only now, and may change between two attempts.
		claims, err := parseRelease(texts[0].payload)
		if err != nil {
			return nil, fmt.Errorf("could not read the statement: %w", err)
		}
		r, err := t.statement("the statement", claims.Name, texts[0], t.root.Policy.PublishersOf(claims.Name))
		if err != nil {
			return nil, err
		}
		if got := refOf(archive); got.SHA256.String() != r.SHA256 || got.Size != r.Size {
			return nil, t.refuse("the archive", Mismatch, "its SHA-256 is %s, and %s was signed", got.SHA256, r.SHA256)
		}
		p, err := readArchive(archive)
		if err != nil {
			return nil, err
		}
		if err := r.describes(p); err != nil {
			return nil, t.refuse("the archive", Malformed, "%s", err)
		}
		added = r
		old, texts2, err := t.package_(ctx, r.Name)
		if err != nil {
			return nil, err
		}
		for _, o := range old {
			if o.Version != r.Version {
				continue
			}
			if o.SHA256 == r.SHA256 {
				r.Already = true
				return nil, nil
			}
			return nil, fmt.Errorf("version %q of package %q is published already, with other content: give it another version", r.Version, r.Name)
		}
		return newChange(t.index, append(old, r), append(texts2, texts[0].whole), archive)
	})
	return added, err
}

// Withdraw takes a version of a package out of the index. Its archive stays until
// [Writer.Prune]. It is also how to get rid of a release whose signer may no
// longer sign.
func (w *Writer) Withdraw(ctx context.Context, name, version string, keys ...SecretKey) error {
	return w.commit(ctx, keys, func(t *tree) (*change, error) {
		e := t.index.find(name)
		if e == nil {
			return nil, &NotFound{Name: name, Where: []string{t.name()}}
		}
		statements, err := t.statements(ctx, e)
		if err != nil {
			return nil, err
		}
		var left []*Release
		var texts [][]byte
		for _, s := range statements {
			r, err := parseRelease(s.payload)
			if err != nil {
				return nil, t.refuse(blobName(e.releases.SHA256), Malformed, "package %q: %s", name, err)
			}
			if r.Version != version {
				left, texts = append(left, r), append(texts, s.whole)
			}
		}
		if len(left) == len(statements) {
			return nil, &NotFound{name, version, e.Versions, []string{t.name()}}
		}
		if len(left) == 0 {
			x := *t.index
			x.Entries = slices.DeleteFunc(slices.Clone(x.Entries), func(e Entry) bool { return e.Name == name })
			return &change{index: &x}, nil
		}
		return newChange(t.index, left, texts, nil)
	})
}

// Refresh signs index and timestamp anew, so that they expire later. With keys
// for the timestamp only, the index is left as it is.
func (w *Writer) Refresh(ctx context.Context, keys ...SecretKey) error {
	return w.commit(ctx, keys, func(t *tree) (*change, error) {
		if !enough(Policy{Index: t.root.Policy.Index}, keys) {
			return &change{}, nil
		}
		return &change{index: t.index}, nil
	})
}

// package_ returns the releases of a package, none if there is no such package,
// and their statements.
func (t *tree) package_(ctx context.Context, name string) ([]*Release, [][]byte, error) {
	releases, err := t.releases(ctx, name)
	if err != nil || releases == nil {
		return nil, nil, err
	}
	statements, err := t.statements(ctx, t.index.find(name))
	if err != nil {
		return nil, nil, err
	}
	var texts [][]byte
	for _, s := range statements {
		texts = append(texts, s.whole)
	}
	return releases, texts, nil
}

// A change is what a commit makes of a registry: another index, unless it is
// nil, and blobs that must be there before it.
type change struct {
	index *index
	blobs [][]byte
}

// newChange puts a package with these releases in place of the one of its name.
func newChange(x *index, releases []*Release, statements [][]byte, archive []byte) (*change, error) {
	byVersion := map[string][]byte{}
	for i, r := range releases {
		byVersion[r.Version] = statements[i]
	}
	e := summarize(releases) // orders them
	var text bytes.Buffer
	for _, r := range releases {
		text.Write(byVersion[r.Version])
	}
	if text.Len() > maxPackage {
		return nil, fmt.Errorf("package %q has too many versions: the statements on them take %d bytes, the most is %d", e.Name, text.Len(), maxPackage)
	}
	e.releases = refOf(text.Bytes())
	if err := e.check(); err != nil {
		return nil, err
	}
	next := *x
	next.Entries = slices.Clone(x.Entries)
	i, ok := slices.BinarySearchFunc(next.Entries, e.Name, func(o Entry, name string) int { return strings.Compare(o.Name, name) })
	if ok {
		next.Entries[i] = e
	} else {
		next.Entries = slices.Insert(next.Entries, i, e)
	}
	c := &change{index: &next, blobs: [][]byte{text.Bytes()}}
	if archive != nil {
		c.blobs = append(c.blobs, archive)
	}
	return c, nil
}

// maxAttempts is how many other writers may be faster than one before it gives
// up.
const maxAttempts = 1000

// commit makes a change on top of the newest state, and again on top of what
// somebody else made of it meanwhile. A nil change is none.
func (w *Writer) commit(ctx context.Context, keys []SecretKey, edit func(*tree) (*change, error)) error {
	for range maxAttempts {
		if err := w.t.load(ctx, true); err != nil {
			return err
		}
		if now := w.t.now(); !now.Before(w.t.root.Expires) {
			return w.t.refuse(rootName(w.t.root.Version), Expired, "on %s: only another root can follow", date(w.t.root.Expires))
		}
		c, err := edit(w.t)
		if err != nil || c == nil {
			return err
		}
		err = w.write(ctx, c.index, c.blobs, keys)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		return err
	}
	return fmt.Errorf("gave up changing registry %q: others were faster %d times", w.t.location, maxAttempts)
}

// write is the order in which everything is written: blobs, the index, then the
// numbered timestamp, which at most one writer can create. From then on the
// change counts. The file that names the newest timestamp comes last, and may lag
// behind if we do not get that far, or if a slower writer replaces it after us:
// readers look for the next number from there. A nil index stays as it is.
func (w *Writer) write(ctx context.Context, x *index, blobs [][]byte, keys []SecretKey) error {
	t := w.t
	p := t.root.Policy
	ts := &timestamp{header: header{typeTimestamp, format}, ID: t.root.ID, Version: 1, Expires: t.expiry(p.TimestampLifetime), Root: t.root.Version}
	if t.timestamp != nil {
		ts.Version = t.timestamp.Version + 1
		ts.Index = t.timestamp.Index
	}
	if x != nil {
		next := *x
		next.Version, next.Expires = ts.Index.Version+1, t.expiry(p.IndexLifetime)
		text, err := next.encode()
		if err != nil {
			return err
		}
		if text, err = w.sign("the index", text, keys, func(p *Policy) Role { return p.Index }); err != nil {
			return err
		}
		if len(text) > maxIndex {
			return fmt.Errorf("the index would have %d bytes, the most is %d", len(text), maxIndex)
		}
		ts.Index.Version, ts.Index.ref = next.Version, refOf(text)
		blobs = append(slices.Clone(blobs), text)
	}
	text, err := encodeTimestamp(ts)
	if err != nil {
		return err
	}
	if text, err = w.sign("the timestamp", text, keys, func(p *Policy) Role { return p.Timestamp }); err != nil {
		return err
	}
	return w.store(ctx, blobs, ts.Version, text)
}

// sign signs for a role of the root's policy, and of the one that follows.
func (w *Writer) sign(what string, text []byte, keys []SecretKey, role func(*Policy) Role) ([]byte, error) {
	text, err := w.t.signFor(what, text, role(&w.t.root.Policy), keys)
	if err != nil || w.also == nil {
		return text, err
	}
	return w.t.signFor(what, text, role(w.also), keys)
}

func (w *Writer) store(ctx context.Context, blobs [][]byte, version int64, stamp []byte) error {
	for _, b := range blobs {
		if err := w.st.put(ctx, blobName(refOf(b).SHA256), b); err != nil {
			return fmt.Errorf("could not write to registry %q: %w", w.t.location, err)
		}
	}
	if err := w.st.create(ctx, timestampName(version), stamp); err != nil {
		return fmt.Errorf("could not write to registry %q: %w", w.t.location, err)
	}
	if err := w.st.put(ctx, currentName, stamp); err != nil {
		return fmt.Errorf("registry %q was changed, but could not replace %q: %w", w.t.location, currentName, err)
	}
	return nil
}

// DraftRoot returns the root that would put policy in place of the one there is,
// not signed. Whoever holds keys of the root adds their signatures with [Sign],
// and [Writer.PutRoot] puts it in force.
func (w *Writer) DraftRoot(p Policy) ([]byte, error) {
	p.fill()
	r := &root{ID: w.t.root.ID, Version: w.t.root.Version + 1, Expires: w.t.expiry(p.RootLifetime), Policy: p}
	return r.encode()
}

// PutRoot puts a signed root in force, the next after the newest. Keys sign index
// and timestamp again, and must be enough for the new root. If they are enough
// for the old one too, no reader is refused at any moment; else readers are
// between the first write and the last.
func (w *Writer) PutRoot(ctx context.Context, document []byte, keys ...SecretKey) error {
	if err := w.t.load(ctx, true); err != nil {
		return err
	}
	t := w.t
	old, name := t.root, "the new root"
	if len(document) > maxRoot {
		return t.refuse(name, Oversized, "it is longer than %d bytes", maxRoot)
	}
	next, signatures, err := t.readRoot(name, document)
	if err != nil {
		return err
	}
	_, payload, err := splitSigned(document)
	if err != nil {
		return err
	}
	if next.ID != old.ID || next.Version != old.Version+1 {
		return t.refuse(name, RolledBack, "it is root %d of registry %s, and root %d of %s must follow", next.Version, next.ID, old.Version+1, old.ID)
	}
	if was := old.Policy.Root; len(signers(signatures, payload, was.Keys)) < was.Threshold {
		return t.refuse(name, BadSignature, "%d of the %d signatures that root %d asks for", len(signers(signatures, payload, was.Keys)), was.Threshold, old.Version)
	}
	if !enough(next.Policy, keys) {
		return fmt.Errorf("could not replace the root of registry %q: the keys given are not enough for the index and the timestamp under the new one", t.location)
	}

	again := func(t *tree) (*change, error) { return &change{index: t.index}, nil }
	if enough(old.Policy, keys) && t.now().Before(old.Expires) {
		both := &Writer{t: t, st: w.st, also: &next.Policy}
		if err := both.commit(ctx, keys, again); err != nil {
			return err
		}
	}
	if err := w.st.create(ctx, rootName(next.Version), document); err != nil {
		return fmt.Errorf("could not write root %d of registry %q: %w", next.Version, t.location, err)
	}
	return w.commit(ctx, keys, again)
}

// enough reports whether keys can sign index and timestamp under a policy.
func enough(p Policy, keys []SecretKey) bool {
	for _, role := range []Role{p.Index, p.Timestamp} {
		n := 0
		for _, k := range role.Keys {
			if slices.ContainsFunc(keys, func(s SecretKey) bool { return sameKey(public(s), k) }) {
				n++
			}
		}
		if n < role.Threshold {
			return false
		}
	}
	return true
}

// Prune lists what no reader needs any more and was last written before a time:
// indexes and statements that were replaced, archives of withdrawn versions, old
// timestamps, and what a publisher left who did not get to the end. It removes
// them if told to. Leave a day at least: who opened the registry reads on from
// the index of then.
func (w *Writer) Prune(ctx context.Context, before time.Time, remove bool) ([]string, error) {
	if err := w.t.load(ctx, true); err != nil {
		return nil, err
	}
	t := w.t
	keep := map[string]bool{
		currentName:                        true,
		timestampName(t.timestamp.Version): true,
		blobName(t.timestamp.Index.SHA256): true,
	}
	for i := range t.index.Entries {
		e := &t.index.Entries[i]
		keep[blobName(e.releases.SHA256)] = true
		statements, err := t.statements(ctx, e)
		if err != nil {
			return nil, err
		}
		for _, s := range statements {
			r, err := parseRelease(s.payload)
			if err != nil {
				return nil, t.refuse(blobName(e.releases.SHA256), Malformed, "package %q: %s", e.Name, err)
			}
			var sum digest
			if err := sum.UnmarshalText([]byte(r.SHA256)); err != nil {
				return nil, err
			}
			keep[blobName(sum)] = true
		}
	}
	var gone []string
	for it, err := range w.st.list(ctx) {
		if err != nil {
			return nil, fmt.Errorf("could not list registry %q: %w", t.location, err)
		}
		var n int64
		_, scanned := fmt.Sscanf(it.name, "%d.timestamp", &n)
		isStamp := scanned == nil && it.name == timestampName(n) && n < t.timestamp.Version
		if !keep[it.name] && it.modified.Before(before) && (isStamp || isBlob(it.name) || isLeftover(it.name)) {
			gone = append(gone, it.name)
		}
	}
	slices.Sort(gone)
	if !remove {
		return gone, nil
	}
	for _, name := range gone {
		if err := w.st.remove(ctx, name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return gone, fmt.Errorf("could not remove %q of registry %q: %w", name, t.location, err)
		}
	}
	return gone, nil
}

// isBlob reports whether name is one that blobName returns: nothing else is ever
// removed.
func isBlob(name string) bool {
	var d digest
	rest, ok := strings.CutPrefix(name, "blobs/sha256/")
	return ok && d.UnmarshalText([]byte(strings.Replace(rest, "/", "", 1))) == nil && name == blobName(d)
}

// isLeftover reports whether name is that of a file in the making.
func isLeftover(name string) bool { return durable.IsTemp(path.Base(name)) }

// PublishPackage is [Writer.Publish] for a package that was read and not
// archived yet.
func (w *Writer) PublishPackage(ctx context.Context, p *pack.Package, keys ...SecretKey) (*Release, error) {
	var archive bytes.Buffer
	if _, err := p.WriteArchive(&archive); err != nil {
		return nil, err
	}
	return w.Publish(ctx, archive.Bytes(), keys...)
}

func encodeTimestamp(ts *timestamp) ([]byte, error) {
	text, err := json.Marshal(ts)
	if err != nil {
		return nil, err
	}
	text = append(text, '\n')
	_, err = parseTimestamp(text)
	return text, err
}
