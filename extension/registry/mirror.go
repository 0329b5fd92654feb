package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
)

// Mirror copies a signed registry to a directory or object storage, byte for
// byte: whoever verifies the original verifies the copy, with the same keys. With
// names, only those packages are copied; the copy still lists the others, and
// does not have them. It is run again to follow the original, and copies what is
// new, and what of the copy is damaged. At every moment the copy is whole: what
// names something is written after it.
func Mirror(ctx context.Context, from *Registry, location string, o Options, names ...string) error {
	t, ok := from.from.(*tree)
	if !ok {
		return fmt.Errorf("cannot mirror %q: it is not signed", from.location)
	}
	if len(names) == 0 {
		names = from.Names()
	}
	for _, n := range names {
		if t.index.find(n) == nil {
			return &NotFound{Name: n, Where: []string{from.Name()}}
		}
	}
	st, location, err := openStore(ctx, location, o)
	if err != nil {
		return err
	}
	to, ok := st.(writable)
	if !ok {
		return errors.Join(fmt.Errorf("cannot write to %q", location), st.close())
	}
	return errors.Join(t.mirror(ctx, to, location, names), st.close())
}

func (t *tree) mirror(ctx context.Context, to writable, location string, names []string) error {
	have := map[string]int64{} // sizes
	if d, ok := to.(dirStore); ok {
		if err := mkdirAll(string(d), 0o755); err != nil {
			return err
		}
	}
	for it, err := range to.list(ctx) {
		if err != nil {
			return fmt.Errorf("could not list %q: %w", location, err)
		}
		have[it.name] = it.size
	}
	// What is there must be an older state of the same registry.
	if err := t.precedes(ctx, to, location); err != nil {
		return err
	}

	for _, name := range names {
		e := t.index.find(name)
		releases, err := t.releases(ctx, name)
		if err != nil {
			return err
		}
		for _, r := range releases {
			var sum digest
			if err := sum.UnmarshalText([]byte(r.SHA256)); err != nil {
				return err
			}
			if ok, err := whole(ctx, to, ref{sum, r.Size}, have); err != nil {
				return err
			} else if ok {
				continue
			}
			data, err := t.archive(ctx, r)
			if err != nil {
				return err
			}
			if err := to.put(ctx, blobName(sum), data); err != nil {
				return err
			}
		}
		if err := t.copyBlob(ctx, to, e.releases, maxPackage, have); err != nil {
			return err
		}
	}
	if err := t.copyBlob(ctx, to, t.timestamp.Index.ref, maxIndex, have); err != nil {
		return err
	}
	// All roots, since a reader may begin with any; the oldest first.
	for n := int64(1); n <= t.root.Version; n++ {
		text := t.rootText
		if n < t.root.Version {
			var err error
			if text, err = readSmall(ctx, t.st, rootName(n), maxRoot); err != nil {
				return fmt.Errorf("could not read root %d of registry %q: %w", n, t.location, err)
			}
		}
		if err := createSame(ctx, to, rootName(n), text, maxRoot); err != nil {
			return err
		}
	}
	if err := createSame(ctx, to, timestampName(t.timestamp.Version), t.stampText, maxTimestamp); err != nil {
		return err
	}
	return to.put(ctx, currentName, t.stampText)
}

func (t *tree) copyBlob(ctx context.Context, to writable, r ref, limit int64, have map[string]int64) error {
	if ok, err := whole(ctx, to, r, have); err != nil || ok {
		return err
	}
	data, err := t.cache.blob(ctx, t.st, r, limit)
	if err != nil {
		return t.locate(err)
	}
	return to.put(ctx, blobName(r.SHA256), data)
}

// whole reports whether the copy has what r names. A name is no proof: a disk may
// have lost some of it, or somebody written to it. What is in a directory is read;
// object storage keeps checksums of its own, and is asked for the size, unless it
// gives none.
func whole(ctx context.Context, to store, r ref, have map[string]int64) (bool, error) {
	name := blobName(r.SHA256)
	size, ok := have[name]
	if !ok || size >= 0 && size != r.Size {
		return false, nil
	}
	if _, isDir := to.(dirStore); !isDir && size >= 0 {
		return true, nil
	}
	data, err := readSmall(ctx, to, name, r.Size)
	if errors.Is(err, fs.ErrNotExist) || isRefused(err) { // it has grown, or is gone
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("could not verify what the copy has: %w", err)
	}
	return refOf(data) == r, nil
}

// precedes checks that what is in to, if anything, is this registry, and not
// newer than what was read of it.
func (t *tree) precedes(ctx context.Context, to store, location string) error {
	text, err := readSmall(ctx, to, currentName, maxTimestamp)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var ts *timestamp
	if err == nil {
		var payload []byte
		if _, payload, err = splitSigned(text); err == nil {
			ts, err = parseTimestamp(payload)
		}
	}
	if err != nil {
		return fmt.Errorf("could not read the timestamp of the mirror %q: %w", location, err)
	}
	if ts.ID != t.root.ID {
		return fmt.Errorf("cannot mirror to %q: there is another registry", location)
	}
	if ts.Version > t.timestamp.Version {
		return fmt.Errorf("cannot mirror to %q: it has timestamp %d, and registry %q only %d", location, ts.Version, t.location, t.timestamp.Version)
	}
	return nil
}

// createSame makes name have this content; it must not have another.
func createSame(ctx context.Context, to writable, name string, data []byte, limit int64) error {
	err := to.create(ctx, name, data)
	if !errors.Is(err, fs.ErrExist) {
		return err
	}
	old, err := readSmall(ctx, to, name, limit)
	if err == nil && !bytes.Equal(old, data) {
		err = fmt.Errorf("cannot mirror: the copy has another %q", name)
	}
	return err
}
