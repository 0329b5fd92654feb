package registry_test

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing/fstest"

	"aead.dev/minisign"

	"rideau/extension/pack"
	"rideau/extension/registry"
)

// A registry is made, a package published, and fetched by somebody who trusts the
// key of its root.
func Example() {
	if err := example(); err != nil {
		slog.Error(err.Error())
	}
	// Output:
	// foo 1.0: keeps foos
	// needs bar (>= 1.1), baz
}

func example() error {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "registry-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tree := filepath.Join(dir, "registry")

	// One key for all roles will do for a start. [registry.GenerateKey] makes one
	// that is encrypted with a password.
	pub, key, err := minisign.GenerateKey(nil)
	if err != nil {
		return err
	}
	err = registry.Init(ctx, tree, registry.Policy{
		Name:       "acme",
		Root:       registry.Role{Keys: []registry.PublicKey{pub}},
		Index:      registry.Role{Keys: []registry.PublicKey{pub}},
		Publishers: []registry.Delegation{{Keys: []registry.PublicKey{pub}, Names: []string{"*"}}},
	}, registry.Options{}, key)
	if err != nil {
		return err
	}

	// The user, or the publisher, says which key to trust; nothing else does.
	trust, err := registry.OpenTrust(filepath.Join(dir, "trust"))
	if err != nil {
		return err
	}
	if err := trust.Add("acme", pub); err != nil {
		return err
	}
	options := registry.Options{State: filepath.Join(dir, "state"), Cache: filepath.Join(dir, "cache")}

	foo, err := pack.Read(fstest.MapFS{
		"control":     {Data: []byte("name = foo\nversion = 1.0\ncomment = 'keeps foos'\ndepends = bar (>= 1.1), baz\n")},
		"install.sql": {Data: []byte("CREATE TABLE foo (id bigint PRIMARY KEY);\n")},
	})
	if err != nil {
		return err
	}
	w, err := registry.OpenWriter(ctx, tree, trust, options)
	if err != nil {
		return err
	}
	defer w.Close()
	if _, err := w.PublishPackage(ctx, foo, key); err != nil {
		return err
	}

	r, err := registry.Open(ctx, tree, trust, options)
	if err != nil {
		return err
	}
	defer r.Close()
	for _, found := range r.Search("foos") {
		fmt.Printf("%s %s: %s\n", found.Name, found.Latest, found.Comment)
	}
	p, err := r.Fetch(ctx, "foo", "1.0")
	if err != nil {
		return err
	}
	fmt.Println("needs", p.Control.Depends)
	return nil
}
