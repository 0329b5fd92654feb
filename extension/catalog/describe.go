package catalog

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// describeSQL has what there is to know about objects given by class and oid.
//
//go:embed describe.sql
var describeSQL string

// alikeSQL is describeSQL with one name for the schemas $3 and $4 in definitions.
var alikeSQL = strings.NewReplacer(
	"md5(CASE", "md5(replace(replace(replace(replace(CASE",
	"END)\nFROM unnest", `END, quote_ident($3), E'\x01'), $3, E'\x01'), quote_ident($4), E'\x01'), $4, E'\x01'))`+"\nFROM unnest",
).Replace(describeSQL)

// pinned are the settings that decide how the server writes definitions.
var pinned = [][2]string{
	{"search_path", "pg_catalog, pg_temp"},
	{"quote_all_identifiers", "off"},
	{"DateStyle", "ISO, YMD"},
	{"IntervalStyle", "postgres"},
	{"TimeZone", "UTC"},
	{"extra_float_digits", "1"},
	{"bytea_output", "hex"},
	{"xmlbinary", "base64"},
}

// withPinned calls f with the pinned settings set, for the transaction, or for
// the session if there is none. They are as before when it returns; after an
// error in a transaction, when that is rolled back.
func withPinned[T any](ctx context.Context, q Querier, f func() (T, error)) (result T, err error) {
	var names, values []string
	for _, p := range pinned {
		names, values = append(names, p[0]), append(values, p[1])
	}
	old, err := set(ctx, q, names, values, true)
	if err != nil {
		return result, err
	}
	var are bool // else it was for the transaction of that one statement
	if err := q.QueryRow(ctx, `
SELECT pg_catalog.bool_and(pg_catalog.texteq(pg_catalog.current_setting(s.n), s.v))
FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) AS s(n, v)`, names, values).Scan(&are); err != nil {
		return result, err
	}
	if !are {
		if _, err := set(ctx, q, names, values, false); err != nil {
			return result, err
		}
		defer func() {
			_, e := set(context.WithoutCancel(ctx), q, names, old, false)
			err = errors.Join(err, e)
		}()
		return f()
	}
	if result, err = f(); err != nil {
		return result, err
	}
	_, err = set(ctx, q, names, old, true)
	return result, err
}

// set sets settings for the transaction or the session, and returns what they were.
func set(ctx context.Context, q Querier, names, values []string, local bool) (old []string, err error) {
	rows, err := q.Query(ctx, `
WITH old AS MATERIALIZED (
	SELECT s.n, s.v, pg_catalog.current_setting(s.n) AS was
	FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) WITH ORDINALITY AS s(n, v, i)
	ORDER BY s.i)
SELECT was, pg_catalog.set_config(n, v, $3) FROM old`, names, values, local)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (was string, err error) {
		err = row.Scan(&was, nil)
		return was, err
	})
}

func describe(ctx context.Context, q Querier, objects []Object) ([]Object, error) {
	return describeBy(ctx, q, describeSQL, objects)
}

func describeBy(ctx context.Context, q Querier, query string, objects []Object, more ...any) (described []Object, err error) {
	if len(objects) == 0 {
		return nil, nil
	}
	classIDs, oids := addresses(objects)
	rows, err := q.Query(ctx, query, append([]any{classIDs, oids}, more...)...)
	if err != nil {
		return nil, err
	}
	described = append(described, objects...)
	var i int
	var o Object
	var owner, extension, md5 *string
	_, err = pgx.ForEachRow(rows, []any{&i, &o.Type, &o.Names, &o.Args, &o.Identity, &owner, &extension, &o.Grantees, &md5}, func() error {
		d := &described[i-1]
		d.Type, d.Names, d.Args, d.Identity = o.Type, o.Names, o.Args, o.Identity
		d.Owner, d.Extension, d.MD5 = text(owner), text(extension), text(md5)
		d.Grantees = o.Grantees
		o.Names, o.Args, o.Grantees = nil, nil, nil
		return nil
	})
	if err != nil {
		return nil, err
	}
	return described, nil
}

func text(s *string) string {
	if s == nil {
		return ""
	}
	return *s
}

func addresses(objects []Object) (classIDs, oids []uint32) {
	for _, o := range objects {
		classIDs, oids = append(classIDs, o.ClassID), append(oids, o.OID)
	}
	return classIDs, oids
}

// major is the server's major version.
func major(ctx context.Context, q Querier) (int, error) {
	var num int
	err := q.QueryRow(ctx, `SELECT pg_catalog.current_setting('server_version_num')::pg_catalog.int4`).Scan(&num)
	if err != nil {
		return 0, fmt.Errorf("could not ask for the server's version: %w", err)
	}
	return num / 10000, nil
}
