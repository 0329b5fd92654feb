package extension

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/wal"
)

// Where files go that we bring to a node: a folder in its data directory, because
// that is what the server can write to, and what a base backup copies, so that a
// standby made later has them too.
const (
	storeName       = "rideau"
	rehearsalSuffix = "-rehearsal" // of a dry run; removed at its end
)

// store is the node's folder for our files.
func (n *node) store(dry bool) string {
	root := path.Join(n.o.DataDir, storeName)
	if dry {
		root += rehearsalSuffix
	}
	return root
}

// files lists what must be on the nodes before the steps. A rehearsal needs them
// on the primary only.
func (s *Session) files(p *Plan, dry bool) ([]NodeFile, error) {
	nodes := s.nodes()
	if dry {
		nodes = []*node{s.primary}
	}
	var list []NodeFile
	for i := range p.Steps {
		step := &p.Steps[i]
		if step.pkg == nil || step.Mode != Path && step.Mode != Graft {
			continue
		}
		files, err := stepFiles(step)
		if err != nil {
			return nil, err
		}
		for _, n := range nodes {
			for _, name := range names(files) {
				sum := sha256.Sum256(files[name])
				list = append(list, NodeFile{
					Node: n.o.Node, Extension: step.Name, Path: path.Join(n.store(dry), name),
					Size: len(files[name]), SHA256: hex.EncodeToString(sum[:]), data: files[name],
				})
			}
		}
	}
	return list, nil
}

// stepFiles are the files of a step, by their place below the store.
func stepFiles(s *Step) (map[string][]byte, error) {
	files := map[string][]byte{}
	if s.Mode == Path {
		native, err := s.pkg.Native()
		if err != nil {
			return nil, err
		}
		for name, data := range native {
			files["extension/"+name] = data
		}
	}
	for _, f := range s.pkg.Files {
		if !strings.HasPrefix(f.Path, "lib/") {
			return nil, fmt.Errorf("%s has the file %s, which the server would look for in its share directory: install it there, or the operating system's package of %s", s.Name, f.Path, s.Name)
		}
		files[f.Path] = f.Data
	}
	return files, nil
}

// hasLibraries says whether a step brings libraries.
func (s *Step) hasLibraries() bool {
	return s.pkg != nil && (s.Mode == Path || s.Mode == Graft) && len(libraries(s.pkg.Files)) > 0
}

// modulePathname replaces MODULE_PATHNAME in a script that we execute: a name
// without a folder is looked for along dynamic_library_path, on each node its own.
func (s *Step) modulePathname(*Observed) string {
	name := s.pkg.Control.ModulePathname
	if libs := libraries(s.pkg.Files); len(libs) > 0 {
		name = strings.TrimPrefix(name, "$libdir/")
	}
	return name
}

// withElement adds a folder to a search path of the server, and never takes
// $libdir or $system away: without $libdir a standby cannot even load its
// walreceiver.
func withElement(searchPath, folder string) string {
	elements := strings.Split(searchPath, ":")
	if searchPath == "" {
		elements = nil
	}
	if slices.Contains(elements, folder) {
		return searchPath
	}
	return strings.Join(append(elements, folder), ":")
}

// bring writes files to their nodes, and reads them back.
func (s *Session) bring(ctx context.Context, files []NodeFile) error {
	for _, n := range s.nodes() {
		for _, f := range files {
			if f.Node != n.o.Node {
				continue
			}
			has, err := n.fileHash(ctx, f.Path)
			if err != nil {
				return err
			}
			if has == f.SHA256 {
				continue
			}
			s.cfg.Log.Info("file to node", "node", f.Node, "file", f.Path, "bytes", f.Size)
			if err := n.write(ctx, f.Path, f.data); err != nil {
				return fmt.Errorf("could not bring %s to %s: %w", f.Path, f.Node, err)
			}
			if has, err = n.fileHash(ctx, f.Path); err != nil {
				return err
			}
			if has != f.SHA256 {
				return fmt.Errorf("%s at %s is not what was written: its sha256 is %s, want %s", f.Path, f.Node, cmpOr(has, "not to be had"), f.SHA256)
			}
		}
	}
	return nil
}

func cmpOr(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

// fileHash is the sha256 of a file on a node, "" if there is none.
func (n *node) fileHash(ctx context.Context, name string) (string, error) {
	var sum string
	err := n.conn.QueryRow(ctx, "SELECT encode(sha256(pg_read_binary_file($1)), 'hex')", name).Scan(&sum)
	var server *pgconn.PgError
	if errors.As(err, &server) && server.Code == "58P01" { // undefined_file
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("could not read %s at %s: %w", name, n.o.Node, err)
	}
	return sum, nil
}

// copyPiece is how much of a file travels in one statement: well below the limit
// of 1 GB for a value, and it bounds the memory of both ends.
const copyPiece = 8 << 20

// write writes a file on a node, which may be a standby: COPY TO PROGRAM changes
// nothing in the database. The file is under its name only when it is whole.
func (n *node) write(ctx context.Context, name string, data []byte) error {
	dir, tmp := path.Dir(name), name+".tmp"
	for first := true; first || len(data) > 0; first = false {
		piece := data[:min(len(data), copyPiece)]
		data = data[len(piece):]
		program := "base64 -d >> " + shellQuote(tmp)
		if first {
			program = fmt.Sprintf("umask 077 && mkdir -p %s && base64 -d > %s", shellQuote(dir), shellQuote(tmp))
		}
		if len(data) == 0 {
			program += fmt.Sprintf(" && sync %[1]s && mv %[1]s %[2]s && sync %[3]s", shellQuote(tmp), shellQuote(name), shellQuote(dir))
		}
		sql := fmt.Sprintf("COPY (SELECT %s) TO PROGRAM %s", quoteLiteral(base64.StdEncoding.EncodeToString(piece)), quoteLiteral(program))
		if _, err := n.conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return err
		}
	}
	return nil
}

// removeRehearsal removes what a dry run has brought to the primary.
func (s *Session) removeRehearsal(ctx context.Context) error {
	root := s.primary.store(true)
	if !strings.HasSuffix(root, "/"+storeName+rehearsalSuffix) {
		return fmt.Errorf("extension: %q is no folder of a rehearsal", root)
	}
	sql := "COPY (SELECT 1) TO PROGRAM " + quoteLiteral("cat > /dev/null; rm -rf "+shellQuote(root))
	_, err := s.primary.conn.PgConn().Exec(ctx, sql).ReadAll()
	return err
}

// shellQuote quotes a word for the POSIX shell.
func shellQuote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// leadThere makes every node look into its store, from now on. It comes before
// the steps: a standby must find a library when the first row is replayed that
// needs it, and a function of it called.
func (s *Session) leadThere(ctx context.Context, p *Plan) error {
	below := func(n *node, folder string) bool {
		return slices.ContainsFunc(p.Files, func(f NodeFile) bool { return f.Node == n.o.Node && path.Dir(f.Path) == folder })
	}
	for _, n := range s.nodes() {
		control, library := path.Join(n.store(false), "extension"), path.Join(n.store(false), "lib")
		for _, set := range []struct {
			name, now, element string
			want               bool
		}{
			{"extension_control_path", n.o.ControlPath, n.store(false), below(n, control)},
			{"dynamic_library_path", n.o.LibraryPath, library, below(n, library)},
		} {
			value := withElement(set.now, set.element)
			if !set.want || value == set.now {
				continue
			}
			s.cfg.Log.Info("setting", "node", n.o.Node, "name", set.name, "value", value)
			if err := n.alterSystem(ctx, SystemChange{Name: set.name, Values: []string{value}}); err != nil {
				return err
			}
			if err := n.reload(ctx, set.name, value); err != nil {
				return err
			}
		}
	}
	return nil
}

func (n *node) alterSystem(ctx context.Context, c SystemChange) error {
	if _, err := n.conn.PgConn().Exec(ctx, c.SQL()).ReadAll(); err != nil {
		return fmt.Errorf("%s: %s: %w", n.o.Node, c.Name, err)
	}
	return nil
}

// settleTime is how long a node may take to read its configuration, or to replay
// what it has been sent.
const settleTime = time.Minute

// reload makes the node read its configuration, and waits until a session of it
// sees the value.
func (n *node) reload(ctx context.Context, name, value string) error {
	if _, err := n.conn.Exec(ctx, "SELECT pg_reload_conf()"); err != nil {
		return fmt.Errorf("%s: could not reload: %w", n.o.Node, err)
	}
	if name == "" {
		return nil
	}
	return n.eventually(ctx, fmt.Sprintf("%s to be %q", name, value), func() (bool, error) {
		var now string
		err := n.conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&now)
		return now == value, err
	})
}

// eventually asks a node until done, which it knows by itself; there is nothing
// to wait on.
func (n *node) eventually(ctx context.Context, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for {
		ok, err := done()
		if err != nil {
			return fmt.Errorf("%s: waiting for %s: %w", n.o.Node, what, err)
		}
		if ok {
			return nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return fmt.Errorf("%s: waited for %s: %w", n.o.Node, what, err)
		}
	}
}

// preload puts libraries into shared_preload_libraries of every node. The plan
// said that a restart comes next.
func (s *Session) preload(ctx context.Context, p *Plan) error {
	for _, n := range s.nodes() {
		current, err := n.nextPreload(ctx)
		if err != nil {
			return err
		}
		c := SystemChange{Name: sharedPreload, Values: mergeList(current, p.Preload), List: true}
		if len(c.Values) == len(current) {
			continue
		}
		s.cfg.Log.Info("setting", "node", n.o.Node, "name", c.Name, "value", strings.Join(c.Values, ", "))
		if err := n.alterSystem(ctx, c); err != nil {
			return err
		}
	}
	return &RestartError{Nodes: nodeNames(s.nodes()), Libraries: p.Preload}
}

// nextPreload is shared_preload_libraries as the next start of the node will
// have it: somebody may have added to it since the last one.
func (n *node) nextPreload(ctx context.Context) ([]string, error) {
	if !n.o.Role.Superuser {
		return n.o.Preloaded, nil
	}
	var text string
	err := n.conn.QueryRow(ctx, `SELECT setting FROM pg_file_settings WHERE name = 'shared_preload_libraries' ORDER BY seqno DESC LIMIT 1`).Scan(&text)
	if errors.Is(err, pgx.ErrNoRows) {
		return n.o.Preloaded, nil
	} else if err != nil {
		return nil, fmt.Errorf("%s: shared_preload_libraries: %w", n.o.Node, err)
	}
	return splitLibraries(text)
}

// afterCommit does what cannot be in a transaction: settings of the servers, and
// a look whether every standby can use what was installed.
func (s *Session) afterCommit(ctx context.Context, p *Plan, report *Report) error {
	for _, c := range p.System {
		for _, n := range s.nodes() {
			if strings.EqualFold(c.Name, sharedPreload) {
				current, err := n.nextPreload(ctx)
				if err != nil {
					return err
				}
				c.Values = mergeList(current, c.Values)
			}
			s.cfg.Log.Info("setting", "node", n.o.Node, "name", c.Name, "value", strings.Join(c.Values, ", "))
			if err := n.alterSystem(ctx, c); err != nil {
				return err
			}
			if err := n.reload(ctx, "", ""); err != nil {
				return err
			}
		}
	}
	if len(s.standbys) == 0 {
		return nil
	}
	var at string
	if err := s.primary.conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&at); err != nil {
		return err
	}
	lsn, err := wal.ParseLSN(at)
	if err != nil {
		return err
	}
	for _, n := range s.standbys {
		if err := n.replayed(ctx, lsn); err != nil {
			return err
		}
		for i := range p.Steps {
			if p.Steps[i].Action == Uninstall {
				continue
			}
			note, err := n.probe(ctx, &p.Steps[i])
			if err != nil {
				return err
			}
			if note != "" && !slices.Contains(report.Notes, note) {
				report.Notes = append(report.Notes, note)
			}
		}
	}
	return nil
}

// replayed waits until a standby has replayed what was committed.
func (n *node) replayed(ctx context.Context, lsn wal.LSN) error {
	return n.eventually(ctx, "WAL to be replayed up to "+lsn.String(), func() (bool, error) {
		var ok bool
		err := n.conn.QueryRow(ctx, "SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false)", lsn.String()).Scan(&ok)
		return ok, err
	})
}

// probe loads the libraries of an extension on a node, as a function of it would.
func (n *node) probe(ctx context.Context, s *Step) (note string, err error) {
	rows, err := n.conn.Query(ctx, `
SELECT DISTINCT p.probin FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid JOIN pg_proc p ON p.oid = d.objid
WHERE d.refclassid = 'pg_extension'::regclass AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
AND e.extname = $1 AND p.probin IS NOT NULL ORDER BY 1`, s.Name)
	if err != nil {
		return "", err
	}
	libs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", err
	}
	if len(libs) > 0 && !n.o.Role.Superuser {
		return fmt.Sprintf("whether %s can be loaded on the standbys was not tried: that needs a superuser", strings.Join(libs, ", ")), nil
	}
	for _, lib := range libs {
		if err := n.load(ctx, lib); err != nil {
			return "", fmt.Errorf("%s is installed on the primary, and %s cannot load its library: %w", s.Name, n.o.Node, err)
		}
	}
	return "", nil
}

// load loads a library, as the call of a function would: from 18 on that looks
// for $libdir/foo along dynamic_library_path, and LOAD does not.
func (n *node) load(ctx context.Context, lib string) error {
	if simple, ok := strings.CutPrefix(lib, "$libdir/"); ok && n.o.Major() >= firstControlPath && !strings.Contains(simple, "/") {
		lib = simple
	}
	_, err := n.conn.PgConn().Exec(ctx, "LOAD "+quoteLiteral(lib)).ReadAll()
	return err
}

// serverLibraries lists the libraries that the files of an extension on a node
// refer to: "hstore" for $libdir/hstore. Nil, false where the role may not look.
func (n *node) serverLibraries(ctx context.Context, name string) ([]string, bool, error) {
	if !n.o.Role.Superuser || n.o.ShareDir == "" {
		return nil, false, nil
	}
	rows, err := n.conn.Query(ctx, `
SELECT DISTINCT regexp_replace(m[1], '\.so$', '')
FROM (SELECT $1::text || '/extension/' AS dir) d,
LATERAL pg_ls_dir(d.dir) f,
LATERAL (SELECT pg_read_file(d.dir || f) AS t WHERE f = $2::text || '.control' OR starts_with(f, $2::text || '--')) x,
LATERAL regexp_matches(x.t, '''\$libdir/([^'']+)''', 'g') m ORDER BY 1`, n.o.ShareDir, name)
	if err != nil {
		return nil, false, err
	}
	libs, err := pgx.CollectRows(rows, pgx.RowTo[string])
	return libs, true, err
}

// skew compares the nodes for the extensions that the server has files of. What
// is missing and can be written is given as files to bring.
func (s *Session) skew(ctx context.Context, p *Plan) (bring []NodeFile, problems []NodeProblem, notes []string, err error) {
	for i := range p.Steps {
		step := &p.Steps[i]
		if step.Action == Uninstall || step.Mode != Native {
			continue
		}
		b, pr, nt, err := s.skewOf(ctx, step.Name, step.To)
		if err != nil {
			return nil, nil, nil, err
		}
		bring, problems, notes = append(bring, b...), append(problems, pr...), append(notes, nt...)
	}
	return bring, problems, notes, nil
}

func (s *Session) skewOf(ctx context.Context, name, version string) (bring []NodeFile, problems []NodeProblem, notes []string, err error) {
	libs, known, err := s.primary.serverLibraries(ctx, name)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("%s: could not find out which libraries %s needs: %w", s.primary.o.Node, name, err)
	}
	for _, n := range s.standbys {
		has := slices.ContainsFunc(n.o.Available[name], func(a Available) bool { return a.Version == version })
		if !known {
			if !has {
				problems = append(problems, NodeProblem{n.o.Node, name, name + ".control", fmt.Sprintf("is missing, or is not that of version %s", version)})
			} else if !slices.Contains(notes, librariesNotCompared) {
				notes = append(notes, librariesNotCompared)
			}
			continue
		}
		if !has {
			notes = append(notes, fmt.Sprintf("%s has no control file and scripts of %s %s: it works there, and could not be updated after a failover to it", n.o.Node, name, version))
		}
		for _, lib := range libs {
			f, problem, err := s.compareLibrary(ctx, n, name, lib)
			if err != nil {
				return nil, nil, nil, err
			}
			if f != nil {
				bring = append(bring, *f)
			}
			if problem != nil {
				problems = append(problems, *problem)
			}
		}
	}
	return bring, problems, notes, nil
}

const librariesNotCompared = "libraries on the nodes were not compared: that needs a superuser on each"

// compareLibrary compares a library of a standby with the primary's.
func (s *Session) compareLibrary(ctx context.Context, n *node, name, lib string) (*NodeFile, *NodeProblem, error) {
	from, to := path.Join(s.primary.o.LibDir, lib+".so"), path.Join(n.o.LibDir, lib+".so")
	if !n.o.Role.ReadFiles || n.o.LibDir == "" {
		return nil, &NodeProblem{n.o.Node, name, to, "cannot be compared: the role may not read files there"}, nil
	}
	want, err := s.primary.fileHash(ctx, from)
	if err != nil {
		return nil, nil, err
	}
	if want == "" {
		return nil, &NodeProblem{s.primary.o.Node, name, from, "is missing"}, nil
	}
	has, err := n.fileHash(ctx, to)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case has == want:
		return nil, nil, nil
	case has != "":
		return nil, &NodeProblem{n.o.Node, name, to, fmt.Sprintf("differs from that of %s", s.primary.o.Node)}, nil
	}
	// From 18 on a library is looked for along dynamic_library_path, also if a
	// control file says $libdir. Before, only one folder will do.
	if s.primary.o.Major() >= firstControlPath && !strings.Contains(lib, "/") {
		to = path.Join(n.store(false), "lib", lib+".so")
		if has, err = n.fileHash(ctx, to); err != nil {
			return nil, nil, err
		}
		if has == want {
			return nil, nil, nil
		}
	} else if !n.writable(ctx, path.Dir(to)) {
		return nil, &NodeProblem{n.o.Node, name, to, fmt.Sprintf("is missing, and the server may not write there: copy it from %s, where its sha256 is %s", s.primary.o.Node, want)}, nil
	}
	data, err := s.primary.readFile(ctx, from)
	if err != nil {
		return nil, nil, err
	}
	return &NodeFile{Node: n.o.Node, Extension: name, Path: to, Size: len(data), SHA256: want, data: data}, nil, nil
}

// writable says whether the server of a node may write to a folder.
func (n *node) writable(ctx context.Context, dir string) bool {
	sql := "COPY (SELECT 1) TO PROGRAM " + quoteLiteral("cat > /dev/null; test -w "+shellQuote(dir))
	_, err := n.conn.PgConn().Exec(ctx, sql).ReadAll()
	return err == nil
}

func (n *node) readFile(ctx context.Context, name string) ([]byte, error) {
	var data []byte
	if err := n.conn.QueryRow(ctx, "SELECT pg_read_binary_file($1)", name).Scan(&data); err != nil {
		return nil, fmt.Errorf("could not read %s at %s: %w", name, n.o.Node, err)
	}
	return data, nil
}

func nodeNames(nodes []*node) []string {
	names := make([]string, len(nodes))
	for i, n := range nodes {
		names[i] = n.o.Node
	}
	return names
}
