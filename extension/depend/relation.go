package depend

import (
	"fmt"
	"strings"
	"unicode/utf8"
)

// An Op compares a version with that of a [Constraint].
type Op string

// The operators. Pessimistic is RubyGems' "~>": the last part may grow, so that
// ~> 1.2 is >= 1.2 and < 2, and ~> 1.2.3 is >= 1.2.3 and < 1.3; pre-releases of
// the upper bound are out.
const (
	Less           Op = "<"
	LessOrEqual    Op = "<="
	Equal          Op = "="
	GreaterOrEqual Op = ">="
	Greater        Op = ">"
	NotEqual       Op = "!="
	Pessimistic    Op = "~>"
)

// ops are the operators as they may be written.
var ops = map[string]Op{
	"<": Less, "<=": LessOrEqual, "=": Equal, ">=": GreaterOrEqual, ">": Greater, "!=": NotEqual, "~>": Pessimistic,
	"<<": Less, ">>": Greater, "==": Equal,
}

// A Constraint is one condition on a version: ">= 1.1".
type Constraint struct {
	Op      Op
	Version string
}

// Allows reports whether version meets the constraint, in the order o.
func (c Constraint) Allows(version string, o *Order) bool {
	d := o.Compare(version, c.Version)
	switch c.Op {
	case Less:
		return d < 0
	case LessOrEqual:
		return d <= 0
	case Equal:
		return d == 0
	case GreaterOrEqual:
		return d >= 0
	case Greater:
		return d > 0
	case NotEqual:
		return d != 0
	case Pessimistic:
		upper, ok := bump(c.Version)
		return ok && d >= 0 && o.Compare(version, upper) < 0
	}
	return false
}

// String returns the constraint as ParseList reads it.
func (c Constraint) String() string { return string(c.Op) + " " + quote(c.Version, versionStops) }

// bump returns the first version that "~> v" does not allow: v without the last
// of its leading numbers, the one before that raised by one, and before all of
// its pre-releases. ok is false if v does not begin with a number.
func bump(v string) (upper string, ok bool) {
	epoch := ""
	if i := digits(v, 0); i > 0 && i < len(v) && v[i] == ':' {
		epoch, v = v[:i+1], v[i+1:]
	}
	var parts []string
	for i := 0; ; {
		end := digits(v, i)
		if end == i {
			break
		}
		parts = append(parts, v[i:end])
		if end == len(v) || v[end] != '.' {
			break
		}
		i = end + 1
	}
	if len(parts) == 0 {
		return "", false
	}
	if len(parts) > 1 {
		parts = parts[:len(parts)-1]
	}
	last := []byte("0" + parts[len(parts)-1])
	i := len(last) - 1
	for ; last[i] == '9'; i-- {
		last[i] = '0'
	}
	last[i]++
	parts[len(parts)-1] = string(last)
	return epoch + strings.Join(parts, ".") + "~~~", true
}

// A Range is a set of versions: those that meet all of its constraints. The nil
// Range has all versions.
type Range []Constraint

// Allows reports whether version is in the range, in the order o.
func (r Range) Allows(version string, o *Order) bool {
	for _, c := range r {
		if !c.Allows(version, o) {
			return false
		}
	}
	return true
}

// String returns the range as it stands between parentheses, ">= 1.1, < 2"; ""
// for one that has all versions.
func (r Range) String() string { return join(r, ", ") }

// A Scope is where the other extension of a relation is looked for.
type Scope string

// The scopes: the same database, any database of the server (what is preloaded
// is there, too), the machine.
const (
	Database Scope = ""
	Server   Scope = "server"
	Node     Scope = "node"
)

// A Relation names another extension and the versions of it that are meant.
type Relation struct {
	Name    string
	Feature string // what of it; "" is the extension as such
	Range   Range  // nil: any version
	Scope   Scope
}

// String returns the relation as ParseRelation reads it: "bar (>= 1.1)".
func (r Relation) String() string {
	s := quote(r.Name, nameStops)
	if r.Feature != "" {
		s += "[" + quote(r.Feature, nameStops) + "]"
	}
	if len(r.Range) > 0 {
		s += " (" + r.Range.String() + ")"
	}
	if r.Scope != Database {
		s += "@" + string(r.Scope)
	}
	return s
}

// Alternatives are relations of which one must hold.
type Alternatives []Relation

// String returns the alternatives as ParseList reads them: "baz | qux@server".
func (a Alternatives) String() string { return join(a, " | ") }

// A List is what a control file has under depends or conflicts. All of a list
// of dependencies must hold, and nothing of a list of conflicts may be there.
type List []Alternatives

// String returns the list as ParseList reads it.
func (l List) String() string { return join(l, ", ") }

func join[T fmt.Stringer](list []T, separator string) string {
	parts := make([]string, len(list))
	for i, e := range list {
		parts[i] = e.String()
	}
	return strings.Join(parts, separator)
}

// A SyntaxError says what is wrong with a list, and where.
type SyntaxError struct {
	Offset  int // bytes before the place
	Message string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s, at character %d", e.Message, e.Offset+1)
}

// ParseList reads a list such as "bar (>= 1.1), baz | qux@server". The empty
// text is the empty list. An error is a *SyntaxError.
func ParseList(text string) (List, error) {
	p := parser{text: text}
	p.space()
	if p.pos == len(text) {
		return nil, nil
	}
	var list List
	for {
		var alternatives Alternatives
		for {
			r, err := p.relation()
			if err != nil {
				return nil, err
			}
			alternatives = append(alternatives, r)
			if !p.take('|') {
				break
			}
		}
		list = append(list, alternatives)
		if p.pos == len(text) {
			return list, nil
		}
		if !p.take(',') {
			return nil, p.unexpected(`"," or "|"`)
		}
	}
}

// ParseRelation reads one relation, "bar (>= 1.1)". An error is a *SyntaxError.
func ParseRelation(text string) (Relation, error) {
	p := parser{text: text}
	r, err := p.relation()
	if err == nil && p.pos < len(text) {
		err = p.unexpected("the end")
	}
	if err != nil {
		return Relation{}, err
	}
	return r, nil
}

// ParseRange reads what stands between the parentheses of a relation,
// ">= 1.1, < 2"; the empty text is any version. An error is a *SyntaxError.
func ParseRange(text string) (Range, error) {
	p := parser{text: text}
	p.space()
	if p.pos == len(text) {
		return nil, nil
	}
	r, err := p.versions()
	if err == nil && p.pos < len(text) {
		err = p.unexpected("the end")
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// Characters that end a name or version which is not in quotes. A "#" begins a
// comment in the files that lists come from.
const (
	blanks       = " \t\r\n\f\v"
	nameStops    = blanks + `,|()[]@"'<>=!~#`
	versionStops = blanks + `,|()[]@"'<>=!#`
)

// quote puts s in quotes if one of its characters would end it.
func quote(s, stops string) string {
	if strings.ContainsAny(s, stops) {
		return `"` + s + `"`
	}
	return s
}

// A parser reads a text from pos on. Each of its methods leaves pos after the
// space behind what it read.
type parser struct {
	text string
	pos  int
}

func (p *parser) space() {
	for p.pos < len(p.text) && strings.IndexByte(blanks, p.text[p.pos]) >= 0 {
		p.pos++
	}
}

// take passes over c if it is next.
func (p *parser) take(c byte) bool {
	if p.pos >= len(p.text) || p.text[p.pos] != c {
		return false
	}
	p.pos++
	p.space()
	return true
}

func (p *parser) errorAt(offset int, format string, args ...any) error {
	return &SyntaxError{Offset: offset, Message: fmt.Sprintf(format, args...)}
}

// unexpected is the error that something else than want is next.
func (p *parser) unexpected(want string) error {
	if p.pos == len(p.text) {
		return p.errorAt(p.pos, "expected %s before the end", want)
	}
	r, _ := utf8.DecodeRuneInString(p.text[p.pos:])
	return p.errorAt(p.pos, "expected %s, not %q", want, string(r))
}

// word reads a name or version, in quotes or up to one of stops.
func (p *parser) word(what, stops string, check func(string) error) (string, error) {
	start := p.pos
	var word string
	if start < len(p.text) && p.text[start] == '"' {
		end := strings.IndexByte(p.text[start+1:], '"')
		if end < 0 {
			return "", p.errorAt(start, "unterminated quoted %s", what)
		}
		word = p.text[start+1 : start+1+end]
		p.pos = start + end + 2
	} else {
		end := strings.IndexAny(p.text[start:], stops)
		if end < 0 {
			end = len(p.text) - start
		}
		if end == 0 {
			return "", p.unexpected("a " + what)
		}
		word = p.text[start : start+end]
		p.pos = start + end
	}
	if err := check(word); err != nil {
		return "", p.errorAt(start, "%v", err)
	}
	p.space()
	return word, nil
}

func (p *parser) relation() (Relation, error) {
	var r Relation
	var err error
	p.space()
	if r.Name, err = p.word("name", nameStops, CheckName); err != nil {
		return Relation{}, err
	}
	if p.take('[') {
		if r.Feature, err = p.word("feature", nameStops, CheckName); err != nil {
			return Relation{}, err
		}
		if !p.take(']') {
			return Relation{}, p.unexpected(`"]"`)
		}
	}
	if p.take('(') {
		if r.Range, err = p.versions(); err != nil {
			return Relation{}, err
		}
		if !p.take(')') {
			return Relation{}, p.unexpected(`"," or ")"`)
		}
	}
	if p.pos < len(p.text) && p.text[p.pos] == '@' {
		p.take('@')
		at := p.pos
		scope, err := p.word("scope", nameStops, CheckName)
		if err != nil {
			return Relation{}, err
		}
		switch scope {
		case "db":
			r.Scope = Database
		case string(Server), string(Node):
			r.Scope = Scope(scope)
		default:
			return Relation{}, p.errorAt(at, `unknown scope %q: it is "db", "server" or "node"`, scope)
		}
	}
	return r, nil
}

// versions reads constraints with commas between.
func (p *parser) versions() (Range, error) {
	var r Range
	for {
		c, err := p.constraint()
		if err != nil {
			return nil, err
		}
		r = append(r, c)
		if !p.take(',') {
			return r, nil
		}
	}
}

func (p *parser) constraint() (Constraint, error) {
	start := p.pos
	for p.pos < len(p.text) && strings.IndexByte("<>=!~", p.text[p.pos]) >= 0 {
		p.pos++
	}
	sign := p.text[start:p.pos]
	op, ok := ops[sign]
	if !ok {
		switch sign {
		case "":
			if p.pos < len(p.text) && isDigit(p.text[p.pos]) {
				return Constraint{}, p.errorAt(start, `expected an operator before the version: "= 1.0" is that version alone, ">= 1.0" also later ones`)
			}
			return Constraint{}, p.unexpected("an operator")
		case "=<", "=>":
			return Constraint{}, p.errorAt(start, "unknown operator %q: write %q", sign, sign[1:]+sign[:1])
		}
		return Constraint{}, p.errorAt(start, "unknown operator %q", sign)
	}
	p.space()
	at := p.pos
	version, err := p.word("version", versionStops, CheckVersion)
	if err != nil {
		return Constraint{}, err
	}
	if op == Pessimistic {
		if _, ok := bump(version); !ok {
			return Constraint{}, p.errorAt(at, `"~>" needs a version that begins with a number, not %q`, version)
		}
	}
	return Constraint{Op: op, Version: version}, nil
}
