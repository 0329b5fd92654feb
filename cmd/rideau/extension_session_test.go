package main

import (
	"strings"
	"testing"

	"rideau/extension"
)

// What a node that is down means depends on what is wanted.
func TestUnreached(t *testing.T) {
	t.Parallel()
	s := &extensionSession{absent: []string{"db2:5432"}}
	wish := []extension.Wish{{Name: "foo"}}
	const stay, none = "the same command removes them", "no file is brought there"
	for _, c := range []struct {
		what string
		req  extension.Request
		want []string
	}{
		{"an installation", extension.Request{Install: wish}, []string{none}},
		{"an uninstallation", extension.Request{Uninstall: []string{"foo"}}, []string{stay}},
		{"both", extension.Request{Upgrade: wish, Uninstall: []string{"bar"}}, []string{stay, none}},
	} {
		got := s.unreached(c.req)
		if len(got) != len(c.want) {
			t.Errorf("%s: %q", c.what, got)
			continue
		}
		for i, want := range c.want {
			if !strings.Contains(got[i], "db2:5432") || !strings.Contains(got[i], want) {
				t.Errorf("%s: %q, want %q", c.what, got[i], want)
			}
		}
	}
}
