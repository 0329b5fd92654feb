package catalog

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
)

// DropOrder returns the objects in an order in which each can be dropped with
// RESTRICT, dependents first. They must be in the database, see Lookup. Left out
// are those that go with another of them.
//
// Objects that need each other, a type and its input function, only go together:
// the one that takes the others with it has Cascade set, but only if nothing
// outside of objects would go too. Else RESTRICT remains and the server will
// refuse. Others' work is seen as far as the transaction's isolation allows, so
// READ COMMITTED is better here.
func DropOrder(ctx context.Context, q Querier, objects []Object) ([]Object, error) {
	order, err := withPinned(ctx, q, func() ([]Object, error) { return dropOrder(ctx, q, objects) })
	if err != nil {
		return nil, fmt.Errorf("could not find the order in which objects can be dropped: %w", err)
	}
	return order, nil
}

func dropOrder(ctx context.Context, q Querier, objects []Object) ([]Object, error) {
	byAddress := map[address]Object{}
	var roots []address
	for _, o := range objects {
		a := address{o.ClassID, o.OID}
		if o.OID == 0 {
			return nil, fmt.Errorf("%s is not in the database", o)
		}
		if _, twice := byAddress[a]; !twice {
			byAddress[a] = o
			roots = append(roots, a)
		}
	}

	// Down from the objects through what belongs to them, until nothing new turns up.
	var deps []dependency
	seen := map[address]bool{}
	for _, a := range roots {
		seen[a] = true
	}
	for frontier := slices.Clone(roots); len(frontier) > 0; {
		found, err := dependents(ctx, q, frontier)
		if err != nil {
			return nil, err
		}
		deps = append(deps, found...)
		frontier = frontier[:0]
		for _, d := range found {
			if d.owned() && !seen[d.from] {
				seen[d.from] = true
				frontier = append(frontier, d.from)
			}
		}
	}
	var order []Object
	for _, s := range planDrops(roots, deps) {
		o := byAddress[s.object]
		o.Cascade = s.cascade
		order = append(order, o)
	}
	return order, nil
}

// A dependency is a row of pg_depend: from depends on to.
type dependency struct {
	from, to address
	column   bool // it is only a column of from that depends
	kind     string
}

// owned is whether from goes with to, without CASCADE.
func (d dependency) owned() bool { return d.kind != "n" && d.kind != "x" && !d.column }

func dependents(ctx context.Context, q Querier, on []address) ([]dependency, error) {
	var classIDs, oids []uint32
	for _, a := range on {
		classIDs, oids = append(classIDs, a.classID), append(oids, a.oid)
	}
	rows, err := q.Query(ctx, `
SELECT d.classid, d.objid, d.objsubid <> 0, d.refclassid, d.refobjid, d.deptype::text
FROM unnest($1::oid[], $2::oid[]) AS r(classid, objid)
	JOIN pg_depend d ON d.refclassid = r.classid AND d.refobjid = r.objid
WHERE (d.classid, d.objid) <> (d.refclassid, d.refobjid)
ORDER BY 1, 2, 4, 5`, classIDs, oids)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (d dependency, err error) {
		err = row.Scan(&d.from.classID, &d.from.oid, &d.column, &d.to.classID, &d.to.oid, &d.kind)
		return d, err
	})
}

// A drop is one step of a plan.
type drop struct {
	object  address
	cascade bool
}

// planDrops orders the drops of roots. deps are the dependencies on the roots
// and on all that belongs to them.
func planDrops(roots []address, deps []dependency) []drop {
	p := &dropPlan{isRoot: map[address]bool{}, owner: map[address]address{}, on: map[address][]dependency{}, gone: map[address]bool{}}
	for _, a := range roots {
		p.isRoot[a] = true
	}
	for _, d := range deps {
		p.on[d.to] = append(p.on[d.to], d)
	}
	// What belongs to a root has that root for its owner; a root that belongs to
	// another is none any more.
	for _, d := range deps {
		if _, has := p.owner[d.from]; d.owned() && !has && p.root(d.to) != d.from {
			p.owner[d.from] = d.to
		}
	}
	left := slices.DeleteFunc(slices.Clone(roots), func(a address) bool { return p.root(a) != a })
	slices.SortFunc(left, func(a, b address) int { return compareAddress(address{0, b.oid}, address{0, a.oid}) }) // newest first

	var plan []drop
	for len(left) > 0 {
		needed := map[address]bool{} // by one of those left
		for _, d := range deps {
			from, to := p.root(d.from), p.root(d.to)
			if from != to && p.isRoot[from] && !p.gone[from] && !p.gone[d.from] {
				needed[to] = true
			}
		}
		var next []drop
		for _, a := range left {
			if !needed[a] {
				next = append(next, drop{object: a})
				p.gone[a] = true
			}
		}
		if len(next) == 0 {
			next = p.cycle(left)
		}
		plan = append(plan, next...)
		left = slices.DeleteFunc(left, func(a address) bool { return p.gone[a] })
	}
	return plan
}

type dropPlan struct {
	isRoot map[address]bool
	owner  map[address]address
	on     map[address][]dependency
	gone   map[address]bool
}

// root is the root that a belongs to, itself if it belongs to none.
func (p *dropPlan) root(a address) address {
	for {
		o, ok := p.owner[a]
		if !ok {
			return a
		}
		a = o
	}
}

// cycle finds what to drop when all that are left are needed by others: the
// object whose CASCADE takes the least, and nothing that is not ours. If there
// is none, RESTRICT remains, for the server to say why that cannot be.
func (p *dropPlan) cycle(left []address) []drop {
	var least map[address]bool
	var object address
	for _, a := range left {
		if takes, foreign := p.cascade(a); !foreign && (least == nil || len(takes) < len(least)) {
			least, object = takes, a
		}
	}
	if least == nil {
		var plan []drop
		for _, a := range left {
			p.gone[a] = true
			plan = append(plan, drop{object: a})
		}
		return plan
	}
	for a := range least {
		p.gone[a] = true
	}
	return []drop{{object: object, cascade: true}}
}

// cascade is what DROP CASCADE of a takes with it, and whether any of that is
// not ours.
func (p *dropPlan) cascade(a address) (takes map[address]bool, foreign bool) {
	takes = map[address]bool{a: true}
	for todo := []address{a}; len(todo) > 0; {
		to := todo[0]
		todo = todo[1:]
		for _, d := range p.on[to] {
			if p.gone[d.from] || takes[d.from] {
				continue
			}
			if !p.isRoot[p.root(d.from)] {
				return takes, true
			}
			if d.column { // the column goes, its table stays
				continue
			}
			takes[d.from] = true
			todo = append(todo, d.from)
			// What is internal to another object takes that with it: a view's rule.
			if o, ok := p.owner[d.from]; ok && p.internal(d.from, o) && !takes[o] {
				takes[o] = true
				todo = append(todo, o)
			}
		}
	}
	return takes, false
}

func (p *dropPlan) internal(a, owner address) bool {
	return slices.ContainsFunc(p.on[owner], func(d dependency) bool { return d.from == a && d.kind == "i" })
}
