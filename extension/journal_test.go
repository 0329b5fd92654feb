package extension

import (
	"errors"
	"path"
	"testing"

	"rideau/internal/pgtest"
)

// What is new goes before what it replaced comes back: here the one is where the
// other's folder was, as on a full disk the one has the other's room.
func TestUndoOrder(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 18})
	s := connected(t, Config{}, server.Conninfo(""))
	n := s.primary
	fresh := path.Join(n.store(false), "lib/a")
	if err := n.write(t.Context(), fresh, []byte("new")); err != nil {
		t.Fatal(err)
	}
	why := errors.New("why")
	j := &journal{files: []broughtFile{{n: n, path: fresh}, {n: n, path: fresh + "/b", had: true, was: []byte("old")}}}
	if err := j.undo(t.Context(), why); err != why {
		t.Errorf("error %v, want none but the cause", err)
	}
	if got, err := n.readFile(t.Context(), fresh+"/b"); err != nil || string(got) != "old" {
		t.Errorf("read %q, %v", got, err)
	}
}
