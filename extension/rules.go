package extension

import (
	"fmt"
	"slices"
	"strings"

	"rideau/extension/catalog"
	"rideau/extension/pack"
)

// A Rule is something that a script must not do. Each stands for a hole through
// which servers have been taken over; core closed them in CREATE EXTENSION, and
// whoever executes scripts himself has to close them again.
type Rule string

// The rules.
const (
	// OpenSchema (CVE-2020-14350): no script is executed in a schema in which
	// others may create objects. What they put there would be called by it.
	OpenSchema Rule = "open schema"
	// SearchPath (CVE-2018-1058, CVE-2020-14350): a script sees its target
	// schema, those of what it requires and pg_temp last, whatever the role's own
	// search_path says; and we ourselves see pg_catalog.
	SearchPath Rule = "search_path"
	// Replaced (CVE-2022-2625): nothing that was there before may have been
	// changed, and nothing that was created may belong to somebody else: CREATE
	// OR REPLACE of another's function leaves him its owner.
	Replaced Rule = "replaced"
	// Manifest: what was created is what the package says that it creates. An
	// object that IF NOT EXISTS passed over is missing here.
	Manifest Rule = "manifest"
	// Substitution (CVE-2023-39417): no value with quotes, dollars or backslashes
	// is put into a script. Package script refuses them.
	Substitution Rule = "substitution"
	// Transaction: a script does not end the transaction that is to undo it, nor
	// change how the rest of it is read.
	Transaction Rule = "transaction"
	// Name (supautils#206): an unsigned package does not take the name of an
	// extension whose files the server has.
	Name Rule = "name"
)

// ruleText continues "foo 1.0 ".
var ruleText = map[Rule]string{
	Replaced:    "changes what is not its own",
	Manifest:    "does not create what its package says",
	Transaction: "ends the transaction that it is executed in",
}

// An OpenSchemaError says that others may create objects in the schema that a
// script was to be executed in.
type OpenSchemaError struct {
	Name, Schema string
	Who          []string
}

func (e *OpenSchemaError) Error() string {
	return fmt.Sprintf("%s cannot be installed into schema %q: %s may create objects in it, and so decide what its script calls", e.Name, e.Schema, strings.Join(e.Who, ", "))
}

// A SettingError says that the role may not apply a line of foo.conf.
type SettingError struct {
	Name, Setting, Role string
	SQL                 string // for somebody who may
}

func (e *SettingError) Error() string {
	return fmt.Sprintf("%s: foo.conf sets %s, which role %q may not", e.Name, e.Setting, e.Role)
}

// judge checks what a script did. own are the objects that are the extension's
// from before, nil at an installation.
func judge(s *Step, role string, d *catalog.Difference, own []catalog.Object, enforced func(Rule) bool) error {
	mine := func(o catalog.Object) bool {
		return slices.ContainsFunc(own, func(m catalog.Object) bool { return m.ClassID == o.ClassID && m.OID == o.OID })
	}
	if enforced(Replaced) {
		var foreign []string
		for _, c := range d.Changed {
			if c.Type == "schema" && len(c.Names) == 1 && c.Names[0] == s.Schema {
				continue // GRANT USAGE ON SCHEMA @extschema@
			}
			if !c.Harmless() && !mine(c.Object) {
				foreign = append(foreign, fmt.Sprintf("%s (%s)", c.Object, strings.Join(c.Parts, ", ")))
			}
		}
		for _, o := range d.Created {
			if o.Owner != "" && o.Owner != role {
				foreign = append(foreign, fmt.Sprintf("%s (belongs to %q)", o, o.Owner))
			}
		}
		if len(foreign) > 0 {
			return &RuleError{Name: s.Name, Version: s.To, Rule: Replaced, What: foreign}
		}
	}
	if enforced(Manifest) && s.pkg != nil && s.pkg.Objects != nil && s.Action == Install && s.To == sqlVersion(s.pkg.Control) {
		if what := compareManifest(s.pkg.Objects, s.Schema, d.Created); len(what) > 0 {
			return &RuleError{Name: s.Name, Version: s.To, Rule: Manifest, What: what}
		}
	}
	return nil
}

// targetSchemaName stands for the target schema in manifests.
const targetSchemaName = "@extschema@"

// relative names an object as a manifest does.
func relative(o catalog.Object, schema string) pack.Object {
	return swapObject(pack.Object{Type: o.Type, Names: o.Names, Args: o.Args}, schema, targetSchemaName)
}

// swapObject replaces a schema in an object's address: where the address has a
// schema, and before the names of types. An object may well be called as its
// schema is.
func swapObject(o pack.Object, from, to string) pack.Object {
	at := schemaAt(o)
	swapped := pack.Object{Type: o.Type, Names: slices.Clone(o.Names), Args: slices.Clone(o.Args)}
	for i, n := range o.Names {
		if i == at && n == from {
			swapped.Names[i] = to
		} else if at < 0 {
			swapped.Names[i] = swapType(n, from, to)
		}
	}
	for i, a := range o.Args {
		swapped.Args[i] = swapType(a, from, to)
	}
	return swapped
}

// schemaAt is the index of the schema among an object's names, -1 if they are
// types, or have none (pg_identify_object_as_address).
func schemaAt(o pack.Object) int {
	switch o.Type {
	case "type", "domain constraint", "cast", "transform", "language", "extension", "access method", "foreign-data wrapper",
		"server", "event trigger", "publication", "user mapping", "role", "database", "tablespace", "large object":
		return -1
	case "operator class", "operator family", "operator of access method", "function of access method", "default acl":
		return 1
	}
	return 0
}

// swapType replaces the schema of a type's name: "s.t[]".
func swapType(text, from, to string) string {
	if from == "pg_catalog" {
		return text // the system's types, and not what the script has put beside them
	}
	if to != targetSchemaName {
		to = quoteIfNeeded(to)
	}
	for _, quoted := range []string{from, quoteIdent(from)} {
		if rest, ok := strings.CutPrefix(text, quoted+"."); ok {
			return to + "." + rest
		}
	}
	return text
}

// compareManifest says what is missing and what is not expected. The target
// schema itself is not a part of what a package creates.
func compareManifest(want []pack.Object, schema string, got []catalog.Object) []string {
	missing := map[string]bool{}
	for _, o := range want {
		missing[objectText(o)] = true
	}
	var what []string
	for _, o := range got {
		if o.Type == "schema" && len(o.Names) == 1 && o.Names[0] == schema {
			continue
		}
		text := objectText(relative(o, schema))
		if !missing[text] {
			what = append(what, text+" is not in its manifest")
		}
		delete(missing, text)
	}
	for _, text := range names(missing) {
		what = append(what, text+" was not created: it was there before, or the script has changed")
	}
	return what
}
