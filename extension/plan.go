package extension

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"rideau/extension/depend"
	"rideau/extension/pack"
	"rideau/extension/resolve"
	"rideau/extension/script"
)

// An Action is what a step does.
type Action string

// The actions.
const (
	Install   Action = "install"
	Upgrade   Action = "upgrade"
	Uninstall Action = "uninstall"
	Adopt     Action = "adopt"
)

// A Plan is all that an apply will do to one database and to the nodes that
// serve it, in this order: Files, Paths, Preload, Steps in one transaction, System,
// Remove.
type Plan struct {
	Request     Request  `json:"request"`
	Node        string   `json:"node"` // the primary
	Database    string   `json:"database"`
	Role        string   `json:"role"`
	Version     string   `json:"postgresql"`
	Standbys    []string `json:"standbys,omitempty"`
	Fingerprint string   `json:"fingerprint"`    // of what was observed
	Pool        string   `json:"pool,omitempty"` // the same, of the standbys

	Files   []NodeFile     `json:"files,omitempty"`
	Paths   []NodeSetting  `json:"paths,omitempty"`   // search paths that must lead to Files
	Preload []string       `json:"preload,omitempty"` // libraries that a restart must load before Steps can be done
	Steps   []Step         `json:"steps"`
	System  []SystemChange `json:"system,omitempty"`
	Remove  []Removal      `json:"remove,omitempty"` // files that no database needs then

	// Forget lists extensions of which the ledger has an entry that is to go, after
	// somebody's DROP EXTENSION.
	Forget []string `json:"forget,omitempty"`
	// Restart lists what takes effect only when every node has been restarted.
	Restart []string `json:"restart,omitempty"`
	// Notes are what must be known before.
	Notes []string `json:"notes,omitempty"`
	// Kept are the installed ones that the resolution leaves as they are.
	Kept []string `json:"kept,omitempty"`

	because map[string][]string // of all that will be there: who needs it
	lead    map[string][]string // by node: files that are there, and must be found
}

// A Step is what happens to one extension.
type Step struct {
	Action  Action   `json:"action"`
	Name    string   `json:"name"`
	From    string   `json:"from,omitempty"` // version now; empty if not installed
	To      string   `json:"to,omitempty"`   // version then
	Mode    Mode     `json:"mode"`
	Why     string   `json:"why,omitempty"`     // this mode
	Because []string `json:"because,omitempty"` // who needs it
	Schema  string   `json:"schema,omitempty"`
	// MakeSchema: the schema is not there, and is made.
	MakeSchema bool   `json:"make_schema,omitempty"`
	Shelf      string `json:"shelf,omitempty"`
	SHA256     string `json:"sha256,omitempty"` // of the package
	Signed     bool   `json:"signed,omitempty"`
	// SQL is what is executed, in order; @extschema@ and its like are already
	// replaced. For a saved plan it is the proof that the same will happen.
	SQL      []string       `json:"sql"`
	Settings []pack.Setting `json:"settings,omitempty"` // scopes database and role

	pkg      *pack.Package
	scripts  []stepScript
	cascade  bool
	modified bool
	in       *Installed     // what is installed now
	ddl      []string       // what has PostgreSQL do it, in modes native and path
	resets   []string       // settings of the version before
	recorded []pack.Setting // what the ledger is to say that was set for it
	system   []pack.Setting // scope system
}

// A stepScript is one file of a step, ready to be executed.
type stepScript struct {
	file       string
	from, to   string
	statements []script.Statement
}

// A NodeFile is a file that is brought to a node before anything else is done.
type NodeFile struct {
	Node      string `json:"node"`
	Extension string `json:"extension"`
	Path      string `json:"path"` // absolute, on the node
	Size      int    `json:"size"`
	SHA256    string `json:"sha256"`

	data []byte
}

// A NodeSetting is one ALTER SYSTEM on one node, before the transaction.
type NodeSetting struct {
	Node  string `json:"node"`
	Name  string `json:"name"`
	Value string `json:"value"`
}

// SQL is the statement.
func (s NodeSetting) SQL() string { return s.change().SQL() }

func (s NodeSetting) change() SystemChange {
	return SystemChange{Name: s.Name, Values: []string{s.Value}}
}

// A SystemChange is one ALTER SYSTEM on every node, after the transaction.
type SystemChange struct {
	Name    string   `json:"name"`
	Values  []string `json:"values"`
	List    bool     `json:"list"`    // each value an element, else there is one
	Restart bool     `json:"restart"` // it takes effect at the next start only
	For     string   `json:"for"`     // the extension
}

// SQL is the statement. A list is written element by element: as one string it
// would name one library with a comma in its name, and no server starts with
// that.
func (c SystemChange) SQL() string {
	values := make([]string, len(c.Values))
	for i, v := range c.Values {
		values[i] = quoteLiteral(v)
	}
	if len(values) == 0 {
		values = []string{"''"}
	}
	return "ALTER SYSTEM SET " + quoteSetting(c.Name) + " = " + strings.Join(values, ", ")
}

// A Request is what somebody wants of one database.
type Request struct {
	Install   []Wish            `json:"install,omitempty"`
	Upgrade   []Wish            `json:"upgrade,omitempty"` // of what is installed; a nil range: as far as it goes
	Uninstall []string          `json:"uninstall,omitempty"`
	Cascade   bool              `json:"cascade,omitempty"`  // with all that depends on them
	Modified  bool              `json:"modified,omitempty"` // also what was changed by hand
	Held      map[string]string `json:"held,omitempty"`     // names that must stay at their version, and why

	Mode      Mode `json:"mode,omitempty"`       // for all that have none of their own
	NoConf    bool `json:"no_conf,omitempty"`    // leave foo.conf alone
	AllowOpen bool `json:"allow_open,omitempty"` // execute scripts in schemas where others may create
	AllowSkew bool `json:"allow_skew,omitempty"` // nodes may have different libraries
}

// A Wish is one extension that is wanted.
type Wish struct {
	Name   string       `json:"name"`
	Range  depend.Range `json:"range,omitempty"`
	Schema string       `json:"schema,omitempty"`
	Mode   Mode         `json:"mode,omitempty"`
	// Exact and SHA256 come from a lock file: this version, this package.
	SHA256 string `json:"sha256,omitempty"`
}

// ParseWish reads what people write on a command line: "foo", "foo=1.0",
// "foo>=1.1,<2", "foo (>= 1.1)".
func ParseWish(text string) (Wish, error) {
	at := strings.IndexAny(text, "<>=!~ (")
	if at < 0 {
		at = len(text)
	}
	name, rest := text[:at], strings.TrimSpace(text[at:])
	rest = strings.TrimSuffix(strings.TrimPrefix(rest, "("), ")")
	if err := depend.CheckName(name); err != nil {
		return Wish{}, err
	}
	if rest == "" {
		return Wish{Name: name}, nil
	}
	r, err := depend.ParseRange(rest)
	if err != nil {
		return Wish{}, fmt.Errorf("%q: %w", text, err)
	}
	return Wish{Name: name, Range: r}, nil
}

// Hash is of all that the plan says will be done.
func (p *Plan) Hash() string {
	text, err := json.Marshal(p)
	if err != nil {
		panic(fmt.Sprintf("extension: cannot marshal a plan: %v", err)) // plain values only
	}
	return hashOf(text)
}

// Empty says that there is nothing to do.
func (p *Plan) Empty() bool {
	return len(p.Steps) == 0 && len(p.Files) == 0 && len(p.System) == 0 && len(p.Preload) == 0 && len(p.Paths) == 0 && len(p.Remove) == 0 && len(p.Forget) == 0
}

// A selection is all that a plan is made of, besides what was observed.
type selection struct {
	choices  []resolve.Choice
	offers   map[string]offer      // of the choices, by name
	modes    map[string]modeChoice // of the choices that are not kept
	packages map[string]*pack.Package
	digests  map[string]string
	settings map[string]settingInfo
	enforced func(Rule) bool
	lists    map[string][]string // the lists of libraries as the next start will have them
}

// settingInfo is what pg_settings says of a parameter.
type settingInfo struct {
	Context string // "postmaster", "sighup", ...; empty: nobody has defined it
	MaySet  bool   // by GRANT SET ON PARAMETER, from 15 on
}

// decide makes the plan. It is a pure function of its arguments.
func decide(o *Observed, req Request, s selection) (*Plan, error) {
	p := &Plan{
		Request: req, Node: o.Node, Database: o.Database, Role: o.Role.Name, Version: o.VersionText,
		Fingerprint: o.Fingerprint(), Steps: []Step{}, because: map[string][]string{},
	}
	made := map[string]bool{} // schemas that a step makes
	schemas := o.targetSchemas()
	for _, c := range s.choices {
		if c.Name == postgresql {
			continue
		}
		if c.Version == "" {
			in, _ := o.Find(c.Name) // the resolver takes away only what is there
			step, err := uninstallStep(o, in, req, schemas)
			if err != nil {
				return nil, err
			}
			p.Steps = append(p.Steps, step)
			if in.Entry != nil && len(in.Entry.Settings) > 0 && !o.Ledger.Trusted {
				p.Notes = append(p.Notes, fmt.Sprintf("what foo.conf of %s has set stays: it is recorded in a ledger of role %q, which is not followed with the rights of %q", c.Name, o.Ledger.Owner, o.Role.Name))
			}
			delete(schemas, c.Name)
			continue
		}
		p.because[c.Name] = c.Because
		if c.Was == c.Version {
			p.Kept = append(p.Kept, c.Name)
			continue
		}
		step := Step{
			Action: Install, Name: c.Name, From: c.Was, To: c.Version, Because: c.Because,
			Mode: s.modes[c.Name].Mode, Why: s.modes[c.Name].Why,
			pkg: s.packages[c.Name], SHA256: s.digests[c.Name],
		}
		of := s.offers[c.Name]
		if r := of.release; r != nil && step.pkg != nil {
			step.Shelf, step.Signed = r.shelf.Name(), r.signed()
		}
		var err error
		if c.Was != "" {
			step.Action = Upgrade
			step.in, _ = o.Find(c.Name)
			step.Schema = step.in.Schema
		} else if step.Schema, step.MakeSchema, err = targetSchema(o, of, step.Mode, req, made); err != nil {
			return nil, err
		}
		if step.MakeSchema {
			made[step.Schema] = true
		}
		schemas[c.Name] = step.Schema
		if err := step.writeSQL(o, of, schemas, s.enforced); err != nil {
			return nil, err
		}
		if err := p.addSettings(o, &step, req, s); err != nil {
			return nil, err
		}
		step.recorded = slices.Concat(step.Settings, step.system)
		if step.in != nil && step.in.Entry != nil {
			if req.NoConf {
				step.recorded = step.in.Entry.Settings
			} else if step.pkg != nil {
				step.resets = resetSettings(o, step.in, step.Settings)
				step.SQL = append(step.SQL, step.resets...)
			}
		}
		if note := schemaNote(o, step, of, req); note != "" {
			p.Notes = append(p.Notes, note)
		}
		p.Steps = append(p.Steps, step)
	}
	if err := undeclared(p.Steps); err != nil {
		return nil, err
	}
	slices.Sort(p.Kept)
	slices.Sort(p.Restart)
	p.Restart = slices.Compact(p.Restart)
	return p, nil
}

// targetSchema decides where a new extension goes.
func targetSchema(o *Observed, of offer, mode Mode, req Request, made map[string]bool) (schema string, missing bool, err error) {
	asked := ""
	for _, w := range req.Install {
		if w.Name == of.name {
			asked = w.Schema
		}
	}
	fixed := ""
	switch {
	case mode == Native:
		fixed = of.files.Schema
	case of.release != nil:
		fixed = of.release.Schema
	}
	switch {
	case fixed != "" && asked != "" && asked != fixed:
		return "", false, fmt.Errorf("%s must be in schema %q, its control file says, and %q was asked for", of.name, fixed, asked)
	case fixed != "":
		schema = fixed
	case asked != "":
		schema = asked
	default:
		schema = "public"
		if at, ok := o.Schemas[schema]; !ok || mode != Native && (len(at.Open) > 0 && !req.AllowOpen || !at.Mine && !o.Role.Superuser) {
			schema = of.name // a schema of its own is nobody else's to set traps in
		}
	}
	if strings.HasPrefix(schema, "pg_") && schema != "pg_catalog" {
		return "", false, fmt.Errorf("%s: schema %q is the system's", of.name, schema)
	}
	at, ok := o.Schemas[schema]
	if ok && mode != Native && len(at.Open) > 0 && !req.AllowOpen {
		return "", false, &OpenSchemaError{Name: of.name, Schema: schema, Who: at.Open}
	}
	return schema, !ok && !made[schema], nil
}

func schemaNote(o *Observed, s Step, of offer, req Request) string {
	public, ok := o.Schemas["public"]
	if s.Action != Install || s.Mode == Native || s.Schema != s.Name || !ok || len(public.Open) == 0 {
		return ""
	}
	if of.release != nil && of.release.Schema != "" || slices.ContainsFunc(req.Install, func(w Wish) bool { return w.Name == s.Name && w.Schema != "" }) {
		return ""
	}
	return fmt.Sprintf("%s goes to a schema of its own, because in schema \"public\" %s may create objects, and so decide what its script calls", s.Name, strings.Join(public.Open, ", "))
}

// writeSQL fills in what the step executes.
func (s *Step) writeSQL(o *Observed, of offer, schemas map[string]string, enforced func(Rule) bool) error {
	if s.MakeSchema && (s.Mode != Native && s.Mode != Path || of.files == nil || of.files.Schema == "") {
		s.SQL = append(s.SQL, "CREATE SCHEMA "+quoteIdent(s.Schema))
	}
	switch s.Mode {
	case Native, Path:
		s.SQL = append(s.SQL, s.nativeSQL(of))
		s.ddl = slices.Clone(s.SQL)
		return nil
	}
	path, err := s.pkg.Path(s.From, s.To)
	if err != nil {
		return err
	}
	for _, sc := range path {
		text, err := script.Substitute(sc.SQL, script.Substitution{
			File: sc.File, Schema: s.Schema, Relocatable: s.pkg.Control.Relocatable, Owner: o.Role.Name,
			Required: schemas, ModulePathname: s.modulePathname(),
		})
		if err != nil {
			return fmt.Errorf("%s %s: %w", s.Name, s.To, err)
		}
		statements, err := script.Split(sc.File, text)
		if err != nil {
			return fmt.Errorf("%s %s: %w", s.Name, s.To, err)
		}
		if err := script.CheckTransaction(statements); err != nil && enforced(Transaction) {
			return fmt.Errorf("%s %s: %w", s.Name, s.To, err)
		}
		s.scripts = append(s.scripts, stepScript{sc.File, sc.From, sc.To, statements})
		for _, st := range statements {
			s.SQL = append(s.SQL, st.SQL)
		}
	}
	return nil
}

// nativeSQL is the statement that has PostgreSQL do it.
func (s *Step) nativeSQL(of offer) string {
	if s.Action == Upgrade {
		return fmt.Sprintf("ALTER EXTENSION %s UPDATE TO %s", quoteIdent(s.Name), quoteLiteral(s.To))
	}
	sql := "CREATE EXTENSION " + quoteIdent(s.Name)
	fixed := of.files != nil && of.files.Schema != "" && s.Mode == Native ||
		s.Mode == Path && s.pkg.Control.Schema != ""
	if !fixed {
		sql += " SCHEMA " + quoteIdent(s.Schema)
	}
	return sql + " VERSION " + quoteLiteral(s.To)
}

// uninstallStep plans how an extension goes.
func uninstallStep(o *Observed, in *Installed, req Request, schemas map[string]string) (Step, error) {
	s := Step{Action: Uninstall, Name: in.Name, From: in.Version, Mode: in.Mode, Schema: in.Schema, cascade: req.Cascade, modified: req.Modified, in: in}
	if in.Mode != Module {
		behaviour := " RESTRICT"
		if req.Cascade {
			behaviour = " CASCADE"
		}
		s.SQL = []string{"DROP EXTENSION " + quoteIdent(in.Name) + behaviour}
	} else if o.Ledger.Trusted && in.Entry != nil && len(in.Entry.Uninstall) > 0 {
		// A script from a ledger that somebody else can write to is not executed:
		// SET ROLE would not hold it. Dropping what is recorded, as that role, is safe.
		text, err := script.Substitute(in.Entry.Uninstall, script.Substitution{
			File: "uninstall.sql", Schema: in.Schema, Owner: o.Role.Name, Required: schemas,
		})
		if err != nil {
			return s, fmt.Errorf("%s: %w", in.Name, err)
		}
		statements, err := script.Split("uninstall.sql", text)
		if err != nil {
			return s, fmt.Errorf("%s: %w", in.Name, err)
		}
		if err := script.CheckTransaction(statements); err != nil {
			return s, fmt.Errorf("%s: %w", in.Name, err)
		}
		s.scripts = []stepScript{{file: "uninstall.sql", from: in.Version, statements: statements}}
		for _, st := range statements {
			s.SQL = append(s.SQL, st.SQL)
		}
	} else {
		s.SQL = []string{fmt.Sprintf("-- DROP of each object that schema \"extension\" has recorded for %s, in an order in which they can go", in.Name)}
	}
	s.SQL = append(s.SQL, resetSettings(o, in, nil)...)
	return s, nil
}

// addSettings plans what the package's foo.conf says.
func (p *Plan) addSettings(o *Observed, s *Step, req Request, sel selection) error {
	if s.pkg == nil || req.NoConf {
		return nil
	}
	if s.pkg.Control.Preload == "shared" && s.Action == Install {
		if err := p.addPreload(o, s, sel); err != nil {
			return err
		}
	}
	for _, set := range s.pkg.Conf {
		info := sel.settings[strings.ToLower(set.Name)]
		if set.Scope != pack.ScopeSystem {
			if !o.Role.Superuser && !info.MaySet && info.Context == "" && s.Mode != Native {
				e := &SettingError{Name: s.Name, Setting: set.Name, Role: o.Role.Name, SQL: settingSQL(o.Database, set)}
				if o.Major() >= 15 {
					e.SQL = fmt.Sprintf("GRANT SET ON PARAMETER %s TO %s", quoteSetting(set.Name), quoteIdent(o.Role.Name))
				}
				return e
			}
			role := ""
			if set.Scope == pack.ScopeRole {
				role = set.Role
			}
			was, isSet := o.Settings[role][strings.ToLower(set.Name)]
			if isLibraryList(set.Name) && isSet {
				merged, err := mergeLibraries(was, set.Value)
				if err != nil {
					return fmt.Errorf("%s: %s: %w", s.Name, set.Name, err)
				}
				set.Value = merged
			} else if isSet && was != set.Value {
				p.Notes = append(p.Notes, fmt.Sprintf("%s is %q now, and becomes %q: foo.conf of %s says so", set.Name, was, set.Value, s.Name))
			}
			s.Settings = append(s.Settings, set)
			s.SQL = append(s.SQL, settingSQL(o.Database, set))
			continue
		}
		if !o.Role.Superuser {
			return &SettingError{Name: s.Name, Setting: set.Name, Role: o.Role.Name, SQL: "ALTER SYSTEM SET " + quoteSetting(set.Name) + " = " + quoteLiteral(set.Value)}
		}
		s.system = append(s.system, set)
		change := SystemChange{Name: set.Name, Values: []string{set.Value}, For: s.Name, Restart: info.Context == "postmaster"}
		if isList(set.Name) {
			values, err := splitLibraries(set.Value)
			if err != nil {
				return fmt.Errorf("%s: %s: %w", s.Name, set.Name, err)
			}
			change.List, change.Values = true, values
			if isLibraryList(set.Name) {
				current := sel.lists[strings.ToLower(set.Name)]
				if change.Values = mergeList(current, values); len(change.Values) == len(current) {
					continue // they are all there
				}
			}
		} else if strings.Contains(set.Name, ".") && o.Major() < 17 && !slices.Contains(o.Prefixes, prefixOf(set.Name)) && s.Mode != Native {
			return fmt.Errorf("%s: foo.conf sets %s for the whole server, which ALTER SYSTEM before PostgreSQL 17 refuses for a parameter that no library has defined", s.Name, set.Name)
		}
		if change.Restart {
			p.Restart = append(p.Restart, fmt.Sprintf("%s, for %s", change.Name, s.Name))
		}
		p.System = append(p.System, change)
	}
	return nil
}

// Lists of libraries that the server, or every session, loads when it starts.
const (
	sharedPreload  = "shared_preload_libraries"
	sessionPreload = "session_preload_libraries"
	localPreload   = "local_preload_libraries"
)

// addPreload plans for an extension whose library the server must load when it
// starts, before its script can be executed.
func (p *Plan) addPreload(o *Observed, s *Step, sel selection) error {
	want := preloadNames(s)
	if !o.PreloadKnown {
		p.Notes = append(p.Notes, fmt.Sprintf("%s must be in shared_preload_libraries, which role %q may not see", strings.Join(want, ", "), o.Role.Name))
		return nil
	}
	for _, lib := range want {
		if slices.Contains(o.Preloaded, lib) {
			continue
		}
		if !o.Role.Superuser {
			return &SettingError{Name: s.Name, Setting: sharedPreload, Role: o.Role.Name,
				SQL: SystemChange{Name: sharedPreload, Values: mergeList(sel.lists[sharedPreload], want), List: true}.SQL()}
		}
		p.Preload = append(p.Preload, lib)
		p.Restart = append(p.Restart, fmt.Sprintf("%s, for %s: before it can be installed", sharedPreload, s.Name))
	}
	return nil
}

// preloadNames are the libraries that foo.conf wants preloaded, or else the
// extension's own.
func preloadNames(s *Step) []string {
	for _, set := range s.pkg.Conf {
		if strings.EqualFold(set.Name, sharedPreload) {
			if names, err := splitLibraries(set.Value); err == nil {
				return names
			}
		}
	}
	for _, lib := range libraries(s.pkg.Files) {
		return []string{strings.TrimSuffix(lib, ".so")}
	}
	return []string{s.Name}
}

// mergeList adds to a list what it does not have, at its end: the order in which
// libraries are loaded is somebody's decision.
func mergeList(list, more []string) []string {
	merged := slices.Clone(list)
	for _, v := range more {
		if !slices.Contains(merged, v) {
			merged = append(merged, v)
		}
	}
	return merged
}

// mergeLibraries is mergeList of two values as they are written.
func mergeLibraries(was, more string) (string, error) {
	a, err := splitLibraries(was)
	if err != nil {
		return "", err
	}
	b, err := splitLibraries(more)
	if err != nil {
		return "", err
	}
	merged := mergeList(a, b)
	for i, name := range merged {
		merged[i] = quoteIdent(name)
	}
	return strings.Join(merged, ", "), nil
}

func isLibraryList(name string) bool {
	switch strings.ToLower(name) {
	case sharedPreload, sessionPreload, localPreload:
		return true
	}
	return false
}

// isList says whether a parameter is a list whose elements are quoted one by one
// (GUC_LIST_QUOTE; pg_dump has the same list in dumputils.c).
func isList(name string) bool {
	switch strings.ToLower(name) {
	case "search_path", "temp_tablespaces", "unix_socket_directories":
		return true
	}
	return isLibraryList(name)
}

// settingSQL applies a setting of scope database or role.
func settingSQL(database string, set pack.Setting) string {
	whom := "DATABASE " + quoteIdent(database)
	if set.Scope == pack.ScopeRole {
		whom = "ROLE " + quoteIdent(set.Role)
	}
	value := quoteLiteral(set.Value)
	if isList(set.Name) {
		if values, err := splitLibraries(set.Value); err == nil && len(values) > 0 {
			for i := range values {
				values[i] = quoteLiteral(values[i])
			}
			value = strings.Join(values, ", ")
		}
	}
	return "ALTER " + whom + " SET " + quoteSetting(set.Name) + " = " + value
}

// resetSettings undoes what was set for an extension, where it is still so and
// nobody else wants the same: when it goes, or for what its new version does not
// set any more.
func resetSettings(o *Observed, in *Installed, stays []pack.Setting) []string {
	if in == nil || in.Entry == nil || !o.Ledger.Trusted && o.Ledger.Owner != o.Role.Name {
		return nil // what somebody else has recorded is not carried out with our rights
	}
	var sql []string
	for _, set := range in.Entry.Settings {
		same := func(other pack.Setting) bool {
			return other.Scope == set.Scope && other.Role == set.Role && strings.EqualFold(other.Name, set.Name)
		}
		role := ""
		if set.Scope == pack.ScopeRole {
			role = set.Role
		}
		now, ok := o.Settings[role][strings.ToLower(set.Name)]
		if !ok || now != set.Value && !isList(set.Name) || set.Scope == pack.ScopeSystem || slices.ContainsFunc(stays, same) ||
			slices.ContainsFunc(o.Installed, func(other Installed) bool {
				return other.Name != in.Name && other.Entry != nil && slices.ContainsFunc(other.Entry.Settings, same)
			}) {
			continue
		}
		if set.Scope == pack.ScopeRole {
			sql = append(sql, "ALTER ROLE "+quoteIdent(set.Role)+" RESET "+quoteSetting(set.Name))
		} else {
			sql = append(sql, "ALTER DATABASE "+quoteIdent(o.Database)+" RESET "+quoteSetting(set.Name))
		}
	}
	return sql
}

func prefixOf(setting string) string {
	prefix, _, _ := strings.Cut(setting, ".")
	return prefix
}

// splitLibraries reads a list parameter as the server does: elements separated
// by commas, in double quotes where they must be.
func splitLibraries(text string) ([]string, error) {
	var list []string
	for rest := strings.TrimSpace(text); rest != ""; {
		var element string
		if strings.HasPrefix(rest, `"`) {
			end := 1
			for {
				at := strings.IndexByte(rest[end:], '"')
				if at < 0 {
					return nil, fmt.Errorf("a double quote is not closed in %q", text)
				}
				element += rest[end : end+at]
				end += at + 1
				if !strings.HasPrefix(rest[end:], `"`) {
					break
				}
				element += `"`
				end++
			}
			rest = strings.TrimSpace(rest[end:])
		} else {
			at := strings.IndexByte(rest, ',')
			if at < 0 {
				at = len(rest)
			}
			element, rest = strings.TrimSpace(rest[:at]), rest[at:]
		}
		if element == "" {
			return nil, fmt.Errorf("an element is empty in %q", text)
		}
		list = append(list, element)
		if rest == "" {
			break
		}
		if rest[0] != ',' {
			return nil, fmt.Errorf("a comma is missing in %q", text)
		}
		rest = strings.TrimSpace(rest[1:])
		if rest == "" {
			return nil, fmt.Errorf("an element is empty in %q", text)
		}
	}
	return list, nil
}

func quoteIdent(name string) string { return pgx.Identifier{name}.Sanitize() }

// quoteSetting quotes a parameter's name, whose prefix is a part of its own.
func quoteSetting(name string) string {
	return pgx.Identifier(strings.Split(name, ".")).Sanitize()
}

// quoteLiteral quotes a string for any server, whatever standard_conforming_strings.
func quoteLiteral(s string) string {
	quoted := "'" + strings.ReplaceAll(strings.ReplaceAll(s, `\`, `\\`), "'", "''") + "'"
	if strings.Contains(s, `\`) {
		return " E" + quoted
	}
	return quoted
}

// names lists the keys of a map, sorted.
func names[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
