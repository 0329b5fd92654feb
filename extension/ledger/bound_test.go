package ledger

import (
	"testing"

	"pgregory.net/rapid"

	"rideau/extension/depend"
)

// The two bounds that SQL is given for "~>" allow what "~>" allows.
func TestPessimisticBound(t *testing.T) {
	t.Parallel()
	version := rapid.StringMatching(`([0-9]:)?[0-9]{1,3}(\.[0-9]{1,2}){0,3}(-?(rc|beta|a)[0-9])?`)
	rapid.Check(t, func(t *rapid.T) {
		v, w := version.Draw(t, "v"), version.Draw(t, "w")
		want := depend.Constraint{Op: depend.Pessimistic, Version: v}.Allows(w, nil)
		if got := depend.Compare(w, v) >= 0 && depend.Compare(w, pessimisticBound(v)) < 0; got != want {
			t.Errorf("~> %s, %s: %v, want %v (below %s)", v, w, got, want, pessimisticBound(v))
		}
	})
}
