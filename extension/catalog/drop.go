package catalog

import (
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// dropByName are types of objects dropped by their qualified name. Names of
// types come from the server as one text, quoted already.
var dropByName = map[string]string{
	"table": "TABLE", "index": "INDEX", "sequence": "SEQUENCE", "view": "VIEW",
	"materialized view": "MATERIALIZED VIEW", "foreign table": "FOREIGN TABLE",
	"collation": "COLLATION", "conversion": "CONVERSION", "statistics object": "STATISTICS",
	"text search parser": "TEXT SEARCH PARSER", "text search dictionary": "TEXT SEARCH DICTIONARY",
	"text search template": "TEXT SEARCH TEMPLATE", "text search configuration": "TEXT SEARCH CONFIGURATION",
	"schema": "SCHEMA", "language": "LANGUAGE", "access method": "ACCESS METHOD",
	"foreign-data wrapper": "FOREIGN DATA WRAPPER", "server": "SERVER", "extension": "EXTENSION",
	"event trigger": "EVENT TRIGGER", "publication": "PUBLICATION", "composite type": "TYPE",
}

// dropOnTable are types of objects that are dropped as NAME ON TABLE.
var dropOnTable = map[string]string{"trigger": "TRIGGER", "rule": "RULE", "policy": "POLICY"}

// defaultKinds are the letters of pg_default_acl.defaclobjtype, as
// pg_identify_object_as_address gives them, what ALTER DEFAULT PRIVILEGES calls
// them, and what PUBLIC may do with such objects by default.
var defaultKinds = map[string]struct{ name, public string }{
	"r": {"TABLES", ""},
	"S": {"SEQUENCES", ""},
	"f": {"FUNCTIONS", "EXECUTE"},
	"T": {"TYPES", "USAGE"},
	"n": {"SCHEMAS", ""},
	"L": {"LARGE OBJECTS", ""},
}

// DropSQL returns the command that drops the object, RESTRICT unless Cascade is
// set. It is several commands, separated by semicolons, to take back default
// privileges. The object must come from the server (Lookup, Difference,
// Members), because types in it are taken as they are.
func DropSQL(o Object) (string, error) {
	sql, err := dropSQL(o)
	if err != nil {
		return "", fmt.Errorf("could not write the command that drops %s: %w", o, err)
	}
	return sql, nil
}

func dropSQL(o Object) (string, error) {
	behavior := " RESTRICT"
	if o.Cascade {
		behavior = " CASCADE"
	}
	need := func(names, args int) error {
		if len(o.Names) != names || len(o.Args) != args {
			return fmt.Errorf("its identity has %d names and %d arguments, and should have %d and %d", len(o.Names), len(o.Args), names, args)
		}
		return nil
	}
	if keyword, ok := dropByName[o.Type]; ok {
		if len(o.Names) == 0 {
			return "", errors.New("its identity has no name")
		}
		return "DROP " + keyword + " " + quote(o.Names...) + behavior, nil
	}
	if keyword, ok := dropOnTable[o.Type]; ok {
		if err := need(3, 0); err != nil {
			return "", err
		}
		return "DROP " + keyword + " " + quote(o.Names[2]) + " ON " + quote(o.Names[:2]...) + behaviorOf(o.Type, behavior), nil
	}
	switch o.Type {
	case "function", "procedure", "aggregate":
		// DROP ROUTINE takes an aggregate's arguments in one list, direct and
		// aggregated ones, and needs no (*) where there are none.
		keyword := map[string]string{"function": "FUNCTION", "procedure": "PROCEDURE", "aggregate": "ROUTINE"}[o.Type]
		return "DROP " + keyword + " " + quote(o.Names...) + "(" + strings.Join(o.Args, ", ") + ")" + behavior, nil
	case "type":
		if err := need(1, 0); err != nil {
			return "", err
		}
		return "DROP TYPE " + o.Names[0] + behavior, nil
	case "cast":
		if err := need(1, 1); err != nil {
			return "", err
		}
		return "DROP CAST (" + o.Names[0] + " AS " + o.Args[0] + ")" + behavior, nil
	case "transform":
		if err := need(1, 1); err != nil {
			return "", err
		}
		return "DROP TRANSFORM FOR " + o.Names[0] + " LANGUAGE " + quote(o.Args[0]) + behavior, nil
	case "operator":
		left, right, err := operands(o)
		if err != nil {
			return "", err
		}
		return "DROP OPERATOR " + quote(o.Names[:len(o.Names)-1]...) + "." + o.Names[len(o.Names)-1] + " (" + left + ", " + right + ")" + behavior, nil
	case "operator class", "operator family":
		if err := need(3, 0); err != nil {
			return "", err
		}
		return "DROP " + strings.ToUpper(o.Type) + " " + quote(o.Names[1:]...) + " USING " + quote(o.Names[0]) + behavior, nil
	case "operator of access method", "function of access method":
		if err := need(4, 2); err != nil {
			return "", err
		}
		keyword := map[string]string{"operator of access method": "OPERATOR", "function of access method": "FUNCTION"}[o.Type]
		return "ALTER OPERATOR FAMILY " + quote(o.Names[1:3]...) + " USING " + quote(o.Names[0]) + " DROP " + keyword + " " + o.Names[3] + " (" + strings.Join(o.Args, ", ") + ")", nil
	case "table constraint":
		if err := need(3, 0); err != nil {
			return "", err
		}
		return "ALTER TABLE " + quote(o.Names[:2]...) + " DROP CONSTRAINT " + quote(o.Names[2]) + behavior, nil
	case "domain constraint":
		if err := need(1, 1); err != nil {
			return "", err
		}
		return "ALTER DOMAIN " + o.Names[0] + " DROP CONSTRAINT " + quote(o.Args[0]) + behavior, nil
	case "default value":
		if err := need(3, 0); err != nil {
			return "", err
		}
		return "ALTER TABLE " + quote(o.Names[:2]...) + " ALTER COLUMN " + quote(o.Names[2]) + " DROP DEFAULT", nil
	case "user mapping":
		if err := need(1, 1); err != nil {
			return "", err
		}
		user := quote(o.Names[0])
		if o.Names[0] == "public" { // no role can have this name
			user = "PUBLIC"
		}
		return "DROP USER MAPPING FOR " + user + " SERVER " + quote(o.Args[0]), nil
	case "publication relation":
		if err := need(2, 1); err != nil {
			return "", err
		}
		return "ALTER PUBLICATION " + quote(o.Args[0]) + " DROP TABLE " + quote(o.Names...), nil
	case "publication namespace":
		if err := need(1, 1); err != nil {
			return "", err
		}
		return "ALTER PUBLICATION " + quote(o.Args[0]) + " DROP TABLES IN SCHEMA " + quote(o.Names...), nil
	case "large object":
		if err := need(1, 0); err != nil {
			return "", err
		}
		return "SELECT pg_catalog.lo_unlink(" + o.Names[0] + ")", nil
	case "default acl":
		return dropDefaultACL(o)
	}
	return "", fmt.Errorf("objects of type %q have no such command", o.Type)
}

func behaviorOf(objectType, behavior string) string {
	if objectType == "policy" && behavior == " CASCADE" {
		return "" // nothing depends on a policy
	}
	return behavior
}

// operands returns the operand types of an operator, NONE where it has none.
// With one argument the identity tells on which side it is: "s.!(integer,NONE)".
func operands(o Object) (left, right string, err error) {
	switch {
	case len(o.Names) < 1 || len(o.Args) < 1 || len(o.Args) > 2:
		return "", "", fmt.Errorf("its identity has %d names and %d arguments", len(o.Names), len(o.Args))
	case len(o.Args) == 2:
		return o.Args[0], o.Args[1], nil
	case strings.HasSuffix(o.Identity, ",NONE)"):
		return o.Args[0], "NONE", nil
	}
	return "NONE", o.Args[0], nil
}

// dropDefaultACL takes back default privileges. There is no command for it: an
// entry goes when it says again what holds without it.
func dropDefaultACL(o Object) (string, error) {
	if len(o.Names) < 1 || len(o.Names) > 2 || len(o.Args) != 1 {
		return "", fmt.Errorf("its identity has %d names and %d arguments", len(o.Names), len(o.Args))
	}
	kind, ok := defaultKinds[o.Args[0]]
	if !ok {
		return "", fmt.Errorf("default privileges of kind %q are not known", o.Args[0])
	}
	owner := quote(o.Names[0])
	prefix := "ALTER DEFAULT PRIVILEGES FOR ROLE " + owner
	if len(o.Names) == 2 {
		prefix += " IN SCHEMA " + quote(o.Names[1])
	}
	var grantees []string
	for _, g := range o.Grantees {
		if g == "" {
			grantees = append(grantees, "PUBLIC")
		} else {
			grantees = append(grantees, quote(g))
		}
	}
	var commands []string
	if len(grantees) > 0 {
		commands = append(commands, prefix+" REVOKE ALL ON "+kind.name+" FROM "+strings.Join(grantees, ", "))
	}
	if len(o.Names) == 1 { // in a schema, nothing is granted without an entry
		commands = append(commands, prefix+" GRANT ALL ON "+kind.name+" TO "+owner)
		if kind.public != "" {
			commands = append(commands, prefix+" GRANT "+kind.public+" ON "+kind.name+" TO PUBLIC")
		}
	}
	return strings.Join(commands, ";\n"), nil
}

// quote writes a qualified name as SQL.
func quote(names ...string) string { return pgx.Identifier(names).Sanitize() }
