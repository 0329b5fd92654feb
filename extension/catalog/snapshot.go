package catalog

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
)

// A Snapshot is what there was at Capture. It is good until the end of the
// transaction.
type Snapshot struct {
	major int
	seed  int64

	// oids of all objects, by class number, sorted.
	oids [][]uint32

	// relations are the oid and hash of tables and views, see relationsSQL,
	// sorted.
	relations []uint64

	// written are rows that looked already at Capture as if we had written them.
	written map[rowID]struct{}
}

// A rowID is one version of one row of a catalogue.
type rowID struct {
	catalogue int32 // class number, or len(classes) + number of aux
	block     uint32
	offset    uint16
	xmin      uint32
}

// Capture remembers which objects there are. It gives the transaction an id, so
// it cannot run on a standby. All of the session's work until Difference counts.
func Capture(ctx context.Context, q Querier) (*Snapshot, error) {
	s, err := withPinned(ctx, q, func() (*Snapshot, error) { return capture(ctx, q) })
	if err != nil {
		return nil, fmt.Errorf("could not capture which objects the database has: %w", err)
	}
	return s, nil
}

func capture(ctx context.Context, q Querier) (_ *Snapshot, err error) {
	// The id must be there before age() is first asked: within a transaction it
	// keeps counting from where it began.
	var isolation string
	if err := q.QueryRow(ctx, `SELECT current_setting('transaction_isolation'), pg_current_xact_id()::text`).Scan(&isolation, nil); err != nil {
		return nil, err
	}
	if isolation != "repeatable read" && isolation != "serializable" {
		return nil, fmt.Errorf("transaction isolation level is %s, and has to be repeatable read: what others commit would look like our own work", isolation)
	}
	s := &Snapshot{seed: rand.Int64(), oids: make([][]uint32, len(classes)), written: map[rowID]struct{}{}}
	if s.major, err = major(ctx, q); err != nil {
		return nil, err
	}

	err = eachOID(ctx, q, s.major, func(class int, oid uint32) {
		s.oids[class] = append(s.oids[class], oid)
	})
	if err != nil {
		return nil, err
	}
	for i, oids := range s.oids {
		slices.Sort(oids)
		s.oids[i] = slices.Clip(oids)
	}

	var oid, hash uint32
	rows, err := q.Query(ctx, relationsSQL, s.seed)
	if err != nil {
		return nil, err
	}
	if _, err := pgx.ForEachRow(rows, []any{&oid, &hash}, func() error {
		s.relations = append(s.relations, uint64(oid)<<32|uint64(hash))
		return nil
	}); err != nil {
		return nil, err
	}
	slices.Sort(s.relations)

	if err := eachWritten(ctx, q, s.major, func(row rowID, _, _ uint32, _ string) {
		s.written[row] = struct{}{}
	}); err != nil {
		return nil, err
	}
	return s, nil
}

func eachOID(ctx context.Context, q Querier, major int, f func(class int, oid uint32)) error {
	rows, err := q.Query(ctx, oidsSQL(major))
	if err != nil {
		return err
	}
	var class int
	var oid uint32
	_, err = pgx.ForEachRow(rows, []any{&class, &oid}, func() error {
		f(class, oid)
		return nil
	})
	return err
}

func eachWritten(ctx context.Context, q Querier, major int, f func(row rowID, classID, oid uint32, part string)) error {
	rows, err := q.Query(ctx, writtenSQL(major))
	if err != nil {
		return err
	}
	var row rowID
	var tid pgtype.TID
	var classID, oid uint32
	var part string
	_, err = pgx.ForEachRow(rows, []any{&row.catalogue, &tid, &row.xmin, &classID, &oid, &part}, func() error {
		row.block, row.offset = tid.BlockNumber, tid.OffsetNumber
		f(row, classID, oid, part)
		return nil
	})
	return err
}

func (s *Snapshot) has(class int, oid uint32) bool {
	_, ok := slices.BinarySearch(s.oids[class], oid)
	return ok
}

// address is where an object is in this database.
type address struct{ classID, oid uint32 }

func compareAddress(a, b address) int {
	return cmp.Or(cmp.Compare(a.classID, b.classID), cmp.Compare(a.oid, b.oid))
}

// Difference says what the transaction did since Capture. It may be asked more
// than once.
func (s *Snapshot) Difference(ctx context.Context, q Querier) (*Difference, error) {
	d, err := withPinned(ctx, q, func() (*Difference, error) { return s.difference(ctx, q) })
	if err != nil {
		return nil, fmt.Errorf("could not find out what changed in the database: %w", err)
	}
	return d, nil
}

func (s *Snapshot) difference(ctx context.Context, q Querier) (_ *Difference, err error) {

	// Created and dropped: the oids tell.
	var created []address
	still := make([][]bool, len(classes))
	for i, oids := range s.oids {
		still[i] = make([]bool, len(oids))
	}
	if err := eachOID(ctx, q, s.major, func(class int, oid uint32) {
		if i, ok := slices.BinarySearch(s.oids[class], oid); ok {
			still[class][i] = true
		} else {
			created = append(created, address{classes[class].id, oid})
		}
	}); err != nil {
		return nil, err
	}
	d := &Difference{}
	for class, there := range still {
		for i, ok := range there {
			if !ok {
				d.Dropped = append(d.Dropped, Object{ClassID: classes[class].id, OID: s.oids[class][i], Type: classes[class].table})
			}
		}
	}
	slices.SortFunc(d.Dropped, compareObjects)

	// Changed: what was there and has rows of ours.
	parts := map[address]map[string]bool{}
	if err := eachWritten(ctx, q, s.major, func(row rowID, classID, oid uint32, part string) {
		class, ok := classNumber[classID]
		if _, before := s.written[row]; before || !ok || !s.has(class, oid) {
			return
		}
		a := address{classID, oid}
		if parts[a] == nil {
			parts[a] = map[string]bool{}
		}
		if part == "" {
			part = partDefinition
		}
		parts[a][part] = true
	}); err != nil {
		return nil, err
	}
	if err := s.findFlags(ctx, q, parts); err != nil {
		return nil, err
	}

	if created, err = standing(ctx, q, created); err != nil {
		return nil, err
	}
	objects := make([]Object, len(created))
	for i, a := range created {
		objects[i] = Object{ClassID: a.classID, OID: a.oid}
	}
	if objects, err = describe(ctx, q, objects); err != nil {
		return nil, err
	}
	for _, o := range objects {
		switch {
		case classes[classNumber[o.ClassID]].shared:
			d.Shared = append(d.Shared, Change{Object: o, Parts: []string{partCreated}})
		case o.temporary():
			d.Temporary = append(d.Temporary, o)
		default:
			d.Created = append(d.Created, o)
		}
	}

	objects = objects[:0]
	for a := range parts {
		objects = append(objects, Object{ClassID: a.classID, OID: a.oid})
	}
	slices.SortFunc(objects, compareObjects)
	if objects, err = describe(ctx, q, objects); err != nil {
		return nil, err
	}
	for _, o := range objects {
		c := Change{Object: o}
		for part := range parts[address{o.ClassID, o.OID}] {
			c.Parts = append(c.Parts, part)
		}
		slices.Sort(c.Parts)
		switch {
		case classes[classNumber[o.ClassID]].shared:
			d.Shared = append(d.Shared, c)
		case !o.temporary():
			d.Changed = append(d.Changed, c)
		}
	}
	return d, nil
}

// findFlags finds the tables and views of which only flags have changed.
func (s *Snapshot) findFlags(ctx context.Context, q Querier, parts map[address]map[string]bool) error {
	var oids []uint32
	for a, p := range parts {
		if a.classID == classRelation && p[partDefinition] {
			oids = append(oids, a.oid)
		}
	}
	if len(oids) == 0 {
		return nil
	}
	rows, err := q.Query(ctx, relationsSQL+` AND x.oid = ANY ($2::oid[])`, s.seed, oids)
	if err != nil {
		return err
	}
	var oid, hash uint32
	_, err = pgx.ForEachRow(rows, []any{&oid, &hash}, func() error {
		if _, same := slices.BinarySearch(s.relations, uint64(oid)<<32|uint64(hash)); same {
			p := parts[address{classRelation, oid}]
			delete(p, partDefinition)
			p[partFlags] = true
		}
		return nil
	})
	return err
}

func compareObjects(a, b Object) int {
	return compareAddress(address{a.ClassID, a.OID}, address{b.ClassID, b.OID})
}

// standing leaves out the created objects that go when another object goes, and
// sorts the others.
//
// Internal dependencies and those of partitions are left out always: if the
// other object was there before, then it has been changed and nothing but
// changing it back removes this one. An automatic dependency counts if the other
// was created too; else, with an index on a table that was there, it is up to
// us. Members of an extension are never left out.
func standing(ctx context.Context, q Querier, created []address) ([]address, error) {
	slices.SortFunc(created, compareAddress)
	is := make(map[address]bool, len(created)) // true: is left out
	var classIDs, oids []uint32
	for _, a := range created {
		is[a] = false
		classIDs, oids = append(classIDs, a.classID), append(oids, a.oid)
	}
	members := map[address]bool{}
	rows, err := q.Query(ctx, `
SELECT d.classid, d.objid, d.refclassid, d.refobjid, d.deptype::text
FROM unnest($1::oid[], $2::oid[]) AS c(classid, objid)
	JOIN pg_depend d ON d.classid = c.classid AND d.objid = c.objid AND d.objsubid = 0
WHERE d.deptype IN ('i', 'a', 'P', 'S', 'e') AND (d.classid, d.objid) <> (d.refclassid, d.refobjid)`, classIDs, oids)
	if err != nil {
		return nil, err
	}
	var a, ref address
	var kind string
	if _, err := pgx.ForEachRow(rows, []any{&a.classID, &a.oid, &ref.classID, &ref.oid, &kind}, func() error {
		switch _, refCreated := is[ref]; {
		case kind == "e":
			members[a] = true
		case kind != "a" || refCreated:
			is[a] = true
		}
		return nil
	}); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(created, func(a address) bool { return is[a] && !members[a] }), nil
}

const partCreated = "created"

// temporary is whether the object ends with the session.
func (o Object) temporary() bool {
	if len(o.Names) == 0 {
		return false
	}
	return tempName(o.Names[0])
}

// tempName is whether a schema, or a name that begins with one, is of temporary
// objects. No other schema can be named so.
func tempName(name string) bool {
	return strings.HasPrefix(name, "pg_temp") || strings.HasPrefix(name, "pg_toast_temp")
}
