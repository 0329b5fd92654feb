package extension

import (
	"fmt"
	"strings"

	"rideau/extension/pack"
	"rideau/extension/resolve"
)

// A ModeError says that there is no way for an extension into a database.
type ModeError struct {
	Name, Version string
	Reasons       []string // one for each mode: "native: the server has no files of it"
	NoCreate      bool     // one of them is that the role may create nothing in the database
}

func (e *ModeError) Error() string {
	return fmt.Sprintf("%s %s cannot be installed here (%s)", e.Name, e.Version, strings.Join(e.Reasons, "; "))
}

// A MovedError says that a database is not any more as it was when the plan was
// made. Nothing was changed.
type MovedError struct{ Database, Node string }

func (e *MovedError) Error() string {
	return fmt.Sprintf("database %q at %s is not as it was when the plan was made", e.Database, e.Node)
}

// A RuleError says that a script did what no script may. All was rolled back.
type RuleError struct {
	Name, Version string
	Rule          Rule
	What          []string // the objects, the words
}

func (e *RuleError) Error() string {
	return fmt.Sprintf("%s %s %s: %s", e.Name, e.Version, ruleText[e.Rule], strings.Join(e.What, ", "))
}

// A ScriptError is the server's refusal of a statement of a script, with the
// place in its file. All was rolled back.
type ScriptError struct {
	Name         string
	File         string
	Line, Column int
	Statement    string // its beginning
	Err          error
}

func (e *ScriptError) Error() string {
	return fmt.Sprintf("%s: %s:%d:%d: %v", e.Name, e.File, e.Line, e.Column, e.Err)
}

func (e *ScriptError) Unwrap() error { return e.Err }

// A DependentsError says that others need what was to be uninstalled.
type DependentsError struct {
	Name       string
	Dependents []string
}

func (e *DependentsError) Error() string {
	verb := "need"
	if len(e.Dependents) == 1 {
		verb = "needs"
	}
	return fmt.Sprintf("cannot uninstall %s: %s %s it", e.Name, strings.Join(e.Dependents, ", "), verb)
}

// A RestartError says that the server must be restarted before the rest can be
// done. What could be done before has been done.
type RestartError struct {
	Nodes     []string
	Libraries []string
}

func (e *RestartError) Error() string {
	return fmt.Sprintf("%s must be loaded when the server starts: it is in shared_preload_libraries now, and %s must be restarted", strings.Join(e.Libraries, ", "), strings.Join(e.Nodes, ", "))
}

// A LockedError says that somebody else installs extensions in the database, or
// holds what the script needs, for longer than we waited.
type LockedError struct {
	Database string
	Tries    int
	Err      error
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("database %q was busy in each of %d tries: %v", e.Database, e.Tries, e.Err)
}

func (e *LockedError) Unwrap() error { return e.Err }

// A SkewError says that nodes of one pool differ in the files that an extension
// needs, so that a failover would break it.
type SkewError struct {
	Problems []NodeProblem
}

func (e *SkewError) Error() string {
	var all []string
	for _, p := range e.Problems {
		all = append(all, p.String())
	}
	return "the nodes are not equal: " + strings.Join(all, "; ")
}

// NodeProblem is one file that one node has not, or has in another version.
type NodeProblem struct {
	Node      string `json:"node"`
	Extension string `json:"extension"`
	File      string `json:"file"` // where it belongs
	What      string `json:"what"` // "is missing", "differs from that of the primary"
}

func (p NodeProblem) String() string {
	return fmt.Sprintf("%s: %s, which %s needs, %s", p.Node, p.File, p.Extension, p.What)
}

// objectText is how an object is shown in errors: "function s.f(integer)".
func objectText(o pack.Object) string {
	text := o.Type + " " + strings.Join(o.Names, ".")
	if len(o.Args) > 0 || o.Type == "function" || o.Type == "aggregate" || o.Type == "procedure" {
		text += "(" + strings.Join(o.Args, ",") + ")"
	}
	return text
}

// A NotInstalledError says that there is no such extension in the database.
type NotInstalledError struct{ Name, Database string }

func (e *NotInstalledError) Error() string {
	return fmt.Sprintf("extension %q is not installed in database %q", e.Name, e.Database)
}

// A TakenError says that an extension would bring a file to a node that another
// one has brought there, with other contents: both cannot be on one server.
type TakenError struct {
	Name, Other string
	Node        string
	Files       []string // by place in the store: "lib/foo.so"
}

func (e *TakenError) Error() string {
	return fmt.Sprintf("cannot bring %s to %s: %s is there with other contents, brought for %s", e.Name, e.Node, joinSome(e.Files, 5), e.Other)
}

// An UnsolvableError says why no versions fit together, and what else there
// would have been.
type UnsolvableError struct {
	*resolve.Unsolvable
	Excluded []Excluded // versions that cannot be installed here, of what the explanation is about
}

func (e *UnsolvableError) Unwrap() error { return e.Unsolvable }

// A ModifiedError says that objects of a module are not as they were installed,
// and would be dropped with it.
type ModifiedError struct {
	Name    string
	Objects []string
}

func (e *ModifiedError) Error() string {
	return fmt.Sprintf("cannot uninstall %s: changed since it was installed: %s", e.Name, joinSome(e.Objects, 5))
}

// A ShadowedError says that a node would not find the library that an extension
// brings, but another file of that name.
type ShadowedError struct{ Name, Node, Library, File string }

func (e *ShadowedError) Error() string {
	return fmt.Sprintf("cannot bring %s of %s to %s: the server finds %s first, which is another", e.Library, e.Name, e.Node, e.File)
}
