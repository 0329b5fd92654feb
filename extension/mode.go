package extension

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"rideau/extension/pack"
)

// A Mode is how an extension gets into a database, see the package doc.
type Mode string

// The modes.
const (
	Auto   Mode = "auto" // the best one that the server and the role allow
	Native Mode = "native"
	Path   Mode = "path"
	Module Mode = "module"
	Graft  Mode = "graft"
)

// A choice of mode, with the reason that people are told.
type modeChoice struct {
	Mode Mode
	Why  string
}

// An offer is one version of one extension, and all the places it can come from.
type offer struct {
	name, version string
	files         *Available // the server has its files
	release       *release   // a package of one of the registries
	installed     *Installed // it is in the database now, at whatever version
}

// chooseMode decides how an offer gets into the database, or says why it cannot.
// reachable says whether the server's own files lead from the installed version
// to that of the offer.
func chooseMode(o *Observed, of offer, wanted Mode, reachable bool, enforced func(Rule) bool) (modeChoice, error) {
	if of.installed != nil {
		return upgradeMode(o, of, wanted, reachable, enforced)
	}
	try := func(m Mode) (modeChoice, error) {
		switch m {
		case Native:
			return nativeMode(o, of)
		case Path:
			return pathMode(o, of)
		case Module:
			return moduleMode(o, of, enforced)
		case Graft:
			return graftMode(o, of, enforced)
		}
		return modeChoice{}, fmt.Errorf("unknown mode %q", m)
	}
	if wanted != "" && wanted != Auto {
		choice, err := try(wanted)
		if err != nil {
			refused := &ModeError{Name: of.name, Version: of.version}
			refused.add(wanted, err)
			return choice, refused
		}
		return choice, nil
	}
	order := []Mode{Native, Path, Module}
	if slices.Contains(o.Stored, of.name) && of.release != nil && !o.Role.Superuser {
		// Its files are not the server's own choice: what else the package says counts.
		order = []Mode{Module, Native, Path}
	}
	refused := &ModeError{Name: of.name, Version: of.version}
	for _, m := range order {
		choice, err := try(m)
		if err == nil {
			return choice, nil
		}
		refused.add(m, err)
	}
	if choice, err := graftMode(o, of, enforced); err == nil {
		refused.add(choice.Mode, errors.New("only when asked for with --mode graft"))
	}
	return modeChoice{}, refused
}

// add takes down why a mode will not do.
func (e *ModeError) add(m Mode, why error) {
	e.Reasons = append(e.Reasons, fmt.Sprintf("%s: %v", m, why))
	var none *noCreateError
	e.NoCreate = e.NoCreate || errors.As(why, &none)
}

// A noCreateError says that a role may create nothing in the database.
type noCreateError struct{ role, database string }

func (e *noCreateError) Error() string {
	return fmt.Sprintf("role %q has no CREATE on database %q", e.role, e.database)
}

func nativeMode(o *Observed, of offer) (modeChoice, error) {
	switch a := of.files; {
	case a != nil && of.release != nil && slices.Contains(o.Stored, of.name) && o.Role.Superuser:
		return modeChoice{}, fmt.Errorf("its files on the server are those that its package brought")
	case a == nil:
		return modeChoice{}, fmt.Errorf("the server has no files of %s %s", of.name, of.version)
	case o.Role.Superuser:
		return modeChoice{Native, "the server has its files"}, nil
	case a.Superuser && !a.Trusted:
		return modeChoice{}, fmt.Errorf("the server has its files, and wants a superuser to create it; role %q is none", o.Role.Name)
	case !o.Role.CanCreate:
		return modeChoice{}, &noCreateError{o.Role.Name, o.Database}
	case a.Superuser:
		return modeChoice{Native, "the server has its files and trusts it"}, nil
	}
	return modeChoice{Native, "the server has its files"}, nil
}

// firstControlPath is the first version with extension_control_path.
const firstControlPath = 18

func pathMode(o *Observed, of offer) (modeChoice, error) {
	switch r := of.release; {
	case r == nil:
		return modeChoice{}, fmt.Errorf("no registry has a package of %s %s", of.name, of.version)
	case o.Major() < firstControlPath:
		return modeChoice{}, fmt.Errorf("PostgreSQL %d looks for control files in one place, which is not ours to write to", o.Major())
	case r.Kind == "module":
		return modeChoice{}, fmt.Errorf("its package says kind = module")
	case !o.Role.Superuser:
		return modeChoice{}, fmt.Errorf("bringing files to the server needs a superuser; role %q is none", o.Role.Name)
	}
	return modeChoice{Path, "a superuser can bring its files to the server, and extension_control_path lead there"}, nil
}

func moduleMode(o *Observed, of offer, enforced func(Rule) bool) (modeChoice, error) {
	switch r := of.release; {
	case r == nil:
		return modeChoice{}, fmt.Errorf("no registry has a package of %s %s", of.name, of.version)
	case r.Kind == "library":
		return modeChoice{}, fmt.Errorf("its package says kind = library: it is made of files")
	case len(r.libraries()) > 0:
		return modeChoice{}, fmt.Errorf("it has libraries (%s), which a module cannot have", strings.Join(r.libraries(), ", "))
	case !o.Role.CanCreate:
		return modeChoice{}, &noCreateError{o.Role.Name, o.Database}
	case o.fileBacked(of.name) && !r.signed() && enforced(Name):
		return modeChoice{}, fmt.Errorf("the server has files of an extension of that name, and an unsigned package may not take it")
	}
	return modeChoice{Module, "its script needs no file on the server; what it makes is recorded in schema \"extension\""}, nil
}

func graftMode(o *Observed, of offer, enforced func(Rule) bool) (modeChoice, error) {
	switch r := of.release; {
	case r == nil:
		return modeChoice{}, fmt.Errorf("no registry has a package of %s %s", of.name, of.version)
	case !o.Role.Superuser:
		return modeChoice{}, fmt.Errorf("writing pg_extension needs a superuser; role %q is none", o.Role.Name)
	case r.Kind == "module":
		return modeChoice{}, fmt.Errorf("its package says kind = module")
	case o.fileBacked(of.name) && !r.signed() && enforced(Name):
		return modeChoice{}, fmt.Errorf("the server has files of an extension of that name, and an unsigned package may not take it")
	}
	return modeChoice{Graft, "asked for; PostgreSQL does not support rows in pg_extension that CREATE EXTENSION did not write"}, nil
}

// fileBacked says whether the server has files of an extension of that name which
// are not from us.
func (o *Observed) fileBacked(name string) bool {
	return len(o.Available[name]) > 0 && !slices.Contains(o.Stored, name)
}

// upgradeMode stays with the mode that the extension was installed in: what a
// module made cannot become an extension's by an upgrade, nor the other way. Only
// files may come from elsewhere.
func upgradeMode(o *Observed, of offer, wanted Mode, reachable bool, enforced func(Rule) bool) (modeChoice, error) {
	was := of.installed
	if wanted != "" && wanted != Auto && wanted != was.Mode && !(was.Mode == Native && wanted == Path) {
		return modeChoice{}, fmt.Errorf("%s is installed as %s, and cannot become %s by an upgrade; uninstall it first", of.name, was.Mode, wanted)
	}
	switch was.Mode {
	case Native, Path:
		if of.files != nil && reachable && wanted != Path && (of.release == nil || !slices.Contains(o.Stored, of.name) || !o.Role.Superuser) {
			if !o.Role.Superuser && of.files.Superuser && !of.files.Trusted {
				return modeChoice{}, fmt.Errorf("updating it needs a superuser; role %q is none", o.Role.Name)
			}
			return modeChoice{was.Mode, "the server has the files of its update"}, nil
		}
		choice, err := pathMode(o, of)
		if err != nil {
			return modeChoice{}, fmt.Errorf("it is an extension with files on the server, and these do not lead to %s: %w", of.version, err)
		}
		return choice, nil
	case Module:
		choice, err := moduleMode(o, of, enforced)
		if err != nil {
			return modeChoice{}, err
		}
		return choice, nil
	case Graft:
		return graftMode(o, of, enforced)
	}
	return modeChoice{}, fmt.Errorf("it is installed in mode %q, which this program does not know", was.Mode)
}

// libraries lists the libraries among a package's files.
func libraries(files []pack.File) []string {
	var names []string
	for _, f := range files {
		if strings.HasPrefix(f.Path, "lib/") {
			names = append(names, strings.TrimPrefix(f.Path, "lib/"))
		}
	}
	slices.Sort(names)
	return names
}
