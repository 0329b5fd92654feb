package extension

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension/catalog"
	"rideau/extension/pack"
	"rideau/extension/script"
)

// An AdoptError says that what is in the database is not what the package would
// have made.
type AdoptError struct {
	Name, Version string
	Missing       []string // are not there
	Differ        []string // are there with another definition
}

func (e *AdoptError) Error() string {
	if len(e.Missing) == 0 {
		return fmt.Sprintf("cannot adopt %s %s: not as the package makes it: %s", e.Name, e.Version, strings.Join(e.Differ, ", "))
	}
	return fmt.Sprintf("cannot adopt %s %s: not in the database: %s", e.Name, e.Version, strings.Join(e.Missing, ", "))
}

// PlanAdopt plans to take charge of something that is in the database already, the
// one wish of the request: objects that a script of the package made when it was
// executed by hand, or an extension that CREATE EXTENSION made, about which the
// package knows more than the server (versioned depends and conflicts). Nothing
// but the ledger is changed by it. With Modified, objects may have other
// definitions than the package would give them; they are recorded as they are.
func (s *Session) PlanAdopt(ctx context.Context, req Request) (*Plan, error) {
	if len(req.Install) != 1 {
		return nil, fmt.Errorf("one extension is adopted at a time, not %d", len(req.Install))
	}
	w, o := req.Install[0], s.primary.o
	k := s.known(ctx, Request{})
	n, err := k.about(w.Name)
	if err != nil {
		return nil, err
	}
	in, installed := o.Find(w.Name)
	if installed && in.Entry != nil {
		return nil, fmt.Errorf("%s %s is already recorded in database %q, as %s", in.Name, in.Version, o.Database, in.Mode)
	}
	var chosen *release
	for _, v := range n.order.Sorted() {
		r := n.offers[v].release
		if r == nil || !w.Range.Allows(v, n.order) || installed && v != in.Version {
			continue
		}
		chosen = r
	}
	if chosen == nil {
		return nil, fmt.Errorf("no registry has a package of %s that could be adopted", w.Name)
	}
	pkg, err := chosen.shelf.Fetch(ctx, w.Name, chosen.Version)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", chosen.shelf.Name(), err)
	}
	digest, err := digestOf(pkg)
	if err != nil {
		return nil, err
	}
	step := Step{
		Action: Adopt, Name: w.Name, To: chosen.called(), Mode: Module, Shelf: chosen.shelf.Name(), Signed: chosen.signed(),
		SHA256: digest, Schema: w.Schema, pkg: pkg, modified: req.Modified, SQL: []string{fmt.Sprintf("-- %s is recorded in schema \"extension\"; it is not changed", w.Name)},
	}
	switch {
	case installed:
		step.Mode, step.Schema, step.in = Native, in.Schema, in
	case step.Schema == "":
		step.Schema = pkg.Control.Schema
		if step.Schema == "" {
			step.Schema = "public"
		}
	}
	if _, ok := o.Schemas[step.Schema]; !ok {
		return nil, fmt.Errorf("schema %q is not in database %q; say where %s is", step.Schema, o.Database, w.Name)
	}
	problem, err := k.problem(nil, nil, nil, nil)
	if err != nil {
		return nil, err
	}
	problem.Installed[w.Name] = k.candidate(offer{name: w.Name, version: step.To, release: chosen}, Module)
	if wrong := broken(problem); len(wrong) > 0 {
		return nil, fmt.Errorf("cannot adopt %s: %s", w.Name, strings.Join(wrong, "; "))
	}
	if !installed && pkg.Objects == nil {
		// The same SQL as an installation, to see what it makes.
		learn := step
		learn.Action, learn.SQL = Install, nil
		if err := learn.writeSQL(o, offer{name: w.Name, version: step.To, release: chosen}, map[string]string{w.Name: step.Schema}, s.cfg.enforced); err != nil {
			return nil, err
		}
	}
	return &Plan{
		Request: req, Node: o.Node, Database: o.Database, Role: o.Role.Name, Version: o.VersionText,
		Fingerprint: o.Fingerprint(), Steps: []Step{step},
	}, nil
}

// adopt finds in the database what the package would have made, and records it.
func (r *runner) adopt(ctx context.Context, s *Step, done *StepReport) error {
	if s.Mode == Native {
		var err error
		if done.Objects, err = r.memberCount(ctx, s); err != nil {
			return err
		}
		return r.record(ctx, s, nil)
	}
	wanted := s.pkg.Objects
	made, parts, err := r.tryBeside(ctx, s)
	switch {
	case err == nil && wanted == nil:
		wanted = manifest(made, trialSchema(s.Name))
	case err == nil:
	case !tellsOfScript(err) || r.tx.Conn().IsClosed():
		return err
	case wanted == nil:
		return fmt.Errorf("could not find out what %s %s is made of (a package with objects.json says so): %w", s.Name, s.To, err)
	default:
		r.report.Notes = append(r.report.Notes, fmt.Sprintf(
			"%s: only names and owners were compared, not definitions, because its script cannot be executed beside what is there: %v", s.Name, err))
	}
	identities := make([]catalog.Object, len(wanted))
	for i, o := range wanted {
		identities[i] = absolute(o, s.Schema)
	}
	found, err := catalog.Lookup(ctx, r.tx, identities)
	if err != nil {
		return err
	}
	missing := &AdoptError{Name: s.Name, Version: s.To}
	for i, o := range found {
		switch {
		case o.OID == 0:
			missing.Missing = append(missing.Missing, objectText(pack.Object{Type: identities[i].Type, Names: identities[i].Names, Args: identities[i].Args}))
		case o.Extension != "":
			return fmt.Errorf("cannot adopt %s: %s is a member of extension %q", s.Name, o, o.Extension)
		case o.Owner != "" && o.Owner != r.role:
			return fmt.Errorf("cannot adopt %s: %s belongs to role %q, and not to %q", s.Name, o, o.Owner, r.role)
		}
	}
	for _, other := range r.s.primary.o.Installed {
		if other.Mode != Module {
			continue
		}
		theirs, err := r.moduleObjects(ctx, other.Name)
		if err != nil {
			return err
		}
		for _, o := range found {
			if slices.ContainsFunc(theirs, func(t catalog.Object) bool { return o.OID != 0 && t.ClassID == o.ClassID && t.OID == o.OID }) {
				return fmt.Errorf("cannot adopt %s: %s is a part of %s", s.Name, o, other.Name)
			}
		}
	}
	if len(missing.Missing) > 0 {
		return missing
	}
	if missing.Differ, err = r.differ(ctx, s, made, found); err != nil {
		return err
	}
	differ, err := r.partsDiffer(ctx, s, parts, found)
	if err != nil {
		return err
	}
	missing.Differ = append(missing.Differ, differ...)
	if len(missing.Differ) > 0 && !s.modified {
		return missing
	}
	for _, o := range missing.Differ {
		r.report.Notes = append(r.report.Notes, fmt.Sprintf("%s: %s is not as the package makes it, and is recorded as it is", s.Name, o))
	}
	done.Objects = len(found)
	return r.record(ctx, s, found)
}

// differ lists those of the objects found whose definitions are not what the
// package has made on trial.
func (r *runner) differ(ctx context.Context, s *Step, made, found []catalog.Object) ([]string, error) {
	md5s := map[string]string{}
	for _, o := range made {
		md5s[objectText(relative(o, trialSchema(s.Name)))] = o.MD5
	}
	now, err := catalog.DescribeAlike(ctx, r.tx, found, trialSchema(s.Name), s.Schema)
	if err != nil {
		return nil, err
	}
	var list []string
	for i, o := range found {
		if want, ok := md5s[objectText(relative(o, s.Schema))]; ok && want != now[i].MD5 {
			list = append(list, o.String())
		}
	}
	return list, nil
}

// tellsOfScript says whether an error is about a script, and not about the times:
// a lock that somebody has, a session that is lost.
func tellsOfScript(err error) bool {
	var server *pgconn.PgError
	if errors.As(err, &server) {
		return !worthAnotherTry(err) && !strings.HasPrefix(server.Code, "57") && !strings.HasPrefix(server.Code, "53")
	}
	return !errors.Is(err, context.Canceled) && !errors.Is(err, context.DeadlineExceeded)
}

// tryBeside executes the script of a package in a schema of its own, and sees what
// it makes, and what is a part of that, with hashes as differ compares them.
func (r *runner) tryBeside(ctx context.Context, s *Step) (made, parts []catalog.Object, err error) {
	made, err = r.trial(ctx, s.pkg, func(tx pgx.Tx, made []catalog.Object) ([]catalog.Object, error) {
		if parts, err = partsAlike(ctx, tx, made, trialSchema(s.Name), s.Schema); err != nil {
			return nil, err
		}
		return catalog.DescribeAlike(ctx, tx, made, trialSchema(s.Name), s.Schema)
	}, s.To)
	return made, parts, err
}

// partsAlike are the indexes, triggers, rules, policies and statistics of objects,
// but those that the server makes by itself.
func partsAlike(ctx context.Context, tx pgx.Tx, of []catalog.Object, one, other string) ([]catalog.Object, error) {
	all, err := catalog.Parts(ctx, tx, of)
	if err != nil {
		return nil, err
	}
	if all, err = catalog.DescribeAlike(ctx, tx, all, one, other); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(all, func(o catalog.Object) bool {
		switch o.Type {
		case "index", "trigger", "rule", "policy", "statistics object":
		default:
			return true
		}
		last := o.Names[len(o.Names)-1]
		return o.Names[0] == "pg_toast" || o.Type == "rule" && last == "_RETURN" || o.Type == "trigger" && strings.Contains(last, "ConstraintTrigger_")
	}), nil
}

// partsDiffer lists the parts that the package has made on trial and that the
// objects found have not, or have otherwise. They may have more: an index of
// somebody's own is no other definition.
func (r *runner) partsDiffer(ctx context.Context, s *Step, made, found []catalog.Object) ([]string, error) {
	there, err := partsAlike(ctx, r.tx, found, trialSchema(s.Name), s.Schema)
	if err != nil {
		return nil, err
	}
	md5s := map[string]string{}
	for _, o := range there {
		md5s[objectText(relative(o, s.Schema))] = o.MD5
	}
	var gone, changed []string
	for _, o := range made {
		what := objectText(swapObject(relative(o, trialSchema(s.Name)), targetSchemaName, s.Schema))
		switch md5, ok := md5s[objectText(relative(o, trialSchema(s.Name)))]; {
		case !ok:
			gone = append(gone, what+" (not there)")
		case md5 != o.MD5:
			changed = append(changed, what)
		}
	}
	return append(changed, gone...), nil
}

// absolute is the opposite of relative.
func absolute(o pack.Object, schema string) catalog.Object {
	o = swapObject(o, targetSchemaName, schema)
	return catalog.Object{Type: o.Type, Names: o.Names, Args: o.Args}
}

// learn executes the script in a schema of its own, sees what it makes, and
// undoes it.
func (r *runner) learn(ctx context.Context, s *Step) ([]pack.Object, error) {
	created, err := r.trial(ctx, s.pkg, nil, s.To)
	if err != nil {
		return nil, err
	}
	return manifest(created, trialSchema(s.Name)), nil
}

// manifest names objects for objects.json.
func manifest(created []catalog.Object, schema string) []pack.Object {
	objects := []pack.Object{}
	for _, o := range created {
		objects = append(objects, relative(o, schema))
	}
	return objects
}

// Manifest installs a package in a transaction that is rolled back, and returns
// what it made: the objects.json of `rideau extension pack`.
func (s *Session) Manifest(ctx context.Context, pkg *pack.Package) (_ []pack.Object, err error) {
	tx, err := s.primary.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.RepeatableRead})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, tx.Rollback(context.WithoutCancel(ctx))) }()
	r := s.runner(tx)
	step := &Step{Action: Install, Name: pkg.Control.Name, To: sqlVersion(pkg.Control), Mode: Module, pkg: pkg}
	objects, err := r.learn(ctx, step)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", step.Name, step.To, err)
	}
	return objects, nil
}

// Check reads a package's scripts as an installation would, without a server:
// that they can be cut into statements, and control no transaction. It returns
// what a person should look at.
func Check(pkg *pack.Package) ([]script.Finding, error) {
	var findings []script.Finding
	for _, sc := range pkg.Scripts {
		statements, err := script.Split(sc.File, sc.SQL)
		if err != nil {
			return nil, err
		}
		if err := script.CheckTransaction(statements); err != nil {
			return nil, err
		}
		findings = append(findings, script.Lint(statements)...)
	}
	return findings, nil
}
