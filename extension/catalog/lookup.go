package catalog

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// typeClass is the class that has objects of a type.
var typeClass = map[string]uint32{
	"table": 1259, "index": 1259, "sequence": 1259, "toast table": 1259, "view": 1259,
	"materialized view": 1259, "composite type": 1259, "foreign table": 1259,
	"function": 1255, "procedure": 1255, "aggregate": 1255, "type": 1247, "cast": 2605,
	"collation": 3456, "table constraint": 2606, "domain constraint": 2606, "conversion": 2607,
	"default value": 2604, "language": 2612, "large object": 2613, "operator": 2617,
	"operator class": 2616, "operator family": 2753, "access method": 2601,
	"operator of access method": 2602, "function of access method": 2603, "rule": 2618,
	"trigger": 2620, "schema": 2615, "statistics object": 3381, "text search parser": 3601,
	"text search dictionary": 3600, "text search template": 3764, "text search configuration": 3602,
	"foreign-data wrapper": 2328, "server": 1417, "user mapping": 1418, "default acl": 826,
	"extension": classExtension, "event trigger": 3466, "policy": 3256, "publication": 6104,
	"publication relation": 6106, "publication namespace": 6237, "transform": 3576,
	"role": 1260, "database": 1262, "tablespace": 1213, "subscription": 6100,
}

// Lookup finds today's objects by Type, Names and Args. The result has one
// element for each of wanted, in the same order; those that do not exist any
// more have ClassID and OID 0 and are else as they came. A type that is not
// known is an error.
func Lookup(ctx context.Context, q Querier, wanted []Object) ([]Object, error) {
	found, err := withPinned(ctx, q, func() ([]Object, error) { return lookup(ctx, q, wanted) })
	if err != nil {
		return nil, fmt.Errorf("could not look up objects in the database: %w", err)
	}
	return found, nil
}

func lookup(ctx context.Context, q Querier, wanted []Object) ([]Object, error) {
	if len(wanted) == 0 {
		return nil, nil
	}
	version, err := major(ctx, q)
	if err != nil {
		return nil, err
	}
	// pg_get_object_address makes an error of the first that is missing. So those
	// with the right name, whatever their schema, are asked who they are.
	names := map[uint32][]string{}
	for _, o := range wanted {
		classID, ok := typeClass[o.Type]
		if !ok {
			return nil, fmt.Errorf("objects of type %q are not known", o.Type)
		}
		names[classID] = append(names[classID], lastName(o))
	}
	var candidates []Object
	for _, c := range classes { // not over names: in the same order always
		if len(names[c.id]) == 0 || c.since > version {
			continue
		}
		sql := fmt.Sprintf(`SELECT x.%s FROM pg_catalog.%s x`, c.oidColumn(), c.table)
		args := []any{}
		if c.name != "" && !slices.Contains(names[c.id], "") {
			sql += fmt.Sprintf(` WHERE (%s)::text = ANY ($1::text[])`, c.name)
			args = append(args, names[c.id])
		}
		rows, err := q.Query(ctx, sql, args...)
		if err != nil {
			return nil, err
		}
		oids, err := pgx.CollectRows(rows, pgx.RowTo[uint32])
		if err != nil {
			return nil, err
		}
		for _, oid := range oids {
			candidates = append(candidates, Object{ClassID: c.id, OID: oid})
		}
	}
	if candidates, err = identify(ctx, q, candidates); err != nil {
		return nil, err
	}
	byKey := map[string][]Object{}
	for _, o := range candidates {
		byKey[key(o)] = append(byKey[key(o)], o)
	}
	var found []Object
	result := slices.Clone(wanted)
	var at []int
	for i, w := range wanted {
		result[i].ClassID, result[i].OID = 0, 0
		same := byKey[key(w)]
		if len(same) > 1 { // a prefix and a postfix operator, on 13
			same = slices.DeleteFunc(slices.Clone(same), func(o Object) bool { return o.Identity != w.Identity })
		}
		if len(same) > 0 {
			found, at = append(found, same[0]), append(at, i)
		}
	}
	if found, err = describe(ctx, q, found); err != nil {
		return nil, err
	}
	for i, o := range found {
		result[at[i]] = o
	}
	return result, nil
}

// identify is describe without the definition.
func identify(ctx context.Context, q Querier, objects []Object) ([]Object, error) {
	if len(objects) == 0 {
		return nil, nil
	}
	classIDs, oids := addresses(objects)
	rows, err := q.Query(ctx, `
SELECT a.classid, a.objid, i.type, coalesce(p.object_names, '{}'), coalesce(p.object_args, '{}'), i.identity
FROM unnest($1::oid[], $2::oid[]) AS a(classid, objid),
	LATERAL pg_identify_object(a.classid, a.objid, 0) i,
	LATERAL pg_identify_object_as_address(a.classid, a.objid, 0) p
WHERE i.identity IS NOT NULL`, classIDs, oids)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (o Object, err error) {
		err = row.Scan(&o.ClassID, &o.OID, &o.Type, &o.Names, &o.Args, &o.Identity)
		return o, err
	})
}

// key is equal for equal identities only.
func key(o Object) string {
	var b strings.Builder
	b.WriteString(o.Type)
	for _, list := range [][]string{o.Names, o.Args} {
		b.WriteString(strconv.Itoa(len(list)))
		for _, s := range list {
			b.WriteString(strconv.Quote(s))
		}
	}
	return b.String()
}

// lastName is the part of an identity that class.name selects. Empty means that
// it is not in the identity as it is, and all of the class are candidates.
func lastName(o Object) string {
	last := func(list []string) string {
		if len(list) == 0 {
			return ""
		}
		return list[len(list)-1]
	}
	switch o.Type {
	case "type":
		return typeName(last(o.Names))
	case "domain constraint":
		return last(o.Args)
	}
	return last(o.Names)
}

// typeName is the name of a type that is written as schema.name, each quoted
// where it must be; "" for what looks different, an array type say.
func typeName(text string) string {
	var parts []string
	for {
		var part string
		if strings.HasPrefix(text, `"`) {
			end := 1
			for {
				i := strings.IndexByte(text[end:], '"')
				if i < 0 {
					return ""
				}
				end += i + 1
				if !strings.HasPrefix(text[end:], `"`) {
					break
				}
				end++
			}
			part, text = strings.ReplaceAll(text[1:end-1], `""`, `"`), text[end:]
		} else {
			end := strings.IndexAny(text, `."[( `)
			if end < 0 {
				end = len(text)
			}
			part, text = text[:end], text[end:]
		}
		parts = append(parts, part)
		if text == "" {
			break
		}
		if text[0] != '.' {
			return ""
		}
		text = text[1:]
	}
	if len(parts) != 2 {
		return ""
	}
	return parts[1]
}
