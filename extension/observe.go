package extension

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"

	"rideau/extension/depend"
	"rideau/extension/ledger"
	"rideau/extension/pack"
	"rideau/pgrepl"
)

// applicationName is how our sessions are known in pg_stat_activity.
const applicationName = "rideau extension"

// Observed is what one database of one node says about itself. It is a value:
// everything that is decided is decided from it.
type Observed struct {
	Node     string `json:"node"` // host:port, for people
	Database string `json:"database"`
	// Version is server_version_num, and VersionText what the relation
	// "postgresql (>= 15)" is compared with: "15.18", "18beta1".
	Version     int    `json:"version"`
	VersionText string `json:"version_text"`
	SystemID    string `json:"system_id,omitempty"` // empty where the role may not ask
	Standby     bool   `json:"standby"`
	Role        Role   `json:"role"`

	// Installed is sorted by name: extensions of pg_extension, and modules that
	// the ledger knows.
	Installed []Installed `json:"installed"`
	// Available are the versions whose files the server has, by name.
	Available map[string][]Available `json:"available"`

	// Preloaded is shared_preload_libraries; PreloadKnown is false where the
	// role may not read it.
	Preloaded    []string `json:"preloaded"`
	PreloadKnown bool     `json:"preload_known"`
	// ControlPath is extension_control_path, from 18 on, where it may be read.
	ControlPath string `json:"control_path,omitempty"`
	LibraryPath string `json:"library_path,omitempty"` // dynamic_library_path
	DataDir     string `json:"data_directory,omitempty"`
	LibDir      string `json:"library_directory,omitempty"` // pkglibdir
	ShareDir    string `json:"share_directory,omitempty"`

	// Schemas by name: whether others than their owner and superusers may create
	// in them, and so put traps before a script (CVE-2020-14350).
	Schemas map[string]Schema `json:"schemas"`
	// Prefixes of parameters that a loaded library has defined.
	Prefixes []string `json:"prefixes,omitempty"`

	// Ledger says whose the ledger is, and whether what it says may be carried
	// out with our rights: it may if it is ours, or a superuser's.
	Ledger LedgerState `json:"ledger"`
	// Dropped are extensions that the ledger knows and pg_extension does not, by
	// name: somebody's DROP EXTENSION.
	Dropped []string `json:"dropped,omitempty"`
	// Stored are the extensions whose files we have brought to this node: they are
	// no others' to be protected from us. Everybody sees that, by the mark in the
	// comments of their control files.
	Stored []string `json:"stored,omitempty"`
	// Store is what is there of them, where the role may look.
	Store *Store `json:"store,omitempty"`
	// Settings are those of the database ("") and of roles, as ALTER DATABASE and
	// ALTER ROLE have made them.
	Settings map[string]map[string]string `json:"settings,omitempty"`
}

// LedgerState is what must be known of the ledger before it is believed.
type LedgerState struct {
	Owner   string `json:"owner,omitempty"` // empty: there is none
	Trusted bool   `json:"trusted,omitempty"`
}

// Role is who we are on the server, and what that allows.
type Role struct {
	Name      string `json:"name"`
	Superuser bool   `json:"superuser"`
	Owner     bool   `json:"owner"`      // of the database, or a member of its owner
	OwnerRole string `json:"owner_role"` // the database's owner
	CanCreate bool   `json:"can_create"` // has CREATE on the database
	Programs  bool   `json:"programs"`   // may COPY TO PROGRAM, which is how files get there
	ReadFiles bool   `json:"read_files"` // may pg_read_binary_file
}

// A Schema as far as it matters whether a script may be executed in it.
type Schema struct {
	Owner string `json:"owner"`
	// Open names who may create in it besides us and superusers; "PUBLIC" for
	// everyone. Its owner can, if that is somebody else.
	Open []string `json:"open,omitempty"`
	Mine bool     `json:"mine"` // we may create in it
}

// Installed is an extension or a module that is in the database.
type Installed struct {
	Name    string `json:"name"`
	Version string `json:"version"`
	Schema  string `json:"schema"`
	Owner   string `json:"owner"`
	Mode    Mode   `json:"mode"`
	// Requires are names of extensions, from pg_depend.
	Requires []string `json:"requires,omitempty"`
	// Depends and Conflicts are what its package said, if one was used.
	Depends   depend.List    `json:"-"`
	Conflicts depend.List    `json:"-"`
	Provides  []pack.Provide `json:"-"`
	SHA256    string         `json:"sha256,omitempty"`
	// Entry is what the ledger has about it, nil for what was not ours to install.
	Entry *ledger.Entry `json:"-"`
}

// Available is one version of an extension whose files the server has.
type Available struct {
	Version     string   `json:"version"`
	Superuser   bool     `json:"superuser"`
	Trusted     bool     `json:"trusted"`
	Relocatable bool     `json:"relocatable"`
	Schema      string   `json:"schema,omitempty"` // fixed by its control file
	Requires    []string `json:"requires,omitempty"`
	Comment     string   `json:"comment,omitempty"`
	Default     bool     `json:"default"`
}

// Find returns what is installed under a name.
func (o *Observed) Find(name string) (*Installed, bool) {
	i, ok := slices.BinarySearchFunc(o.Installed, name, func(in Installed, name string) int { return strings.Compare(in.Name, name) })
	if !ok {
		return nil, false
	}
	return &o.Installed[i], true
}

// targetSchemas has the schema of each that is installed, by name.
func (o *Observed) targetSchemas() map[string]string {
	schemas := map[string]string{}
	for _, in := range o.Installed {
		schemas[in.Name] = in.Schema
	}
	return schemas
}

// Major is the server's major version.
func (o *Observed) Major() int { return o.Version / 10000 }

// Fingerprint changes when anything changes that a plan was made from.
func (o *Observed) Fingerprint() string {
	text, err := json.Marshal(o) // maps are written sorted
	if err != nil {
		panic(fmt.Sprintf("extension: cannot marshal what was observed: %v", err)) // strings and booleans only
	}
	return hashOf(text)
}

// hashOf is a sha256, as it is shown and recorded.
func hashOf(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// connect opens a session to one database of one node. Nothing in it is found by
// way of a schema that others can write to (CVE-2018-1058).
func connect(ctx context.Context, conninfo string) (*pgx.Conn, error) {
	parsed, err := pgrepl.ParseConfig(conninfo)
	if err != nil {
		return nil, err
	}
	config, err := pgx.ParseConfig("")
	if err != nil {
		return nil, err
	}
	config.Config = *parsed
	delete(config.RuntimeParams, "replication")
	delete(config.RuntimeParams, "gssencmode")
	if config.RuntimeParams["application_name"] == "" {
		config.RuntimeParams["application_name"] = applicationName
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 30 * time.Second
	}
	// No statement stays prepared: what it refers to changes under our own hands.
	config.DefaultQueryExecMode = pgx.QueryExecModeDescribeExec
	config.StatementCacheCapacity, config.DescriptionCacheCapacity = 0, 0
	// Who gives up does not leave a statement and its locks behind.
	config.BuildContextWatcherHandler = func(pc *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.CancelRequestContextWatcherHandler{Conn: pc, DeadlineDelay: 5 * time.Second}
	}
	config.OnNotice = func(*pgconn.PgConn, *pgconn.Notice) {}
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, sessionSQL, pgx.QueryExecModeSimpleProtocol); err != nil {
		return nil, errors.Join(err, conn.Close(context.WithoutCancel(ctx)))
	}
	return conn, nil
}

// sessionSQL is said first in every session.
const sessionSQL = `SET search_path = pg_catalog, pg_temp; SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0;
SET standard_conforming_strings = on; SET client_encoding = 'UTF8'; SET client_min_messages = warning; SET jit = off;
SET default_transaction_read_only = off; SELECT set_config(name, '0', false) FROM pg_settings WHERE name IN ('idle_session_timeout', 'transaction_timeout')`

// node is how people call the server of a session.
func nodeName(conn *pgx.Conn) string {
	c := connectedTo(conn)[0]
	if strings.HasPrefix(c.Host, "/") {
		return c.Host + ":" + strconv.Itoa(int(c.Port))
	}
	return net.JoinHostPort(c.Host, strconv.Itoa(int(c.Port)))
}

// Observe asks the database of a session everything that decisions are made of.
// It changes nothing.
func Observe(ctx context.Context, conn *pgx.Conn) (*Observed, error) {
	o := &Observed{Node: nodeName(conn), Available: map[string][]Available{}, Schemas: map[string]Schema{}}
	for _, ask := range []struct {
		what string
		do   func(context.Context, *pgx.Conn) error
	}{
		{"the server and the role", o.askServer},
		{"its settings", o.askSettings},
		{"installed extensions", o.askInstalled},
		{"available extensions", o.askAvailable},
		{"schemas", o.askSchemas},
		{"settings of the database and of roles", o.askRoleSettings},
		{"files that were brought", o.askStore},
	} {
		if err := ask.do(ctx, conn); err != nil {
			return nil, fmt.Errorf("could not observe %s of database %q at %s: %w", ask.what, conn.Config().Database, o.Node, err)
		}
	}
	return o, nil
}

func (o *Observed) askServer(ctx context.Context, conn *pgx.Conn) error {
	var maySystem bool
	err := conn.QueryRow(ctx, `
SELECT current_database(), current_setting('server_version_num')::int, pg_is_in_recovery(),
       current_user::text, r.rolsuper, pg_has_role(d.datdba, 'USAGE') OR r.rolsuper,
       has_database_privilege(d.oid, 'CREATE'),
       pg_has_role('pg_execute_server_program', 'USAGE'),
       has_function_privilege('pg_catalog.pg_read_binary_file(text)', 'EXECUTE')
         AND pg_has_role('pg_read_server_files', 'USAGE'),
       has_function_privilege('pg_catalog.pg_control_system()', 'EXECUTE'),
       pg_get_userbyid(d.datdba)::text
FROM pg_database d, pg_roles r WHERE d.datname = current_database() AND r.rolname = current_user`).Scan(
		&o.Database, &o.Version, &o.Standby, &o.Role.Name, &o.Role.Superuser, &o.Role.Owner,
		&o.Role.CanCreate, &o.Role.Programs, &o.Role.ReadFiles, &maySystem, &o.Role.OwnerRole)
	o.VersionText = fmt.Sprintf("%d.%d", o.Version/10000, o.Version%10000)
	if err != nil || !maySystem {
		return err
	}
	return conn.QueryRow(ctx, "SELECT system_identifier::text FROM pg_control_system()").Scan(&o.SystemID)
}

func (o *Observed) askSettings(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `SELECT name, setting FROM pg_settings WHERE name IN
('shared_preload_libraries', 'extension_control_path', 'dynamic_library_path', 'data_directory')`)
	if err != nil {
		return err
	}
	settings := map[string]string{}
	var name, value string
	if _, err := pgx.ForEachRow(rows, []any{&name, &value}, func() error { settings[name] = value; return nil }); err != nil {
		return err
	}
	var text string
	if text, o.PreloadKnown = settings["shared_preload_libraries"]; o.PreloadKnown {
		if o.Preloaded, err = splitLibraries(text); err != nil {
			return fmt.Errorf("shared_preload_libraries: %w", err)
		}
	}
	o.ControlPath, o.LibraryPath, o.DataDir = settings["extension_control_path"], settings["dynamic_library_path"], settings["data_directory"]
	rows, err = conn.Query(ctx, `SELECT DISTINCT split_part(name, '.', 1) FROM pg_settings WHERE name LIKE '%.%' ORDER BY 1`)
	if err != nil {
		return err
	}
	if o.Prefixes, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		return err
	}
	var may bool // a function in FROM is checked for permission even if no row is asked of it
	if err := conn.QueryRow(ctx, "SELECT has_function_privilege('pg_catalog.pg_config()', 'EXECUTE')").Scan(&may); err != nil || !may {
		return err
	}
	return conn.QueryRow(ctx, `
SELECT max(setting) FILTER (WHERE name = 'PKGLIBDIR'), max(setting) FILTER (WHERE name = 'SHAREDIR') FROM pg_config()`).Scan(&o.LibDir, &o.ShareDir)
}

func (o *Observed) askInstalled(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT e.extname::text, e.extversion, n.nspname::text, r.rolname::text,
  ARRAY(SELECT x.extname::text FROM pg_depend d JOIN pg_extension x ON x.oid = d.refobjid
        WHERE d.classid = 'pg_extension'::regclass AND d.objid = e.oid
        AND d.refclassid = 'pg_extension'::regclass AND d.deptype = 'n' ORDER BY 1)
FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace JOIN pg_roles r ON r.oid = e.extowner`)
	if err != nil {
		return err
	}
	o.Installed, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Installed, error) {
		in := Installed{Mode: Native}
		return in, row.Scan(&in.Name, &in.Version, &in.Schema, &in.Owner, &in.Requires)
	})
	if err != nil {
		return err
	}
	state, err := ledger.Read(ctx, conn)
	if err != nil {
		return err
	}
	if state != nil {
		if err := o.askLedger(ctx, conn, state.Owner); err != nil {
			return err
		}
		o.addLedger(state)
	}
	slices.SortFunc(o.Installed, func(a, b Installed) int { return strings.Compare(a.Name, b.Name) })
	return nil
}

// addLedger adds what the ledger knows: modules, and about extensions that came
// from a package what the catalogs have no room for. What pg_extension says is
// never overruled: the ledger's tables may be somebody's to write to.
func (o *Observed) addLedger(state *ledger.State) {
	for i := range state.Installed {
		e := &state.Installed[i]
		at := slices.IndexFunc(o.Installed, func(in Installed) bool { return in.Name == e.Name })
		mode := Mode(e.Mode)
		switch {
		case at < 0 && mode == Module:
			o.Installed = append(o.Installed, Installed{Name: e.Name, Version: e.Version, Schema: e.Schema, Owner: e.InstalledBy, Mode: Module})
			at = len(o.Installed) - 1
		case at < 0: // dropped without us: doctor says so
			o.Dropped = append(o.Dropped, e.Name)
			continue
		case mode == Module:
			continue // created without us
		case mode == Path, mode == Graft && o.Ledger.Trusted:
			o.Installed[at].Mode = mode
		}
		in := &o.Installed[at]
		in.Entry = e
		if e.Version == in.Version { // else it was updated without us, and what we know is of another version
			in.SHA256, in.Depends, in.Conflicts, in.Provides = e.SHA256, e.Depends, e.Conflicts, e.Provides
		}
	}
}

func (o *Observed) askAvailable(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT v.name::text, v.version, v.superuser, v.trusted, v.relocatable, coalesce(v.schema::text, ''),
       coalesce(v.requires::text[], '{}'), coalesce(v.comment, ''), v.version IS NOT DISTINCT FROM d.default_version,
       coalesce(right(d.comment, length($1::text)) = $1, false)
FROM pg_available_extension_versions() v LEFT JOIN pg_available_extensions() d ON d.name = v.name
ORDER BY 1, 2`, broughtMark)
	if err != nil {
		return err
	}
	var name string
	var a Available
	var ours bool
	_, err = pgx.ForEachRow(rows, []any{&name, &a.Version, &a.Superuser, &a.Trusted, &a.Relocatable, &a.Schema, &a.Requires, &a.Comment, &a.Default, &ours}, func() error {
		o.Available[name] = append(o.Available[name], a)
		if ours && !slices.Contains(o.Stored, name) {
			o.Stored = append(o.Stored, name)
		}
		a.Requires = nil
		return nil
	})
	return err
}

func (o *Observed) askSchemas(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, "SELECT n.nspname::text, pg_get_userbyid(n.nspowner)::text, "+openTo+`,
has_schema_privilege(n.oid, 'CREATE') FROM pg_namespace n WHERE n.nspname !~ '^pg_(toast|temp)'`)
	if err != nil {
		return err
	}
	var name, owner string
	var open []string
	var mine bool
	_, err = pgx.ForEachRow(rows, []any{&name, &owner, &open, &mine}, func() error {
		o.Schemas[name] = Schema{Owner: owner, Open: open, Mine: mine}
		open = nil
		return nil
	})
	return err
}

// openTo lists who may create in schema n, besides us and superusers: its owner
// can, and members of a role can what the role can. Nobody is a member of
// pg_database_owner but the database's owner.
const openTo = `ARRAY(
  SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE g.rolname::text END
  FROM (SELECT grantee, privilege_type FROM aclexplode(coalesce(n.nspacl, acldefault('n', n.nspowner)))
        UNION ALL SELECT n.nspowner, 'CREATE') a
  LEFT JOIN pg_roles r ON r.oid = a.grantee
  LEFT JOIN pg_roles g ON g.oid = CASE WHEN r.rolname = 'pg_database_owner'
                                       THEN (SELECT datdba FROM pg_database WHERE datname = current_database()) ELSE a.grantee END
  WHERE a.privilege_type = 'CREATE' AND (a.grantee = 0 OR NOT g.rolsuper AND g.rolname <> current_user) ORDER BY 1)`

// askLedger asks whose the ledger is.
func (o *Observed) askLedger(ctx context.Context, conn *pgx.Conn, owner string) error {
	o.Ledger.Owner = owner
	return conn.QueryRow(ctx, "SELECT rolsuper OR rolname = current_user FROM pg_roles WHERE rolname = $1", owner).Scan(&o.Ledger.Trusted)
}

// askRoleSettings asks for what ALTER DATABASE and ALTER ROLE have set. A
// setting of a role in one database only is not ours to make, nor to undo.
func (o *Observed) askRoleSettings(ctx context.Context, conn *pgx.Conn) error {
	rows, err := conn.Query(ctx, `
SELECT CASE WHEN s.setrole = 0 THEN '' ELSE pg_get_userbyid(s.setrole)::text END, c
FROM pg_db_role_setting s, unnest(s.setconfig) c
WHERE s.setrole = 0 AND s.setdatabase = (SELECT oid FROM pg_database WHERE datname = current_database()) OR s.setrole <> 0 AND s.setdatabase = 0`)
	if err != nil {
		return err
	}
	o.Settings = map[string]map[string]string{}
	var role, line string
	_, err = pgx.ForEachRow(rows, []any{&role, &line}, func() error {
		if o.Settings[role] == nil {
			o.Settings[role] = map[string]string{}
		}
		name, value, _ := strings.Cut(line, "=")
		o.Settings[role][strings.ToLower(name)] = value
		return nil
	})
	return err
}
