package catalog

import (
	"context"
	"fmt"
)

// Parts returns the objects and all that belongs to them: indexes, triggers and
// constraints of tables, array types, TOAST tables, partitions, sequences that
// columns own. A script that alters or drops one of its own objects writes these
// too. Of those that were not given only ClassID and OID are filled in.
func Parts(ctx context.Context, q Querier, objects []Object) ([]Object, error) {
	parts, err := withPinned(ctx, q, func() ([]Object, error) {
		all := append([]Object(nil), objects...)
		seen := map[address]bool{}
		var frontier []address
		for _, o := range objects {
			seen[address{o.ClassID, o.OID}] = true
			frontier = append(frontier, address{o.ClassID, o.OID})
		}
		for len(frontier) > 0 {
			found, err := dependents(ctx, q, frontier)
			if err != nil {
				return nil, err
			}
			frontier = frontier[:0]
			for _, d := range found {
				if d.owned() && d.kind != "e" && !seen[d.from] {
					seen[d.from] = true
					frontier = append(frontier, d.from)
					all = append(all, Object{ClassID: d.from.classID, OID: d.from.oid})
				}
			}
		}
		return all, nil
	})
	if err != nil {
		return nil, fmt.Errorf("could not list what belongs to objects: %w", err)
	}
	return parts, nil
}
