// Package catalog finds out what a script did to a database: which objects it
// created, changed and dropped. It names them so that they are found again after
// a dump and restore, and knows how to drop each.
//
//	BEGIN ISOLATION LEVEL REPEATABLE READ
//	  Capture ──▶ Snapshot: the oids of all objects
//	     │
//	  the script, CREATE EXTENSION, anything
//	     │
//	  Snapshot.Difference ──▶ Created, Changed, Dropped, Temporary, Shared
//	                             │
//	         type, names, args ◀─┘ kept by the caller, dumped, restored
//	                │
//	             Lookup ──▶ DropOrder ──▶ DropSQL: DROP … RESTRICT
//
// How a row is known to be ours: the transaction's snapshot hides what others
// commit, so a visible row that our transaction's id, or a newer one, has written
// was written by us, in a savepoint or not. Rows that look like that already at
// Capture (our own earlier ones; frozen rows more than two billion transactions
// old) are remembered one by one. What is remembered of the rest is only the oid,
// to tell created from changed and to see what is gone, and 4 bytes more of each
// table and view, see [Change].
//
// # Invariants
//
//   - A Snapshot needs a transaction that is REPEATABLE READ or SERIALIZABLE; it
//     is refused otherwise. The rest runs anywhere.
//   - Nothing is created on the server, no superuser is needed, and the caller's
//     settings are as before when a function returns without error. Names in
//     queries are qualified; no search_path can misdirect them.
//   - A Snapshot takes 4 bytes an object, 12 for tables and views.
//   - Objects are identified as pg_identify_object_as_address does. An oid means
//     nothing in another database.
//
// # What it cannot see
//
// An object that another transaction created after our snapshot, and that the
// script then replaced, looks created: no row of it from before is visible. Its
// Owner is still the one who created it, so a created object with somebody
// else's Owner must not be trusted. Rows of tables, large objects' data,
// sequences' positions and statistics are data, not objects.
package catalog

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// A Querier is a pgx.Tx or a *pgx.Conn.
type Querier interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// An Object is an object of a database. Type, Names and Args together identify
// it in any database, see pg_identify_object_as_address in the manual.
type Object struct {
	ClassID uint32 // the catalogue it is in; 0 if Lookup did not find the object
	OID     uint32 // valid in this database only; 0 if Lookup did not find the object

	Type  string   // "function", "table", "operator of access method", ...
	Names []string // schema and name for most types
	Args  []string // types of arguments, or what else the type needs

	Identity  string // for people: "s.f(integer)"
	Owner     string // "" for types of objects that have none: casts, triggers, ...
	Extension string // the extension it is a member of; "" for none

	// MD5 is of the object's definition, "" if it has none but its name. It does
	// not cover owner, privileges and comment. It holds across dump and restore,
	// but compare only within a major version: servers deparse differently.
	MD5 string

	// Grantees of a default acl, "" for PUBLIC: what DropSQL needs to know of it.
	Grantees []string

	// Cascade is set by DropOrder on objects that can only be dropped together
	// with others of the set, such as a type and its input function.
	Cascade bool
}

// String is the type and identity, as the server writes them in messages.
func (o Object) String() string {
	if o.Identity == "" {
		return o.Type + " " + strings.Join(o.Names, ".")
	}
	return o.Type + " " + o.Identity
}

// A Change is an object that was there before and is not as it was.
type Change struct {
	Object

	// Parts says where: "definition" for the object's own row, else what of it
	// has rows of its own: "column c", "comment", "enum label", ... What of the
	// row changed is not known, because the old one cannot be seen any more:
	// owner, privileges, name and schema are part of it.
	//
	// "flags" instead of "definition" is harmless: a table's or view's row was
	// written only because it now has, or no longer has, triggers, rules,
	// indexes or children. Those are objects, and reported for themselves.
	Parts []string
}

// Harmless is whether only flags changed.
func (c Change) Harmless() bool {
	return len(c.Parts) == 1 && c.Parts[0] == partFlags
}

const (
	partDefinition = "definition"
	partFlags      = "flags"
)

// A Difference is what happened since Capture, each list in order of class and oid.
type Difference struct {
	// Created has the objects that need a DROP of their own. Left out are those
	// that another object stands for: array types, indexes and triggers of
	// created tables, TOAST tables, partitions, what belongs to a view, and so
	// on. Members of an extension are all there.
	Created []Object

	// Changed objects were there at Capture: replaced, altered, renamed, moved,
	// commented, granted. Whether that was the script's to do is for the caller
	// to judge.
	Changed []Change

	// Dropped objects can only be named where they are still visible: they have
	// ClassID, OID, and the class's name as Type. Describe names them on a
	// connection that has not seen the transaction's work, another one.
	Dropped []Object

	// Temporary objects were created and end with the session.
	Temporary []Object

	// Shared has what is common to all databases and was created or changed:
	// roles, databases, tablespaces, settings of roles and databases,
	// subscriptions. No extension can own them.
	Shared []Change
}

// DescribeSQL is the query by which objects are described: place in the arrays,
// type, names, args, identity, owner, extension, grantees and md5 of the objects
// of classes $1 and oids $2. It wants search_path to be pg_catalog, pg_temp.
func DescribeSQL() string { return describeSQL }

// Describe fills in all fields of objects of which ClassID and OID are known.
// Those that are not there any more are returned as they came. The objects must
// not be dropped by others meanwhile: servers before 14 make an error of it.
func Describe(ctx context.Context, q Querier, objects []Object) ([]Object, error) {
	described, err := withPinned(ctx, q, func() ([]Object, error) { return describe(ctx, q, objects) })
	if err != nil {
		return nil, fmt.Errorf("could not describe objects of the database: %w", err)
	}
	return described, nil
}

// DescribeAlike is Describe with hashes that are the same for the same definitions
// in either of two schemas: whatever is written like the name of one of them, with
// quotes or without, counts as one name. That is too much where another word is
// like it, and the same too much for both.
func DescribeAlike(ctx context.Context, q Querier, objects []Object, one, other string) ([]Object, error) {
	described, err := withPinned(ctx, q, func() ([]Object, error) {
		return describeBy(ctx, q, alikeSQL, objects, one, other)
	})
	if err != nil {
		return nil, fmt.Errorf("could not compare definitions: %w", err)
	}
	return described, nil
}

// Members returns the members of an extension, in order of class and oid. It is
// an error if there is no such extension.
func Members(ctx context.Context, q Querier, extension string) ([]Object, error) {
	members, err := withPinned(ctx, q, func() ([]Object, error) { return members(ctx, q, extension) })
	if err != nil {
		return nil, fmt.Errorf("could not list the members of extension %q: %w", extension, err)
	}
	return members, nil
}

func members(ctx context.Context, q Querier, extension string) ([]Object, error) {
	var oid uint32
	if err := q.QueryRow(ctx, `SELECT oid FROM pg_catalog.pg_extension WHERE extname = $1`, extension).Scan(&oid); err != nil {
		if errors.Is(err, pgx.ErrNoRows) {
			err = fmt.Errorf("extension %q does not exist", extension)
		}
		return nil, err
	}
	rows, err := q.Query(ctx, `
SELECT DISTINCT classid, objid FROM pg_catalog.pg_depend
WHERE refclassid = 3079 AND refobjid = $1 AND deptype = 'e'
ORDER BY 1, 2`, oid)
	if err != nil {
		return nil, err
	}
	objects, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (o Object, err error) {
		err = row.Scan(&o.ClassID, &o.OID)
		return o, err
	})
	if err != nil {
		return nil, err
	}
	return describe(ctx, q, objects)
}
