package registry

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"rideau/internal/durable"
)

// A memory is what a client remembers of a registry, so that nobody can show it
// an older state of it later. It goes by location: a mirror that lags behind is
// not an attack on those who only use the mirror.
type memory struct {
	Location  string `json:"location"`
	Anchor    string `json:"anchor"` // the trusted key that the roots were first believed for
	Root      []byte `json:"root"`   // the newest root, as it was signed
	Timestamp int64  `json:"timestamp"`
	SHA256    digest `json:"sha256"` // of the timestamp
	Index     int64  `json:"index"`
}

// memories is the folder that they are kept in.
type memories struct{ dir string }

func (m memories) path(location string) string {
	sum := sha256.Sum256([]byte(location))
	return filepath.Join(m.dir, hex.EncodeToString(sum[:16])+".json")
}

// recall returns what is remembered of a location: a zero memory if nothing is.
// A memory that cannot be read is an error, not a fresh start.
func (m memories) recall(location string) (memory, error) {
	path := m.path(location)
	text, err := readFile(path, 4*maxRoot)
	if errors.Is(err, fs.ErrNotExist) {
		return memory{Location: location}, nil
	}
	var got memory
	if err == nil {
		err = decode(text, &got)
	}
	if err == nil && got.Location != location {
		err = fmt.Errorf("it is about %q", got.Location)
	}
	if err != nil {
		return got, fmt.Errorf("could not read what is remembered of registry %q, in %q: %w", location, path, err)
	}
	return got, nil
}

// Remembered reports whether a signed registry was seen at a location: what is
// there now, if it is not signed, is not what was there then.
func Remembered(ctx context.Context, location string, o Options) (bool, error) {
	st, location, err := openStore(ctx, location, o)
	if err != nil {
		return false, err
	}
	if err := st.close(); err != nil {
		return false, err
	}
	mem, err := memories{o.State}.recall(location)
	return len(mem.Root) > 0, err
}

// Forget makes a client forget what it has seen at a location: for a registry that
// was made anew there, by the same hands. It gives up what protects against an old
// state of it.
func Forget(ctx context.Context, location string, o Options) error {
	st, location, err := openStore(ctx, location, o)
	if err != nil {
		return err
	}
	if err := st.close(); err != nil {
		return err
	}
	m := memories{o.State}
	err = os.Remove(m.path(location))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("nothing is remembered of registry %q", location)
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(m.dir)
}

// keep remembers now, unless somebody meanwhile remembered something later.
func (m memories) keep(ctx context.Context, now memory, rootVersion int64) error {
	if err := mkdirAll(m.dir, 0o700); err != nil {
		return err
	}
	lock, err := wait(ctx, func() (*durable.Lock, error) { return durable.HoldDir(m.dir) })
	if err != nil {
		return err
	}
	defer lock.Close()
	old, err := m.recall(now.Location)
	if err != nil {
		return err
	}
	if len(old.Root) > 0 {
		_, payload, err := splitSigned(old.Root)
		if err != nil {
			return fmt.Errorf("could not read what is remembered of registry %q: %w", now.Location, err)
		}
		r, err := parseRoot(payload)
		if err != nil {
			return fmt.Errorf("could not read what is remembered of registry %q: %w", now.Location, err)
		}
		if r.Version > rootVersion && old.Anchor == now.Anchor {
			now.Root = old.Root
		}
	}
	if old.Timestamp > now.Timestamp {
		now.Timestamp, now.SHA256 = old.Timestamp, old.SHA256
	}
	now.Index = max(now.Index, old.Index)
	text, err := json.Marshal(now)
	if err != nil {
		return err
	}
	return durable.WriteFile(m.path(now.Location), append(text, '\n'), 0o600)
}
