package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"rideau/extension/registry"
)

// A registryLocation is a registry that somebody named: a directory or a URL.
type registryLocation struct {
	location string
	named    bool // on the command line, by who runs us now
}

// openRegistries are the registries of one command.
type openRegistries struct{ set registry.Set }

// Close lets go of all of them.
func (r *openRegistries) Close() error {
	var all []error
	for _, one := range r.set {
		all = append(all, one.Close())
	}
	return errors.Join(all...)
}

func openAll(ctx context.Context, from []registryLocation) (*openRegistries, error) {
	r := &openRegistries{}
	for _, l := range from {
		one, err := openRegistry(ctx, l)
		if err != nil {
			return nil, errors.Join(err, r.Close())
		}
		r.set = append(r.set, one)
	}
	return r, nil
}

// An unsignedError says that a registry has no signatures, and was not named on
// the command line.
type unsignedError struct{ location string }

func (e *unsignedError) Error() string {
	return fmt.Sprintf("%q is not a registry: nothing in it is signed", e.location)
}

// pgxnPrefix marks a mirror of PGXN, whose layout is another. Only the archives in
// it say what depends on what, so it is to look at and to make packages of.
const pgxnPrefix = "pgxn:"

// openRegistry opens a signed registry, or what the user has named himself.
func openRegistry(ctx context.Context, l registryLocation) (*registry.Registry, error) {
	mirror, isMirror := strings.CutPrefix(l.location, pgxnPrefix)
	if isMirror || !strings.Contains(l.location, "://") && !isSignedTree(l.location) {
		if !l.named {
			return nil, &unsignedError{l.location}
		}
		if isMirror {
			o, err := registryOptions()
			if err != nil {
				return nil, err
			}
			return registry.OpenPGXN(ctx, mirror, o)
		}
		if err := checkUnsigned(ctx, l.location); err != nil {
			return nil, err
		}
		r, err := registry.OpenDirectory(l.location)
		if errors.Is(err, fs.ErrNotExist) {
			err = fmt.Errorf("could not open registry %w", err)
		}
		return r, err
	}
	trust, o, err := trusting()
	if err != nil {
		return nil, err
	}
	return registry.Open(ctx, l.location, trust, o)
}

// checkUnsigned refuses to take for a plain directory what is none, and what was a
// signed registry when it was last seen.
func checkUnsigned(ctx context.Context, location string) error {
	if info, err := os.Stat(location); err == nil && !info.IsDir() {
		if strings.HasSuffix(location, ".tar.gz") || strings.HasSuffix(location, ".tgz") {
			return &usageError{
				err:  fmt.Errorf("%q is the file of a package, and a registry is a directory of them", location),
				hint: fmt.Sprintf("Give the directory that it is in: --registry %s. Or publish it in a registry: rideau extension publish REGISTRY %s.", shellQuote(filepath.Dir(location)), shellQuote(location)),
			}
		}
		return &usageError{err: fmt.Errorf("%q is a file, and a registry is a directory or a URL", location)}
	}
	o, err := registryOptions()
	if err != nil {
		return err
	}
	signed, err := registry.Remembered(ctx, location, o)
	if err != nil || !signed {
		return err
	}
	return withStatus(statusFailed, &usageError{
		err:  &registry.Refused{Location: location, File: "timestamp", Reason: registry.NotSigned, Detail: "a signed registry was seen here before, and now nothing here is signed"},
		hint: fmt.Sprintf("Its owner can say what has become of it. If you know, and want what is there now: rideau extension registry forget %s.", shellQuote(location)),
	})
}

// isSignedTree says whether a directory is a registry of ours, whole or not. Any
// of its files will do: what has lost its root must not pass for a directory in
// which nothing was ever signed.
func isSignedTree(dir string) bool {
	for _, name := range []string{"timestamp", "1.root", "blobs"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			return true
		}
	}
	return false
}

// trusting opens the user's trust store.
func trusting() (*registry.Trust, registry.Options, error) {
	o, err := registryOptions()
	if err != nil {
		return nil, o, err
	}
	dir, err := userDir("XDG_CONFIG_HOME", ".config")
	if err != nil {
		return nil, o, err
	}
	trust, err := registry.OpenTrust(filepath.Join(dir, "trust"))
	return trust, o, err
}

func registryOptions() (registry.Options, error) {
	state, err := userDir("XDG_STATE_HOME", ".local/state")
	if err != nil {
		return registry.Options{}, err
	}
	cache, err := userDir("XDG_CACHE_HOME", ".cache")
	if err != nil {
		return registry.Options{}, err
	}
	return registry.Options{
		State:   filepath.Join(state, "registries"),
		Cache:   filepath.Join(cache, "registries"),
		Waiting: func(location string) { fmt.Fprintf(os.Stderr, "waiting for %s\n", maskPasswords(location)) },
	}, nil
}

// userDir is our folder in one of the user's base directories, as the XDG Base
// Directory Specification has them: a relative path in the variable is ignored.
func userDir(variable, otherwise string) (string, error) {
	if dir := os.Getenv(variable); filepath.IsAbs(dir) {
		return filepath.Join(dir, "rideau"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", &usageError{err: fmt.Errorf("there is no home directory to keep trusted keys and states of registries in: %w", err), hint: "Set HOME, or XDG_CONFIG_HOME, XDG_STATE_HOME and XDG_CACHE_HOME."}
	}
	return filepath.Join(home, filepath.FromSlash(otherwise), "rideau"), nil
}
