package relay

import (
	"errors"
	"fmt"
	"testing"

	"rideau/pgrepl"
)

// Clients cannot fill the disk with slots, or memory.
func TestSlotLimit(t *testing.T) {
	ss := newSlots(t.TempDir())
	by := &standby{}
	for i := range maxSlots {
		if err := ss.create(fmt.Sprintf("s%d", i), true, 0, by); err != nil {
			t.Fatal(err)
		}
	}
	err := ss.create("one_more", true, 0, by)
	var refused *pgrepl.Error
	if !errors.As(err, &refused) || refused.Code != "53400" {
		t.Fatalf("one slot more than there may be: %v", err)
	}
	if _, err := ss.drop("s7", by, false); err != nil {
		t.Fatal(err)
	}
	if err := ss.create("one_more", true, 0, by); err != nil {
		t.Error(err)
	}
}
