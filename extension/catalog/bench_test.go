package catalog_test

import (
	"context"
	"testing"

	"github.com/jackc/pgx/v5"

	"rideau/extension/catalog"
	"rideau/internal/pgtest"
)

// BenchmarkDifference captures a database of 5,000 tables with an index and a
// TOAST table each, 50,000 objects, and finds the one that was created.
func BenchmarkDifference(b *testing.B) {
	ctx := context.Background()
	s := pgtest.Start(b, pgtest.Options{Settings: map[string]string{"max_locks_per_transaction": "1000"}})
	s.Exec(`DO $$BEGIN FOR i IN 1..5000 LOOP EXECUTE format('CREATE TABLE t%s (a int PRIMARY KEY, b text, c text, d int, e timestamptz)', i); END LOOP; END$$`)
	s.Exec(`VACUUM ANALYZE`)
	conn, err := s.Connect(ctx)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close(ctx)
	var count int
	if err := conn.QueryRow(ctx, `SELECT (SELECT count(*) FROM pg_class) + (SELECT count(*) FROM pg_type) + (SELECT count(*) FROM pg_constraint) + (SELECT count(*) FROM pg_proc)`).Scan(&count); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	defer func() { b.ReportMetric(float64(count), "objects") }()
	for b.Loop() {
		tx, err := conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
		if err != nil {
			b.Fatal(err)
		}
		before, err := catalog.Capture(ctx, tx)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := tx.Exec(ctx, `CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'`); err != nil {
			b.Fatal(err)
		}
		d, err := before.Difference(ctx, tx)
		if err != nil {
			b.Fatal(err)
		}
		if len(d.Created) != 1 || len(d.Changed) != 0 {
			b.Fatalf("%+v", d)
		}
		if err := tx.Rollback(ctx); err != nil {
			b.Fatal(err)
		}
	}
}
