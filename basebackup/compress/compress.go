package compress

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
)

type kind uint8

const (
	pgcrypto kind = iota
	function
	holes
)

// A Method is a way to make a chunk smaller on the server. The zero value is of
// no use; Detect makes them.
type Method struct {
	// Name is how a person asks for it: "pgcrypto", "function" or "holes".
	Name string

	// Function is what the server calls, qualified and quoted; empty for holes.
	Function string

	kind kind
	call string // with the chunk c in the place of %s
}

// A Fact is a row of FactsSQL: a function of the server that compresses.
type Fact struct {
	Schema, Name string
	Args         int    // 1: bytea; 2: bytea and a level; 3: pgcrypto's
	Extension    string // the extension that it belongs to, or empty
}

// FactsSQL asks for the columns of Fact, in its order: text, text, int4, text.
// Any role may run it. It is of one database, the one that is asked: extensions
// and functions of others do not count.
//
// What it looks for are rideau.compress(bytea), gzip(bytea) or (bytea, integer)
// in any schema, as pgsql-gzip has it, and pgcrypto, which the owner of a database
// may install. Owned by a superuser: a trusted extension's functions are, and
// others are a way for their owner to the rights of the role that calls them.
const FactsSQL = `SELECT n.nspname::text, p.proname::text, p.pronargs::int4, coalesce(e.extname::text, '')
FROM pg_catalog.pg_proc p
JOIN pg_catalog.pg_namespace n ON n.oid = p.pronamespace
JOIN pg_catalog.pg_roles o ON o.oid = p.proowner
LEFT JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_proc'::regclass AND d.objid = p.oid
 AND d.deptype = 'e' AND d.refclassid = 'pg_catalog.pg_extension'::regclass
LEFT JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
WHERE o.rolsuper AND p.prokind = 'f' AND NOT p.proretset AND p.provariadic = 0
AND p.prorettype = 'pg_catalog.bytea'::regtype
AND has_schema_privilege(n.oid, 'USAGE') AND has_function_privilege(p.oid, 'EXECUTE')
AND CASE WHEN p.proname = 'pgp_sym_encrypt_bytea' THEN e.extname = 'pgcrypto' AND oidvectortypes(p.proargtypes) = 'bytea, text, text'
 WHEN p.proname = 'compress' THEN n.nspname = 'rideau' AND oidvectortypes(p.proargtypes) = 'bytea'
 WHEN p.proname = 'gzip' THEN oidvectortypes(p.proargtypes) IN ('bytea', 'bytea, integer')
 ELSE false END
ORDER BY 1, 2, 3`

// Detect makes methods of what the server has, the best first. There is always
// one, holes, which needs nothing.
//
// A function that was made for this program comes first, because someone meant
// it to be used, then pgcrypto with its known level, then what is called gzip.
func Detect(facts []Fact) []Method {
	rank := func(f Fact) int {
		switch {
		case f.Schema == "rideau" && f.Name == "compress":
			return 0
		case f.Name == "pgp_sym_encrypt_bytea":
			return 1
		default:
			return 2
		}
	}
	facts = slices.Clone(facts)
	slices.SortStableFunc(facts, func(a, b Fact) int { return rank(a) - rank(b) })
	var methods []Method
	for _, f := range facts {
		name := quote(f.Schema) + "." + quote(f.Name)
		switch {
		case f.Name == "pgp_sym_encrypt_bytea" && f.Args == 3 && f.Extension == "pgcrypto":
			methods = append(methods, Method{Name: "pgcrypto", Function: name, kind: pgcrypto,
				call: name + "(%s, '" + pgpKey + "'::text, '" + pgpOptions + "'::text)"})
		case f.Args == 1 && (rank(f) == 0 || f.Name == "gzip"):
			methods = append(methods, Method{Name: "function", Function: name, kind: function, call: name + "(%s)"})
		case f.Args == 2 && f.Name == "gzip":
			methods = append(methods, Method{Name: "function", Function: name, kind: function, call: name + "(%s, 1)"})
		}
	}
	return append(methods, Method{Name: "holes", kind: holes})
}

// Names are what Choose knows.
var Names = []string{"none", "auto", "pgcrypto", "function", "holes"}

// ErrUnknown is what Choose answers for a name that is none of a method.
var ErrUnknown = errors.New("unknown compression: " + strings.Join(Names, ", "))

// A MissingError says that the server does not have what a method needs.
type MissingError struct {
	Method string
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("server has nothing for compression %q in this database", e.Method)
}

// Choose picks by name what Detect found; ok is false for "none". With "auto"
// it is the best there is, and the caller lets a Tuner decide about its use.
func Choose(methods []Method, name string) (m Method, ok bool, err error) {
	switch name {
	case "none":
		return Method{}, false, nil
	case "auto":
		return methods[0], true, nil
	case "pgcrypto", "function", "holes":
		for _, m := range methods {
			if m.Name == name {
				return m, true, nil
			}
		}
		return Method{}, false, &MissingError{Method: name}
	}
	return Method{}, false, ErrUnknown
}

// stored is the first byte of an answer that holds the chunk as it is. No format
// that we read begins with it.
const stored = 0

// sampleLen of a large chunk are tried first. What TOAST or the application has
// compressed already would cost the server the most, and bring nothing.
const sampleLen = 8192

// Expr is an SQL expression of type bytea around arg, which is another and is
// evaluated once. NULL stays NULL, and empty stays empty.
func (m Method) Expr(arg string) string {
	if m.kind == holes {
		return holesExpr(arg)
	}
	call := func(arg string) string { return fmt.Sprintf(m.call, arg) }
	return fmt.Sprintf(`(SELECT CASE WHEN c IS NULL OR length(c) = 0 THEN c
 WHEN length(c) < 128 OR length(c) >= %[1]d AND length(%[2]s) > %[3]d THEN decode('00', 'hex') || c
 ELSE %[4]s END FROM (SELECT %[5]s AS c OFFSET 0) x)`,
		8*sampleLen, call(fmt.Sprintf("substr(c, length(c)/2, %d)", sampleLen)), sampleLen*95/100, call("c"), arg)
}

// A Decoder undoes what one method did. It keeps memory between calls, and is
// for one goroutine.
type Decoder interface {
	// Decode appends to dst what the server made src of, and returns it. If that
	// is more than rawLen bytes it is an error, found before there is much more.
	// Src may be overwritten; nothing of it is kept.
	Decode(dst, src []byte, rawLen int) ([]byte, error)
}

// NewDecoder makes a decoder for what Expr sends.
func (m Method) NewDecoder() Decoder {
	if m.kind == holes {
		return holesDecoder{}
	}
	return &decoder{pgp: m.kind == pgcrypto}
}

// A decoder is for the methods that call a function.
type decoder struct {
	pgp     bool
	inflate inflater
	scratch []byte
}

func (d *decoder) Decode(dst, src []byte, rawLen int) ([]byte, error) {
	switch {
	case len(src) == 0:
		return dst, nil
	case src[0] == stored:
		if len(src)-1 > rawLen {
			return dst, tooMuch(rawLen)
		}
		return append(dst, src[1:]...), nil
	case !d.pgp:
		return d.inflate.append(dst, src, rawLen)
	}
	return d.openPGP(dst, src, rawLen)
}

// A FormatError says that what the server sent is not what a method makes, or is
// damaged.
type FormatError struct {
	Method string
	Reason string
}

func (e *FormatError) Error() string {
	return fmt.Sprintf("cannot read what the server compressed with %s: %s", e.Method, e.Reason)
}

func tooMuch(rawLen int) error {
	return fmt.Errorf("server's compressed data holds more than the %d bytes that were asked for", rawLen)
}

// checkText is long enough to be compressed, and not in one piece.
var checkText = strings.Repeat("Rideau checks that what is compressed there is read here. ", 1000)

// CheckSQL is a statement that yields one bytea for Check. It takes the server
// less than a millisecond.
func (m Method) CheckSQL() string {
	return "SELECT " + m.Expr(fmt.Sprintf("decode(repeat('%x', 1000), 'hex')", checkText[:len(checkText)/1000]))
}

// Check says whether the method works: an error means that it must not be used.
func (m Method) Check(answer []byte) error {
	got, err := m.NewDecoder().Decode(nil, answer, len(checkText))
	if err == nil && !bytes.Equal(got, []byte(checkText)) {
		err = &FormatError{Method: m.Name, Reason: "other bytes came back than were sent"}
	}
	return err
}

// quote makes a name an SQL identifier.
func quote(name string) string {
	return `"` + strings.ReplaceAll(name, `"`, `""`) + `"`
}
