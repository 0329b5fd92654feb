package catalog_test

import (
	"context"
	"slices"
	"testing"

	"rideau/extension/catalog"
	"rideau/internal/pgtest"
)

// What an alteration and a drop of one's own objects write belongs to them, or is
// one of them.
func TestParts(t *testing.T) {
	t.Parallel()
	someMajors(t, func(t *testing.T, s *pgtest.Server) {
		ctx := context.Background()
		conn := connect(t, s, "", "")
		tx := begin(t, conn)
		before := capture(t, tx)
		exec(t, tx, `CREATE SCHEMA s; CREATE TABLE s.t (a serial PRIMARY KEY, b text DEFAULT 'x', c int GENERATED ALWAYS AS IDENTITY REFERENCES s.t);
CREATE TABLE s.p (k int PRIMARY KEY, v int) PARTITION BY LIST (k); CREATE TABLE s.p1 PARTITION OF s.p FOR VALUES IN (1);
CREATE VIEW s.v AS SELECT b FROM s.t; CREATE TYPE s.c AS (a int); CREATE TYPE s.r AS RANGE (SUBTYPE = float8);
CREATE DOMAIN s.d AS int CHECK (VALUE > 0)`)
		own := difference(t, tx, before).Created
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		tx = begin(t, conn)
		parts, err := catalog.Parts(ctx, tx, own)
		if err != nil {
			t.Fatal(err)
		}
		is := func(o catalog.Object) bool {
			return slices.ContainsFunc(parts, func(p catalog.Object) bool { return p.ClassID == o.ClassID && p.OID == o.OID })
		}
		before = capture(t, tx)
		exec(t, tx, `ALTER TABLE s.t ALTER c TYPE bigint, ALTER a TYPE bigint; CREATE OR REPLACE VIEW s.v AS SELECT b, 1 AS one FROM s.t;
ALTER TABLE s.p ALTER v TYPE bigint; DROP TYPE s.r; DROP TYPE s.c; ALTER DOMAIN s.d DROP CONSTRAINT d_check; ALTER TABLE s.t RENAME TO u`)
		d := difference(t, tx, before)
		if len(d.Changed) == 0 || len(d.Dropped) == 0 {
			t.Errorf("changed %v, dropped %v", d.Changed, d.Dropped)
		}
		for _, c := range d.Changed {
			if !is(c.Object) {
				t.Errorf("changed: %s %v", c, c.Parts)
			}
		}
		for _, o := range d.Dropped {
			if !is(o) {
				t.Errorf("dropped: %s %d", o.Type, o.OID)
			}
		}
	})
}
