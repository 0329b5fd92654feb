package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"rideau/extension/catalog"
	"rideau/extension/pack"
)

// An UndeclaredError says that two packages cannot be in one database though
// neither says that it conflicts with the other: they make the same object, or
// bring the same file with different contents.
type UndeclaredError struct {
	Name, Other string
	What        []string
	Files       bool // some of it are files
}

func (e *UndeclaredError) Error() string {
	return fmt.Sprintf("%s and %s are not said to conflict, and both have %s", e.Name, e.Other, joinSome(e.What, 5))
}

// joinSome lists the first few.
func joinSome(list []string, most int) string {
	text := ""
	for i, s := range list {
		if i == most {
			return fmt.Sprintf("%s and %d more", text, len(list)-most)
		}
		if i > 0 {
			text += ", "
		}
		text += s
	}
	return text
}

// undeclared finds conflicts that nobody has declared, among what a plan
// installs, by the packages' manifests and files.
func undeclared(steps []Step) error {
	type owner struct {
		name string
		data []byte
	}
	has := map[string]owner{}
	for i := range steps {
		s := &steps[i]
		if s.Action != Install || s.pkg == nil {
			continue
		}
		met := map[string]*UndeclaredError{} // by the other's name
		claim := func(what string, data []byte) {
			if was, ok := has[what]; !ok {
				has[what] = owner{s.Name, data}
			} else if was.name != s.Name && (data == nil || !slices.Equal(was.data, data)) {
				e := met[was.name]
				if e == nil {
					e = &UndeclaredError{Name: s.Name, Other: was.name}
					met[was.name] = e
				}
				e.What, e.Files = append(e.What, what), e.Files || data != nil
			}
		}
		for _, o := range s.pkg.Objects {
			if in := absolute(o, s.Schema); len(in.Names) > 0 && o.Type != "schema" {
				claim(objectText(pack.Object{Type: in.Type, Names: in.Names, Args: in.Args}), nil)
			}
		}
		for _, f := range s.pkg.Files {
			claim("the file "+f.Path, append([]byte{}, f.Data...))
		}
		for _, other := range names(met) {
			return met[other]
		}
	}
	return nil
}

// An UpgradeProof is the comparison of a package that was upgraded to a version
// with one that was installed at it.
type UpgradeProof struct {
	From    string   `json:"from"`
	To      string   `json:"to"`
	Missing []string `json:"missing,omitempty"` // a fresh installation has it, the upgraded one not
	Extra   []string `json:"extra,omitempty"`   // the other way round
	Differ  []string `json:"differ,omitempty"`  // with another definition
}

// Same says whether the upgrade leads where an installation leads.
func (p *UpgradeProof) Same() bool { return len(p.Missing)+len(p.Extra)+len(p.Differ) == 0 }

// VerifyUpgrades tries every version that the package or an older one of it can
// install, and that the package can upgrade: installs it, upgrades it, and
// compares the result with a fresh installation. All is rolled back.
func (s *Session) VerifyUpgrades(ctx context.Context, pkg *pack.Package, older ...*pack.Package) (_ []UpgradeProof, err error) {
	all := *pkg
	all.Scripts = slices.Clone(pkg.Scripts)
	for _, old := range older {
		for _, sc := range old.Scripts {
			if sc.From == "" && !slices.ContainsFunc(all.Scripts, func(has pack.Script) bool { return has.From == "" && has.To == sc.To }) {
				all.Scripts = append(all.Scripts, sc)
			}
		}
	}
	pkg = &all
	tx, err := s.primary.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tx.Rollback(context.WithoutCancel(ctx))) }()
	r := s.runner(tx)
	to := sqlVersion(pkg.Control)
	fresh, err := r.trial(ctx, pkg, nil, to)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", pkg.Control.Name, to, err)
	}
	var proofs []UpgradeProof
	for _, from := range pkg.Versions() {
		if from == to {
			continue
		}
		if _, err := pkg.Path("", from); err != nil {
			continue // nothing to begin with
		}
		if _, err := pkg.Path(from, to); err != nil {
			continue
		}
		upgraded, err := r.trial(ctx, pkg, nil, from, to)
		if err != nil {
			return nil, fmt.Errorf("%s %s to %s: %w", pkg.Control.Name, from, to, err)
		}
		proofs = append(proofs, compareTrials(from, to, trialSchema(pkg.Control.Name), fresh, upgraded))
	}
	return proofs, nil
}

// trial installs a package in a schema of its own, at the first version, upgrades
// it to the others, and returns what is then there, or what look makes of it. All
// is undone.
func (r *runner) trial(ctx context.Context, pkg *pack.Package, look func(pgx.Tx, []catalog.Object) ([]catalog.Object, error), versions ...string) (objects []catalog.Object, err error) {
	err = pgx.BeginFunc(ctx, r.tx, func(inner pgx.Tx) error {
		step := Step{Action: Install, Name: pkg.Control.Name, Mode: Module, pkg: pkg, Schema: trialSchema(pkg.Control.Name), MakeSchema: true}
		schemas := r.s.primary.o.targetSchemas()
		if _, installed := schemas[step.Name]; !installed {
			schemas[step.Name] = step.Schema
		}
		before, err := catalog.Capture(ctx, inner)
		if err != nil {
			return err
		}
		if err := r.exec(ctx, &step, "CREATE SCHEMA "+quoteIdent(step.Schema)); err != nil {
			return err
		}
		for _, v := range versions {
			step.From, step.To, step.scripts, step.SQL = step.To, v, nil, nil
			if err := step.writeSQL(r.s.primary.o, offer{name: step.Name, version: v}, schemas, r.s.cfg.enforced); err != nil {
				return err
			}
			for _, sc := range step.scripts {
				if _, err := r.run(ctx, &step, sc); err != nil {
					return err
				}
			}
			step.Action = Upgrade
		}
		diff, err := before.Difference(ctx, inner)
		if err != nil {
			return err
		}
		objects = slices.DeleteFunc(diff.Created, func(o catalog.Object) bool {
			return o.Type == "schema" && o.Names[0] == step.Schema
		})
		if look != nil {
			if objects, err = look(inner, objects); err != nil {
				return err
			}
		}
		return errRollback
	})
	if !errors.Is(err, errRollback) {
		return nil, err
	}
	return objects, nil
}

var errRollback = errors.New("rolled back on purpose")

// trialSchema is where a package is tried.
func trialSchema(name string) string {
	name = "rideau_trial_" + name
	for len(name) > 63 {
		name = name[:len(name)-1]
	}
	return name
}

func compareTrials(from, to string, schema string, fresh, upgraded []catalog.Object) UpgradeProof {
	p := UpgradeProof{From: from, To: to}
	byName := map[string]catalog.Object{}
	for _, o := range fresh {
		byName[objectText(relative(o, schema))] = o
	}
	for _, o := range upgraded {
		text := objectText(relative(o, schema))
		f, ok := byName[text]
		switch {
		case !ok:
			p.Extra = append(p.Extra, text)
		case f.MD5 != o.MD5:
			p.Differ = append(p.Differ, text)
		}
		delete(byName, text)
	}
	p.Missing = append(p.Missing, names(byName)...)
	return p
}
