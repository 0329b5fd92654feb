package catalog

import (
	"context"
	_ "embed"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// describeSQL has what there is to know about objects given by class and oid.
//
//go:embed describe.sql
var describeSQL string

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

// pin sets the pinned settings for the transaction; restore sets them back.
func pin(ctx context.Context, q Querier) (restore func() error, err error) {
	var names, values []string
	for _, p := range pinned {
		names, values = append(names, p[0]), append(values, p[1])
	}
	old, err := set(ctx, q, names, values)
	if err != nil {
		return nil, err
	}
	return func() error {
		pinnedNow, err := set(ctx, q, names, old)
		if err == nil && pinnedNow[0] != values[0] {
			err = errors.New("not in a transaction")
		}
		return err
	}, nil
}

// set sets settings for the transaction and returns what they were.
func set(ctx context.Context, q Querier, names, values []string) (old []string, err error) {
	rows, err := q.Query(ctx, `
WITH old AS MATERIALIZED (
	SELECT s.n, s.v, pg_catalog.current_setting(s.n) AS was
	FROM ROWS FROM (pg_catalog.unnest($1::pg_catalog.text[]), pg_catalog.unnest($2::pg_catalog.text[])) WITH ORDINALITY AS s(n, v, i)
	ORDER BY s.i)
SELECT was, pg_catalog.set_config(n, v, true) FROM old`, names, values)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, func(row pgx.CollectableRow) (was string, err error) {
		err = row.Scan(&was, nil)
		return was, err
	})
}

func describe(ctx context.Context, q Querier, objects []Object) (described []Object, err error) {
	if len(objects) == 0 {
		return nil, nil
	}
	classIDs, oids := addresses(objects)
	restore, err := pin(ctx, q)
	if err != nil {
		return nil, err
	}
	rows, err := q.Query(ctx, describeSQL, classIDs, oids)
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
	return described, restore()
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
