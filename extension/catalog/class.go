package catalog

import (
	"fmt"
	"strings"
)

// A class is a catalogue of objects that have an identity of their own.
type class struct {
	id     uint32 // pg_depend.classid of its objects
	table  string // in pg_catalog
	oid    string // the column with the object's oid
	name   string // an expression for a part of the identity, see Lookup; "" for none
	since  int    // the first major version that has it
	where  string // which rows changes of are reported, "" for all
	view   bool   // a view instead of a catalogue we may not read: rows have no xmin
	shared bool   // common to all databases
}

// classes lists all classes of objects, except for those that extensions and
// scripts cannot make. User mappings' table is closed to plain users because of
// the passwords, so mappings are known by the view, and their changes are not.
// The same goes for roles.
var classes = []class{
	{id: 1259, table: "pg_class", name: "x.relname"},
	{id: 1255, table: "pg_proc", name: "x.proname"},
	{id: 1247, table: "pg_type", name: "x.typname"},
	{id: 2605, table: "pg_cast"},
	{id: 3456, table: "pg_collation", name: "x.collname"},
	{id: 2606, table: "pg_constraint", name: "x.conname"},
	{id: 2607, table: "pg_conversion", name: "x.conname"},
	{id: 2604, table: "pg_attrdef", name: "(SELECT a.attname FROM pg_catalog.pg_attribute a WHERE a.attrelid = x.adrelid AND a.attnum = x.adnum)"},
	{id: 2612, table: "pg_language", name: "x.lanname"},
	{id: 2613, table: "pg_largeobject_metadata", name: "x.oid"},
	{id: 2617, table: "pg_operator", name: "x.oprname"},
	{id: 2616, table: "pg_opclass", name: "x.opcname"},
	{id: 2753, table: "pg_opfamily", name: "x.opfname"},
	{id: 2601, table: "pg_am", name: "x.amname"},
	{id: 2602, table: "pg_amop"},
	{id: 2603, table: "pg_amproc"},
	{id: 2618, table: "pg_rewrite", name: "x.rulename", where: "x.rulename <> '_RETURN'"}, // that is the query of a view,
	{id: 2620, table: "pg_trigger", name: "x.tgname"},
	{id: 2615, table: "pg_namespace", name: "x.nspname"},
	{id: 3381, table: "pg_statistic_ext", name: "x.stxname"},
	{id: 3601, table: "pg_ts_parser", name: "x.prsname"},
	{id: 3600, table: "pg_ts_dict", name: "x.dictname"},
	{id: 3764, table: "pg_ts_template", name: "x.tmplname"},
	{id: 3602, table: "pg_ts_config", name: "x.cfgname"},
	{id: 2328, table: "pg_foreign_data_wrapper", name: "x.fdwname"},
	{id: 1417, table: "pg_foreign_server", name: "x.srvname"},
	{id: 1418, table: "pg_user_mappings", oid: "umid", view: true},
	{id: 826, table: "pg_default_acl"},
	{id: 3079, table: "pg_extension", name: "x.extname"},
	{id: 3466, table: "pg_event_trigger", name: "x.evtname"},
	{id: 3256, table: "pg_policy", name: "x.polname"},
	{id: 6104, table: "pg_publication", name: "x.pubname"},
	{id: 6106, table: "pg_publication_rel"},
	{id: 6237, table: "pg_publication_namespace", since: 15},
	{id: 3576, table: "pg_transform"},
	{id: 1260, table: "pg_roles", name: "x.rolname", view: true, shared: true},
	{id: 1262, table: "pg_database", name: "x.datname", shared: true},
	{id: 1213, table: "pg_tablespace", name: "x.spcname", shared: true},
	{id: 6100, table: "pg_stat_subscription", oid: "subid", name: "x.subname", view: true, shared: true},
}

const (
	classRelation  = 1259
	classExtension = 3079
)

// classNumber is where a class is in classes.
var classNumber = func() map[uint32]int {
	m := make(map[uint32]int, len(classes))
	for i, c := range classes {
		m[c.id] = i
	}
	return m
}()

// An aux is a catalogue whose rows are parts of objects of other catalogues.
type aux struct {
	table   string
	classID string // expression: the class of the object it is a part of
	objID   string // expression: its oid
	part    string // expression: what of it
	where   string
}

var auxes = []aux{
	{table: "pg_attribute", classID: "1259", objID: "x.attrelid", part: "'column ' || quote_ident(x.attname)"},
	{table: "pg_attrdef", classID: "1259", objID: "x.adrelid", part: "'column default'"},
	{table: "pg_rewrite", classID: "1259", objID: "x.ev_class", part: "'query'", where: "x.rulename = '_RETURN'"},
	{table: "pg_index", classID: "1259", objID: "x.indexrelid", part: "'index'"},
	{table: "pg_sequence", classID: "1259", objID: "x.seqrelid", part: "'sequence'"},
	{table: "pg_inherits", classID: "1259", objID: "x.inhrelid", part: "'parent'"},
	{table: "pg_partitioned_table", classID: "1259", objID: "x.partrelid", part: "'partition key'"},
	{table: "pg_foreign_table", classID: "1259", objID: "x.ftrelid", part: "'foreign table'"},
	{table: "pg_enum", classID: "1247", objID: "x.enumtypid", part: "'enum label'"},
	{table: "pg_range", classID: "1247", objID: "x.rngtypid", part: "'range'"},
	{table: "pg_aggregate", classID: "1255", objID: "x.aggfnoid", part: "'aggregate'"},
	{table: "pg_ts_config_map", classID: "3602", objID: "x.mapcfg", part: "'mapping'"},
	{table: "pg_description", classID: "x.classoid", objID: "x.objoid", part: "'comment'"},
	{table: "pg_seclabel", classID: "x.classoid", objID: "x.objoid", part: "'security label'"},
	{table: "pg_depend", classID: "x.classid", objID: "x.objid", part: "'membership in extension'",
		where: "x.deptype = ANY ('{e,x}')"},
	{table: "pg_db_role_setting", classID: "CASE x.setrole WHEN 0 THEN 1262 ELSE 1260 END",
		objID: "CASE x.setrole WHEN 0 THEN x.setdatabase ELSE x.setrole END", part: "'settings'"},
	{table: "pg_auth_members", classID: "1260", objID: "x.roleid", part: "'members'"},
	{table: "pg_shdescription", classID: "x.classoid", objID: "x.objoid", part: "'comment'"},
	{table: "pg_shseclabel", classID: "x.classoid", objID: "x.objoid", part: "'security label'"},
}

// oidsSQL selects class number and oid of every object.
func oidsSQL(major int) string {
	var parts []string
	for i, c := range classes {
		if c.since <= major {
			parts = append(parts, fmt.Sprintf("SELECT %d::int4, x.%s FROM pg_catalog.%s x WHERE x.%[2]s IS NOT NULL", i, c.oidColumn(), c.table))
		}
	}
	return strings.Join(parts, "\nUNION ALL ")
}

// writtenSQL selects the rows that our transaction, or a newer one, seems to
// have written: number of the catalogue, ctid, class, oid, part. age(xmin) is
// compared with our own id, see Snapshot.
func writtenSQL(major int) string {
	var parts []string
	for i, c := range classes {
		if c.since <= major && !c.view {
			parts = append(parts, fmt.Sprintf("SELECT %d::int4, x.ctid, x.xmin, %d::oid, x.%s, ''::text FROM pg_catalog.%s x WHERE age(x.xmin) <= 0%s",
				i, c.id, c.oidColumn(), c.table, and(c.where)))
		}
	}
	for i, a := range auxes {
		parts = append(parts, fmt.Sprintf("SELECT %d, x.ctid, x.xmin, (%s)::oid, (%s)::oid, %s FROM pg_catalog.%s x WHERE age(x.xmin) <= 0%s",
			len(classes)+i, a.classID, a.objID, a.part, a.table, and(a.where)))
	}
	return strings.Join(parts, "\nUNION ALL ")
}

func and(condition string) string {
	if condition == "" {
		return ""
	}
	return " AND " + condition
}

func (c class) oidColumn() string {
	if c.oid == "" {
		return "oid"
	}
	return c.oid
}

// relationsSQL selects oid and a hash of the row of tables, views and
// partitioned indexes, without
// the columns that are written when something else is made or analyzed. The
// hash is seeded, so that nobody can prepare two rows with the same.
const relationsSQL = `
SELECT x.oid, (hashtextextended(ROW(
	x.relname, x.relnamespace, x.reltype, x.reloftype, x.relowner, x.relam, x.relfilenode, x.reltablespace, x.reltoastrelid,
	x.relpersistence, x.relkind, x.relnatts, x.relchecks, x.relrowsecurity, x.relforcerowsecurity, x.relispopulated,
	x.relreplident, x.relispartition, x.relrewrite, x.relacl, x.reloptions, x.relpartbound)::text, $1)
	 & 2147483647)::int4
FROM pg_catalog.pg_class x
WHERE x.oid >= 16384 AND x.relkind = ANY ('{r,p,v,m,f,I}')`
