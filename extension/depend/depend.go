// Package depend is the vocabulary of extensions that need or refuse each
// other: names, versions and their order, and the lists that a control file
// has in its depends and conflicts.
//
//	depends = bar (>= 1.1, < 2), baz | qux@server
//	          └┬┘ └────┬──────┘  └──────┬───────┘
//	         name    Range         Alternatives: one must hold
//	          └──── Relation ┘
//	          └─────────────── List: all must hold ──────────┘
//
//	list  = alt { "," alt }            alt = rel { "|" rel }
//	rel   = name [ "[" feature "]" ] [ "(" op version { "," op version } ")" ] [ "@" scope ]
//	op    = "<" | "<=" | "=" | ">=" | ">" | "!=" | "~>"
//	scope = "db" | "server" | "node"
//
// "<" is strict; Debian's "<<" and ">>" are read as "<" and ">", and "==" as
// "=". A name or version with a character that the grammar uses stands in
// double quotes: "my ext". What is printed is canonical, and is read back as
// the same value.
//
// # The order of versions
//
// PostgreSQL has none: to it a version is a word, and only update scripts say
// that one follows another. [Compare] orders any two words as Debian does,
// except that a pre-release comes before its release. An [Order] knows the
// versions of one extension and its update scripts, and believes the scripts
// first: a path from 1.06 to 1.1 and none back proves that 1.06 is the older,
// whatever the digits say.
//
// # Invariants
//
//   - Compare is a total order of classes of versions that are spelt
//     differently and mean the same: 1.0 and 1.00. So is Order.Compare over the
//     versions that the Order was made of.
//   - ParseList(l.String()) is l, for every l that ParseList returns.
//   - Everything here is a function of its arguments, takes time in proportion
//     to them (sorting apart), and never panics on what it is given.
package depend

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxName is the length in bytes that a name may have: PostgreSQL keeps it as
// an identifier, NAMEDATALEN - 1.
const MaxName = 63

// MaxVersion is the length in bytes that a version may have: the file name of an
// update script, NAME--FROM--TO.sql, has at most 255.
const MaxVersion = (255 - MaxName - len("--") - len("--") - len(".sql")) / 2

// CheckName returns why name cannot be that of an extension, or nil. The rules
// are those of PostgreSQL's check_valid_extension_name, and that the name fits
// an identifier, and has no quotes or characters that cannot be seen.
func CheckName(name string) error {
	if why := badWord(name, MaxName); why != "" {
		return fmt.Errorf("invalid extension name %q: %s", name, why)
	}
	return nil
}

// CheckVersion returns why version cannot be one of an extension, or nil. The
// rules are those of PostgreSQL's check_valid_version_name, and that it has no
// quotes or characters that cannot be seen.
func CheckVersion(version string) error {
	if why := badWord(version, MaxVersion); why != "" {
		return fmt.Errorf("invalid extension version %q: %s", version, why)
	}
	return nil
}

// badWord says what is wrong with a name or version, or returns "".
func badWord(s string, max int) string {
	switch {
	case s == "":
		return "must not be empty"
	case len(s) > max:
		return fmt.Sprintf("must not be longer than %d bytes", max)
	case !utf8.ValidString(s):
		return "must be valid UTF-8"
	case strings.Contains(s, "--"):
		return `must not contain "--"`
	case s[0] == '-' || s[len(s)-1] == '-':
		return `must not begin or end with "-"`
	case strings.ContainsAny(s, `/\`):
		return "must not contain directory separator characters"
	case s == "." || s == "..":
		return "must not be the name of a directory"
	case strings.ContainsAny(s, `"'`):
		return "must not contain quotes"
	case s[0] == ' ' || s[len(s)-1] == ' ':
		return "must not begin or end with a space"
	}
	for _, r := range s {
		if !unicode.IsPrint(r) {
			return fmt.Sprintf("must not contain the character %U", r)
		}
	}
	return ""
}

// Near returns those of the known names that a mistyped one may have meant, the
// nearest first. It is not among them, but the same in other letters, Foo for foo,
// is: names are case-sensitive, and people are not.
func Near(name string, known []string) []string {
	var near []string
	for _, other := range known {
		if d := Distance(name, other); other != name && d < len(other) && d <= 1+len(name)/4 {
			near = append(near, other)
		}
	}
	slices.SortStableFunc(near, func(a, b string) int { return cmp.Compare(Distance(name, a), Distance(name, b)) })
	return near
}

// Distance counts the insertions, deletions and replacements of a byte that
// turn a into b: how far a mistyped name is from one that is known. Upper and
// lower case of a letter are the same to it.
func Distance(a, b string) int {
	a, b = strings.ToLower(a), strings.ToLower(b)
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}
