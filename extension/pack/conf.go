package pack

import (
	"bytes"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// A Scope is where a setting of an extension is made.
type Scope string

// The scopes of settings.
const (
	ScopeDatabase Scope = "database" // ALTER DATABASE; the default
	ScopeRole     Scope = "role"     // ALTER ROLE
	ScopeSystem   Scope = "system"   // ALTER SYSTEM
)

// A Setting is one line of NAME.conf. Value is the text that the server would
// read; for parameters that are lists, such as shared_preload_libraries, that is
// the whole list.
type Setting struct {
	Scope Scope
	Role  string // for ScopeRole
	Name  string
	Value string
	Line  int
}

// classWord is what custom_variable_classes may name: what PostgreSQL takes for
// the first part of a parameter's name.
var classWord = regexp.MustCompile(`^[A-Za-z_\x{80}-\x{10ffff}][A-Za-z0-9_$\x{80}-\x{10ffff}]*$`)

// ParseConf reads the settings that an extension comes with. The file could be
// included in postgresql.conf as it is; lines that are comments to the server
// say where the settings behind them belong:
//
//	foo.workers = 4                          # ALTER DATABASE … SET
//	#@scope role reporting
//	foo.workers = 1
//	#@scope system
//	shared_preload_libraries = 'foo'
//
// A name with a dot must begin with one of the classes; the names without one
// are the server's own, which the server will judge. Files cannot be included.
// The error has an [*Error] for each thing that is wrong, joined.
func ParseConf(file string, text []byte, classes []string) ([]Setting, error) {
	return parseConf(file, text, classes, true)
}

// parseConf is ParseConf that need not know the classes: when the control file
// could not be read.
func parseConf(file string, text []byte, classes []string, known bool) ([]Setting, error) {
	s := &source{file: file, text: text}
	if !s.check() {
		return nil, s.err()
	}
	scopes := s.scopes()
	var list []Setting
	for _, e := range s.settings() {
		set := Setting{Scope: ScopeDatabase, Name: e.key, Value: e.value, Line: s.at(e.keyAt, "").Line}
		for _, sc := range scopes {
			if sc.Line < set.Line {
				set.Scope, set.Role = sc.Scope, sc.Role
			}
		}
		class, _, dotted := strings.Cut(e.key, ".")
		switch lower := strings.ToLower(e.key); {
		case lower == "include" || lower == "include_if_exists" || lower == "include_dir":
			s.fail(e.keyAt, "%s cannot be used in the settings of an extension", lower)
			continue
		case strings.ContainsAny(e.value, "\n\r\x00"):
			s.fail(e.offset(0), "the value of %q contains a line end", e.key)
			continue
		case known && dotted && !slices.ContainsFunc(classes, func(c string) bool { return strings.EqualFold(c, class) }):
			if len(classes) == 0 {
				s.fail(e.keyAt, "parameter %q has the prefix %q: the control file declares no custom_variable_classes", e.key, class)
			} else {
				s.fail(e.keyAt, "parameter %q has the prefix %q, which is not in custom_variable_classes (%s)", e.key, class, strings.Join(classes, ", "))
			}
			continue
		}
		if i := slices.IndexFunc(list, func(o Setting) bool {
			return o.Scope == set.Scope && o.Role == set.Role && strings.EqualFold(o.Name, set.Name)
		}); i >= 0 {
			s.fail(e.keyAt, "parameter %q is set a second time, after line %d", e.key, list[i].Line)
			continue
		}
		list = append(list, set)
	}
	if len(s.errs) > 0 {
		return nil, s.err()
	}
	return list, nil
}

// scopes reads the lines that begin with #@.
func (s *source) scopes() []Setting {
	var list []Setting
	for pos := 0; pos < len(s.text); {
		end := s.lineEnd(pos)
		start, text := pos, bytes.TrimRight(s.text[pos:end], " \t\r")
		pos = end + 1
		rest, found := bytes.CutPrefix(text, []byte("#@"))
		if !found {
			continue
		}
		set, err := parseScope(string(rest))
		if err != nil {
			s.fail(start, "%s", err)
			continue
		}
		set.Line = s.at(start, "").Line
		list = append(list, set)
	}
	return list
}

func parseScope(text string) (Setting, error) {
	word, rest, _ := strings.Cut(strings.TrimLeft(text, " \t"), " ")
	if word != "scope" {
		return Setting{}, fmt.Errorf("unknown comment #@%s: did you mean #@scope?", word)
	}
	rest = strings.TrimSpace(rest)
	scope, role, _ := strings.Cut(rest, " ")
	role = strings.TrimSpace(role)
	switch {
	case rest == string(ScopeDatabase), rest == string(ScopeSystem):
		return Setting{Scope: Scope(rest)}, nil
	case scope == string(ScopeRole) && role != "":
		names, bad := identifiers(role)
		if bad >= 0 || len(names) != 1 {
			return Setting{}, fmt.Errorf("#@scope role needs the name of one role, not %s", role)
		}
		return Setting{Scope: ScopeRole, Role: names[0]}, nil
	}
	return Setting{}, fmt.Errorf("#@scope must be database, role NAME or system, not %q", rest)
}
