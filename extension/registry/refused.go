package registry

import (
	"errors"
	"fmt"
	"strings"
)

// A Reason is why something of a registry is not used.
type Reason string

// The reasons.
const (
	Untrusted    Reason = "untrusted"         // no trusted key signed the root
	BadSignature Reason = "bad signature"     // not signed by enough of the keys that may
	NotDelegated Reason = "not delegated"     // signed, by a key that may not sign for this package
	Mismatch     Reason = "checksum mismatch" // not what a signed document says it is
	Oversized    Reason = "oversized"         // longer than it may be, or than was announced
	Malformed    Reason = "malformed"         // signed or not, it makes no sense
	Expired      Reason = "expired"           // signed, for a time that is over
	RolledBack   Reason = "rolled back"       // older than what was seen there before
	NotSigned    Reason = "no longer signed"  // a signed registry was seen there before
)

// Refused says that something of a registry failed verification. Nothing of it
// was used.
type Refused struct {
	Location string // of the registry, if known
	File     string // within it
	Reason   Reason
	Detail   string
}

func (e *Refused) Error() string {
	var b strings.Builder
	if e.Location != "" {
		fmt.Fprintf(&b, "registry %q: ", e.Location)
	}
	fmt.Fprintf(&b, "refused %q: %s", e.File, e.Reason)
	if e.Detail != "" {
		b.WriteString(": " + e.Detail)
	}
	return b.String()
}

func isRefused(err error) bool {
	var r *Refused
	return errors.As(err, &r)
}

// NotFound says that nobody knows a package, or this version of it.
type NotFound struct {
	Name     string
	Version  string   // "" if the package is not known at all
	Versions []string // that there are, lowest first
	Where    []string // registries that were asked
}

func (e *NotFound) Error() string {
	where := ""
	if len(e.Where) > 0 {
		where = " in registry " + strings.Join(e.Where, ", ")
	}
	if e.Version == "" {
		return fmt.Sprintf("there is no package %q%s", e.Name, where)
	}
	return fmt.Sprintf("package %q has no version %q%s, only %s", e.Name, e.Version, where, strings.Join(e.Versions, ", "))
}

// Ambiguous says that several registries have a package of this name.
type Ambiguous struct {
	Name       string
	Registries []string
}

func (e *Ambiguous) Error() string {
	var names []string
	for _, r := range e.Registries {
		names = append(names, fmt.Sprintf("%q", r+"/"+e.Name))
	}
	return fmt.Sprintf("package %q is in several registries: say which, %s", e.Name, strings.Join(names, " or "))
}
