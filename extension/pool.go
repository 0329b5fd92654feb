package extension

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension/pack"
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
		root = path.Join(n.o.DataDir, n.rehearsal)
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
			if !dry && len(files) > 0 {
				brought, err := n.toStore(step.Name, step.To, step.SHA256, files)
				if err != nil {
					return nil, err
				}
				list = append(list, brought...)
				continue
			}
			for _, name := range names(files) {
				list = append(list, NodeFile{
					Node: n.o.Node, Extension: step.Name, Path: path.Join(n.store(dry), name),
					Size: len(files[name]), SHA256: hashOf(files[name]), data: files[name],
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
			if name == s.Name+".control" {
				data = marked(data, s.pkg.Control.Comment)
			}
			files[storeControls+"/"+name] = data
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
func (s *Step) modulePathname() string {
	name := s.pkg.Control.ModulePathname
	if libs := libraries(s.pkg.Files); len(libs) > 0 {
		name = strings.TrimPrefix(name, "$libdir/")
	}
	return name
}

// What search paths of the server begin with unless somebody has changed them.
const (
	ownLibraries = "$libdir" // of dynamic_library_path
	ownControls  = "$system" // of extension_control_path; an empty one means it, too
)

// withElement adds a folder to a search path of the server, and never takes
// $libdir or $system away: without $libdir a standby cannot even load its
// walreceiver. An empty path becomes one that has the server's own folder.
func withElement(searchPath, own, folder string) string {
	elements := strings.Split(searchPath, ":")
	if searchPath == "" {
		elements = []string{own}
	}
	if slices.Contains(elements, folder) {
		return searchPath
	}
	return strings.Join(append(elements, folder), ":")
}

// bring writes files to their nodes, and reads them back. A cancellation is heeded
// between two files: a statement that is torn off takes its session with it, and
// leaves a program behind that still writes.
//
// What was there before is in the journal, if there is one.
func (s *Session) bring(ctx context.Context, files []NodeFile, j *journal) error {
	for _, n := range s.nodes() {
		for _, f := range files {
			if f.Node != n.o.Node {
				continue
			}
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.bringOne(ctx, n, f, j); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Session) bringOne(ctx context.Context, n *node, f NodeFile, j *journal) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Duration(1+len(f.data)/copyPiece)*settleTime)
	defer cancel()
	has, err := n.fileHash(ctx, f.Path)
	if err != nil || has == f.SHA256 {
		return err
	}
	s.cfg.Log.Info("file to node", "node", f.Node, "file", f.Path, "bytes", f.Size)
	if j != nil {
		before := broughtFile{n: n, path: f.Path, had: has != ""}
		if before.had {
			if before.was, err = n.readFile(ctx, f.Path); err != nil {
				return err
			}
		}
		j.files = append(j.files, before)
	}
	if err := n.write(ctx, f.Path, f.data); err != nil {
		return fmt.Errorf("could not bring %s to %s: %w", f.Path, f.Node, err)
	}
	if has, err = n.fileHash(ctx, f.Path); err != nil {
		return err
	}
	if has != f.SHA256 {
		return fmt.Errorf("%s at %s is not what was written: its sha256 is %s, want %s", f.Path, f.Node, cmp.Or(has, "not to be had"), f.SHA256)
	}
	return nil
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
// nothing in the database. The file is under its name only when it is whole, and
// until then under one that nobody else writes to.
func (n *node) write(ctx context.Context, name string, data []byte) error {
	tmp := name + "." + strings.ToLower(rand.Text()) + ".tmp"
	for first := true; first || len(data) > 0; first = false {
		piece := data[:min(len(data), copyPiece)]
		data = data[len(piece):]
		program := writeProgram(name, tmp, first, len(data) == 0)
		sql := fmt.Sprintf("COPY (SELECT %s) TO PROGRAM %s", quoteLiteral(base64.StdEncoding.EncodeToString(piece)), quoteLiteral(program))
		if _, err := n.conn.PgConn().Exec(ctx, sql).ReadAll(); err != nil {
			return errors.Join(err, n.removeFile(ctx, tmp))
		}
	}
	return nil
}

// writeProgram is the shell's part of writing one piece of a file. A new folder
// is there after a crash only if the one that it is in has been synced.
func writeProgram(name, tmp string, first, last bool) string {
	dir := shellQuote(path.Dir(name))
	tmp, name = shellQuote(tmp), shellQuote(name)
	program := "base64 -d >> " + tmp
	if first {
		program = "umask 077; set --; d=" + dir + `; while ! test -d "$d"; do d=$(dirname "$d"); set -- "$@" "$d"; done; ` +
			"mkdir -p " + dir + ` && { test $# -eq 0 || sync "$@"; } && base64 -d > ` + tmp
	}
	if last {
		program += fmt.Sprintf(" && sync %[1]s && mv %[1]s %[2]s && sync %[3]s", tmp, name, dir)
	}
	return program
}

// removeFile removes what was not written to its end, if there is a way to.
func (n *node) removeFile(ctx context.Context, name string) error {
	if n.conn.IsClosed() {
		return nil
	}
	ctx, cancel := ending(ctx)
	defer cancel()
	_, err := n.conn.PgConn().Exec(ctx, "COPY (SELECT 1) TO PROGRAM "+quoteLiteral("cat > /dev/null; rm -f "+shellQuote(name))).ReadAll()
	return err
}

// removeRehearsal removes what a dry run has brought to the primary, over a new
// session if ours is gone.
func (s *Session) removeRehearsal(ctx context.Context) (err error) {
	root := s.primary.store(true)
	conn := s.primary.conn
	if conn.IsClosed() {
		if conn, err = s.primary.dial(ctx); err != nil {
			return fmt.Errorf("could not remove %s at %s: %w", root, s.primary.o.Node, err)
		}
		defer func() { err = errors.Join(err, hangUp(ctx, conn)) }()
	}
	return s.primary.removeFolder(ctx, conn, root)
}

// shellQuote quotes a word for the POSIX shell.
func shellQuote(word string) string { return "'" + strings.ReplaceAll(word, "'", `'\''`) + "'" }

// leading plans how every node is made to look into its store. It comes before
// the steps: a standby must find a library when the first row is replayed that
// needs it, and a function of it called.
func (s *Session) leading(ctx context.Context, p *Plan) (changes []NodeSetting, notes []string, err error) {
	for _, n := range s.nodes() {
		below := func(folder string) bool {
			in := func(file string) bool { return path.Dir(file) == folder }
			return slices.ContainsFunc(p.Files, func(f NodeFile) bool { return f.Node == n.o.Node && in(f.Path) }) || slices.ContainsFunc(p.lead[n.o.Node], in)
		}
		library := path.Join(n.store(false), storeLibraries)
		for _, set := range []struct {
			name, own, element string
			want               bool
		}{
			{controlPath, ownControls, n.store(false), below(path.Join(n.store(false), storeControls))},
			{libraryPath, ownLibraries, library, below(library)},
		} {
			if !set.want {
				continue
			}
			value, note, err := n.leadTo(ctx, set.name, set.own, set.element)
			if err != nil {
				return nil, nil, err
			}
			if value != "" {
				changes = append(changes, NodeSetting{n.o.Node, set.name, value})
			}
			if note != "" {
				notes = append(notes, note)
			}
		}
	}
	return changes, notes, nil
}

// The search paths of the server.
const (
	controlPath = "extension_control_path"
	libraryPath = "dynamic_library_path"
)

// leadTo is a search path of the node with an element that it lacks, "" if it has
// it.
func (n *node) leadTo(ctx context.Context, name, own, element string) (value, note string, err error) {
	now, err := n.serverSetting(ctx, name)
	if err != nil {
		return "", "", err
	}
	if now.hidden && !slices.Contains(strings.Split(now.session, ":"), element) {
		note = fmt.Sprintf("%s is set for role %q or database %q at %s: their sessions do not look into %s unless that is in it, too", name, n.o.Role.Name, n.o.Database, n.o.Node, element)
	}
	value = withElement(now.server, own, element)
	if value == now.server {
		return "", note, nil
	}
	if now.source == "command line" {
		return "", "", fmt.Errorf("%s: %s is set on the command line of the server, and would have to be %q", n.o.Node, name, value)
	}
	return value, note, nil
}

// lead sets the search paths of the nodes.
func (s *Session) lead(ctx context.Context, changes []NodeSetting, j *journal, report *Report) error {
	for _, set := range changes {
		n := s.node(set.Node)
		now, err := n.serverSetting(ctx, set.Name)
		if err != nil {
			return err
		}
		s.cfg.Log.Info("setting", "node", set.Node, "name", set.Name, "value", set.Value)
		if err := j.alter(ctx, n, set.change()); err != nil {
			return err
		}
		if now.hidden {
			err = n.reloaded(ctx)
		} else {
			err = n.reload(ctx, set.Name, set.Value)
		}
		if err != nil {
			return err
		}
		report.Set = append(report.Set, set.Name+" at "+set.Node)
	}
	return nil
}

// A serverSetting is what a parameter is for the whole server, and for us.
type serverSetting struct {
	server, session string
	source          string // of what the session has
	hidden          bool   // the session's own comes before the server's
}

// serverSetting asks for a parameter as it is where no role and no database has a
// value of its own.
func (n *node) serverSetting(ctx context.Context, name string) (serverSetting, error) {
	var set serverSetting
	var boot string
	err := n.conn.QueryRow(ctx, `
SELECT setting, source, source IN ('database', 'user', 'database user', 'client', 'session'), coalesce(boot_val, '')
FROM pg_settings WHERE name = $1`, name).Scan(&set.session, &set.source, &set.hidden, &boot)
	if err != nil {
		return set, fmt.Errorf("%s: %s: %w", n.o.Node, name, err)
	}
	if !set.hidden {
		set.server = set.session
		return set, nil
	}
	value, ok, err := n.fileSetting(ctx, name)
	if set.server = value; !ok {
		set.server = boot
	}
	return set, err
}

// fileSetting is what the configuration files say of a parameter.
func (n *node) fileSetting(ctx context.Context, name string) (value string, ok bool, err error) {
	err = n.conn.QueryRow(ctx, `
SELECT coalesce(setting, '') FROM pg_file_settings WHERE lower(name) = lower($1) ORDER BY seqno DESC LIMIT 1`, name).Scan(&value)
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	} else if err != nil {
		return "", false, fmt.Errorf("%s: %s: %w", n.o.Node, name, err)
	}
	return value, true, nil
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
	if err := n.signal(ctx); err != nil {
		return err
	}
	return n.eventually(ctx, fmt.Sprintf("%s to be %q", name, value), func() (bool, error) {
		var now string
		err := n.conn.QueryRow(ctx, "SELECT current_setting($1)", name).Scan(&now)
		return now == value, err
	})
}

// reloaded makes the node read its configuration, and waits until it has, where
// no value shows it.
func (n *node) reloaded(ctx context.Context) error {
	const ask = "SELECT pg_conf_load_time()::text"
	var was string
	if err := n.conn.QueryRow(ctx, ask).Scan(&was); err != nil {
		return fmt.Errorf("%s: %w", n.o.Node, err)
	}
	if err := n.signal(ctx); err != nil {
		return err
	}
	return n.eventually(ctx, "its configuration to be read", func() (bool, error) {
		var now string
		err := n.conn.QueryRow(ctx, ask).Scan(&now)
		return now != was, err
	})
}

// signal makes the node read its configuration.
func (n *node) signal(ctx context.Context) error {
	if _, err := n.conn.Exec(ctx, "SELECT pg_reload_conf()"); err != nil {
		return fmt.Errorf("%s: could not reload: %w", n.o.Node, err)
	}
	return nil
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

// preload puts libraries into shared_preload_libraries of every node, once each
// can find them: a server that does not find one does not start. The plan said
// that a restart comes next.
func (s *Session) preload(ctx context.Context, p *Plan, j *journal) error {
	if err := s.findable(ctx, p.Preload); err != nil {
		return err
	}
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
		if err := j.alter(ctx, n, c); err != nil {
			return err
		}
	}
	return &RestartError{Nodes: nodeNames(s.nodes()), Libraries: p.Preload}
}

// A PreloadError says that a server would not start any more if it had to load a
// library then. The setting was not made.
type PreloadError struct {
	Node, Library string
	Err           error
}

func (e *PreloadError) Error() string {
	return fmt.Sprintf("%s would not start with %q in shared_preload_libraries: %v", e.Node, e.Library, e.Err)
}

func (e *PreloadError) Unwrap() error { return e.Err }

// findable tries on each node whether libraries can be found there.
func (s *Session) findable(ctx context.Context, libs []string) error {
	if len(libs) == 0 {
		return nil
	}
	for _, n := range s.nodes() {
		search, err := n.serverSetting(ctx, libraryPath)
		if err != nil {
			return err
		}
		for _, lib := range libs {
			if err := n.find(ctx, search.server, lib); err != nil {
				return err
			}
		}
	}
	return nil
}

// find loads a library in a session that ends with it. That the library itself
// refuses, because this is not the start of the server, is no matter.
func (n *node) find(ctx context.Context, search, lib string) (err error) {
	conn, err := n.dial(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hangUp(ctx, conn)) }()
	// The texts of errors tell whose they are, in English.
	if _, err := conn.Exec(ctx, "SELECT set_config('lc_messages', 'C', false), set_config('dynamic_library_path', $1, false)", search); err != nil {
		return fmt.Errorf("%s: %w", n.o.Node, err)
	}
	_, err = conn.PgConn().Exec(ctx, "LOAD "+quoteLiteral(lib)).ReadAll()
	var server *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case !errors.As(err, &server):
		return fmt.Errorf("%s: could not try to load %q: %w", n.o.Node, lib, err)
	}
	for _, loader := range []string{"could not access file", "could not load library", "incompatible library"} {
		if strings.HasPrefix(server.Message, loader) {
			return &PreloadError{Node: n.o.Node, Library: lib, Err: err}
		}
	}
	return nil
}

// nextPreload is shared_preload_libraries as the next start of the node will
// have it: somebody may have added to it since the last one.
func (n *node) nextPreload(ctx context.Context) ([]string, error) {
	if !n.o.Role.Superuser {
		return n.o.Preloaded, nil
	}
	return n.nextLibraries(ctx, sharedPreload)
}

// nextLibraries is a list of libraries as the configuration files have it.
func (n *node) nextLibraries(ctx context.Context, name string) ([]string, error) {
	text, ok, err := n.fileSetting(ctx, name)
	if err != nil {
		return nil, err
	}
	if !ok && strings.EqualFold(name, sharedPreload) {
		return n.commandLine(ctx)
	}
	list, err := splitLibraries(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %s: %w", n.o.Node, name, err)
	}
	return list, nil
}

// commandLine lists the libraries that the command line of the server preloads:
// none, if what it has loaded is from a file that does not say so any more.
func (n *node) commandLine(ctx context.Context) ([]string, error) {
	var is bool
	if err := n.conn.QueryRow(ctx, "SELECT coalesce(bool_or(source = 'command line'), false) FROM pg_settings WHERE name = $1", sharedPreload).Scan(&is); err != nil {
		return nil, fmt.Errorf("%s: %s: %w", n.o.Node, sharedPreload, err)
	}
	if !is {
		return nil, nil
	}
	return n.o.Preloaded, nil
}

// An UnfinishedError says that what was done in the database is committed, and
// that some of what comes after it was not done. The same command again does it.
type UnfinishedError struct {
	Database string
	Done     []string // "work_mem at db1:5432"
	Failed   []error
}

func (e *UnfinishedError) Error() string {
	var failed []string
	for _, err := range e.Failed {
		failed = append(failed, strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	text := fmt.Sprintf("database %q is changed, and not all that comes after it was done: %s", e.Database, strings.Join(failed, "; "))
	if len(e.Done) > 0 {
		text += " (done: " + strings.Join(e.Done, ", ") + ")"
	}
	return text
}

func (e *UnfinishedError) Unwrap() []error { return e.Failed }

// trySystem tries the values of settings of the whole server before anything is
// done, as far as a session can have them: what only a reload or a restart sets
// is not looked at before.
//
// libs are what the next start would load.
func (s *Session) trySystem(ctx context.Context, p *Plan) (notes, libs []string, err error) {
	var untried []string
	for _, c := range p.System {
		if strings.EqualFold(c.Name, sharedPreload) {
			libs = append(libs, c.Values...)
			continue
		}
		value := strings.Join(c.Values, "")
		if c.List {
			value = listText(c.Values)
		}
		tx, err := s.primary.conn.Begin(ctx)
		if err != nil {
			return nil, nil, err
		}
		_, err = tx.Exec(ctx, "SELECT set_config($1, $2, true)", c.Name, value)
		if e := rollback(ctx, tx); e != nil {
			return nil, nil, errors.Join(err, e)
		}
		var server *pgconn.PgError
		switch {
		case errors.As(err, &server) && server.Code == "55P02": // cant_change_runtime_param
			untried = append(untried, c.Name)
		case err != nil:
			return nil, nil, fmt.Errorf("%s: foo.conf sets %s for the whole server: %w", c.For, c.Name, err)
		}
	}
	if len(untried) > 0 {
		notes = append(notes, fmt.Sprintf("whether the server takes the value of %s is seen when it is set, after the commit", strings.Join(untried, ", ")))
	}
	return notes, libs, nil
}

// listText writes a list as splitLibraries reads it.
func listText(values []string) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = quoteIdent(v)
	}
	return strings.Join(quoted, ", ")
}

// afterCommit does what cannot be in a transaction: settings of the servers, and
// a look whether every standby can use what was installed. What fails keeps
// nothing else from being done; the primary, which serves, comes first.
func (s *Session) afterCommit(ctx context.Context, p *Plan, report *Report) error {
	unfinished := &UnfinishedError{Database: p.Database}
	for _, n := range append([]*node{s.primary}, s.standbys...) {
		set := 0
		for _, c := range p.System {
			if err := s.setSystem(ctx, n, c); err != nil {
				unfinished.Failed = append(unfinished.Failed, err)
				continue
			}
			set++
			unfinished.Done = append(unfinished.Done, c.Name+" at "+n.o.Node)
		}
		if set > 0 {
			if err := n.signal(ctx); err != nil {
				unfinished.Failed = append(unfinished.Failed, err)
			}
		}
	}
	report.Set = append(report.Set, unfinished.Done...)
	if len(s.standbys) > 0 {
		unfinished.Failed = append(unfinished.Failed, s.probeStandbys(ctx, p, report)...)
	}
	unfinished.Failed = append(unfinished.Failed, s.remove(ctx, p, report)...)
	unfinished.Done = append(unfinished.Done, report.Removed...)
	if len(unfinished.Failed) > 0 {
		return unfinished
	}
	return nil
}

// redo plans the settings of the whole server that the package of what is
// installed wants, and that a node does not have: they are made after the commit,
// and may have failed. What somebody has set otherwise is left alone.
func (s *Session) redo(ctx context.Context, p *Plan, req Request) error {
	if !s.primary.o.Role.Superuser {
		return nil
	}
	k := s.known(ctx, req)
	for _, w := range slices.Concat(req.Install, req.Upgrade) {
		in, ok := s.primary.o.Find(w.Name)
		if !ok || slices.ContainsFunc(p.Steps, func(st Step) bool { return st.Name == w.Name }) {
			continue
		}
		if err := s.redoFiles(ctx, p, k, in); err != nil {
			return err
		}
		if in.SHA256 == "" || req.NoConf {
			continue
		}
		n, err := k.about(w.Name)
		if err != nil {
			return err
		}
		r := n.offers[in.Version].release
		if r == nil {
			continue
		}
		pkg, err := r.shelf.Fetch(ctx, w.Name, r.Version)
		if err != nil {
			return fmt.Errorf("%s: %w", r.shelf.Name(), err)
		}
		if digest, err := digestOf(pkg); err != nil {
			return err
		} else if digest != in.SHA256 {
			continue // it is another package than the one that was installed
		}
		if err := s.redoConf(ctx, p, req, in, pkg); err != nil {
			return err
		}
	}
	return nil
}

func (s *Session) redoConf(ctx context.Context, p *Plan, req Request, in *Installed, pkg *pack.Package) error {
	left := *pkg
	left.Conf = nil
	for _, set := range pkg.Conf {
		if set.Scope != pack.ScopeSystem {
			continue
		}
		missing, otherwise, err := s.lacking(ctx, set)
		if err != nil {
			return err
		}
		switch {
		case otherwise != "":
			p.Notes = append(p.Notes, fmt.Sprintf("%s is %s, and not %q as foo.conf of %s says: somebody has set it", set.Name, otherwise, set.Value, in.Name))
		case missing:
			left.Conf = append(left.Conf, set)
		}
	}
	if len(left.Conf) == 0 {
		return nil
	}
	sel := selection{enforced: s.cfg.enforced}
	var err error
	if sel.settings, err = s.settingInfos(ctx, map[string]*pack.Package{in.Name: &left}); err != nil {
		return err
	}
	// The lists of every node are added to when they are set.
	return p.addSettings(s.primary.o, &Step{Action: Upgrade, Name: in.Name, To: in.Version, Mode: in.Mode, pkg: &left}, req, sel)
}

// lacking says whether ALTER SYSTEM has not been said on a node for a setting, or
// what else was said: "'8MB' at db1:5432".
func (s *Session) lacking(ctx context.Context, set pack.Setting) (missing bool, otherwise string, err error) {
	for _, n := range s.nodes() {
		var value string
		var system bool
		err := n.conn.QueryRow(ctx, `
SELECT coalesce(setting, ''), sourcefile LIKE '%/postgresql.auto.conf' FROM pg_file_settings
WHERE lower(name) = lower($1) ORDER BY seqno DESC LIMIT 1`, set.Name).Scan(&value, &system)
		if errors.Is(err, pgx.ErrNoRows) {
			missing = true
			continue
		} else if err != nil {
			return false, "", fmt.Errorf("%s: %s: %w", n.o.Node, set.Name, err)
		}
		has, err := holds(set.Name, value, set.Value)
		switch {
		case err != nil:
			return false, "", fmt.Errorf("%s: %s: %w", n.o.Node, set.Name, err)
		case has:
		case system && !isLibraryList(set.Name):
			otherwise = fmt.Sprintf("%q at %s", value, n.o.Node)
		default:
			missing = true
		}
	}
	return missing, otherwise, nil
}

// holds says whether a parameter is as a package wants it: a list of libraries
// has those of the package among others.
func holds(name, value, want string) (bool, error) {
	if !isList(name) {
		return value == want, nil
	}
	has, err := splitLibraries(value)
	if err != nil {
		return false, err
	}
	wanted, err := splitLibraries(want)
	if err != nil {
		return false, err
	}
	if !isLibraryList(name) {
		return slices.Equal(has, wanted), nil
	}
	return len(mergeList(has, wanted)) == len(has), nil
}

// setSystem makes one setting on one node. Libraries are added to those that are
// there.
func (s *Session) setSystem(ctx context.Context, n *node, c SystemChange) error {
	if isLibraryList(c.Name) {
		current, err := n.nextLibraries(ctx, c.Name)
		if err != nil {
			return err
		}
		c.Values = mergeList(current, c.Values)
	}
	s.cfg.Log.Info("setting", "node", n.o.Node, "name", c.Name, "value", strings.Join(c.Values, ", "))
	return n.alterSystem(ctx, c)
}

// probeStandbys waits until each standby has replayed what was committed, and
// tries there what was installed.
func (s *Session) probeStandbys(ctx context.Context, p *Plan, report *Report) (failed []error) {
	if !slices.ContainsFunc(p.Steps, func(step Step) bool { return step.Action != Uninstall }) {
		return nil // nothing was installed
	}
	lsn, err := s.insertLSN(ctx)
	if err != nil {
		return []error{err}
	}
	note := func(text string) {
		if text != "" && !slices.Contains(report.Notes, text) {
			report.Notes = append(report.Notes, text)
		}
	}
	for _, n := range s.standbys {
		late, err := n.replayed(ctx, lsn)
		if err != nil {
			failed = append(failed, err)
			continue
		}
		if late != "" {
			note(fmt.Sprintf("whether %s can use what was installed was not tried: %s", n.o.Node, late))
			continue
		}
		for i := range p.Steps {
			if p.Steps[i].Action == Uninstall {
				continue
			}
			text, err := n.probe(ctx, &p.Steps[i])
			if err != nil {
				failed = append(failed, err)
			}
			note(text)
		}
	}
	return failed
}

// insertLSN is where the primary writes now.
func (s *Session) insertLSN(ctx context.Context) (wal.LSN, error) {
	var at string
	if err := s.primary.conn.QueryRow(ctx, "SELECT pg_current_wal_insert_lsn()::text").Scan(&at); err != nil {
		return 0, fmt.Errorf("%s: %w", s.primary.o.Node, err)
	}
	return wal.ParseLSN(at)
}

// replayTime is how long we wait for a standby to replay what was committed, to
// try it there. It is no error that it takes longer: nothing depends on it.
const replayTime = 20 * time.Second

// replayed waits until a standby has replayed what was committed, or says why
// that is not waited for.
func (n *node) replayed(ctx context.Context, lsn wal.LSN) (late string, err error) {
	for deadline := time.Now().Add(replayTime); ; {
		var done, paused bool
		var delay string
		err := n.conn.QueryRow(ctx, `
SELECT coalesce(pg_last_wal_replay_lsn() >= $1::text::pg_lsn, false),
       CASE WHEN pg_is_in_recovery() THEN pg_is_wal_replay_paused() ELSE false END, current_setting('recovery_min_apply_delay')`,
			lsn.String()).Scan(&done, &paused, &delay)
		switch {
		case err != nil:
			return "", fmt.Errorf("%s: waiting for WAL to be replayed up to %s: %w", n.o.Node, lsn, err)
		case done:
			return "", nil
		case paused:
			return "its replay is paused", nil
		case delay != "0":
			return "it replays with a delay of " + delay, nil
		case time.Now().After(deadline):
			return fmt.Sprintf("it has not replayed it in %v", replayTime), nil
		}
		if err := pause(ctx, 20*time.Millisecond); err != nil {
			return "", fmt.Errorf("%s: waited for WAL to be replayed up to %s: %w", n.o.Node, lsn, err)
		}
	}
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
	if len(libs) == 0 {
		return "", nil
	}
	// What is loaded stays in a session: this is one of its own.
	own := &node{config: n.config, o: n.o}
	if own.conn, err = n.dial(ctx); err != nil {
		return "", fmt.Errorf("%s: %w", n.o.Node, err)
	}
	defer func() { err = errors.Join(err, hangUp(ctx, own.conn)) }()
	for _, lib := range libs {
		if err := own.load(ctx, lib); err != nil {
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

// folders lists the folders of a search path of the server. own is what $libdir
// or $system stand for.
func folders(searchPath, macro, own string) []string {
	if searchPath == "" {
		return []string{own}
	}
	var list []string
	for _, f := range strings.Split(searchPath, ":") {
		if rest, ok := strings.CutPrefix(f, macro); ok {
			f = own + rest
		}
		list = append(list, f)
	}
	return list
}

// controlFolders are where the server looks for control files.
func (n *node) controlFolders() []string {
	list := folders(n.o.ControlPath, ownControls, n.o.ShareDir)
	for i := range list {
		list[i] = path.Join(list[i], "extension")
	}
	return list
}

// libraryFiles are where the server may look for a library that a function names,
// in this order.
func (n *node) libraryFiles(lib string) []string {
	name, own := strings.CutPrefix(lib, ownLibraries+"/")
	if !strings.HasSuffix(name, ".so") {
		name += ".so"
	}
	switch {
	case strings.HasPrefix(name, "/"):
		return []string{name}
	case own && (n.o.Major() < firstControlPath || strings.Contains(name, "/")):
		return []string{path.Join(n.o.LibDir, name)}
	}
	var files []string
	for _, dir := range folders(n.o.LibraryPath, ownLibraries, n.o.LibDir) {
		files = append(files, path.Join(dir, name))
	}
	return files
}

// serverLibraries lists the libraries that the files of an extension on a node
// refer to, as these do: "$libdir/hstore". Nil, false where the role may not look.
func (n *node) serverLibraries(ctx context.Context, name string) ([]string, bool, error) {
	if !n.o.Role.Superuser || n.o.ShareDir == "" {
		return nil, false, nil
	}
	// The first folder with its control file is the one, as for the server.
	rows, err := n.conn.Query(ctx, `
WITH f AS MATERIALIZED (
  SELECT d.dir, f.name FROM (
    SELECT dir FROM unnest($1::text[]) WITH ORDINALITY AS d (dir, n)
    WHERE (pg_stat_file(dir || '/' || $2::text || '.control', true)).size IS NOT NULL ORDER BY n LIMIT 1) d,
  LATERAL pg_ls_dir(d.dir) AS f (name)
  WHERE f.name = $2::text || '.control' OR starts_with(f.name, $2::text || '--')
), t AS MATERIALIZED (SELECT f.name, pg_read_file(f.dir || '/' || f.name) AS t FROM f)
SELECT regexp_replace(m[1], '\.so$', '') FROM t, LATERAL regexp_matches(t.t, '''(\$libdir/[^'']+)''', 'g') m
UNION
SELECT regexp_replace(m[1], '\.so$', '') FROM t, LATERAL regexp_matches(t.t, '^\s*module_pathname\s*=\s*''([^'']+)''', 'n') m
WHERE t.name = $2::text || '.control'
ORDER BY 1`, n.controlFolders(), name)
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
		if step.Action == Uninstall || step.Action == Adopt || step.Mode != Native && (step.Mode != Path || step.pkg != nil) {
			continue
		}
		b, pr, nt, err := s.skewOf(ctx, step.Name, step.To)
		if err != nil {
			return nil, nil, nil, err
		}
		problems, notes = append(problems, pr...), append(notes, nt...)
		// What goes to a store is written down there, with what is planned already.
		for _, n := range s.standbys {
			inside := map[string][]byte{}
			p.Files = slices.DeleteFunc(p.Files, func(f NodeFile) bool {
				file, ok := strings.CutPrefix(f.Path, n.store(false)+"/")
				if !ok || f.Node != n.o.Node || f.Extension != step.Name {
					return false
				}
				if file != manifestPath(step.Name) {
					inside[file] = f.data
				}
				return true
			})
			if _, ok := inside[storeControls+"/"+step.Name+".control"]; ok {
				notes = slices.DeleteFunc(notes, func(note string) bool { return note == noControl(n, step.Name, step.To) })
			}
			for _, f := range b {
				if file, ok := strings.CutPrefix(f.Path, n.store(false)+"/"); f.Node != n.o.Node {
					continue
				} else if ok {
					inside[file] = f.data
				} else {
					bring = append(bring, f)
				}
			}
			if len(inside) == 0 {
				continue
			}
			digest := ""
			if m := s.primary.o.Store.find(step.Name); m != nil {
				digest = m.SHA256
			}
			files, err := n.toStore(step.Name, step.To, digest, inside)
			if err != nil {
				return nil, nil, nil, err
			}
			bring = append(bring, files...)
		}
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
			notes = append(notes, noControl(n, name, version))
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

// noControl says that a standby has the libraries of an extension at most.
func noControl(n *node, name, version string) string {
	return fmt.Sprintf("%s has no control file and scripts of %s %s: after a failover to it, it could not be updated", n.o.Node, name, version)
}

const librariesNotCompared = "libraries on the nodes were not compared: that needs a superuser on each"

// compareLibrary compares a library of a standby with the primary's: the files
// that each of them would load.
func (s *Session) compareLibrary(ctx context.Context, n *node, name, lib string) (*NodeFile, *NodeProblem, error) {
	to := n.libraryFiles(lib)[0]
	if !n.o.Role.ReadFiles || n.o.LibDir == "" {
		return nil, &NodeProblem{n.o.Node, name, to, "cannot be compared: the role may not read files there"}, nil
	}
	from, want, err := s.primary.library(ctx, lib)
	if err != nil {
		return nil, nil, err
	}
	if want == "" {
		return nil, &NodeProblem{s.primary.o.Node, name, s.primary.libraryFiles(lib)[0], "is missing"}, nil
	}
	there, has, err := n.library(ctx, lib)
	if err != nil {
		return nil, nil, err
	}
	switch {
	case has == want:
		return nil, nil, nil
	case has != "":
		return nil, &NodeProblem{n.o.Node, name, there, fmt.Sprintf("differs from that of %s", s.primary.o.Node)}, nil
	}
	// What is looked for along dynamic_library_path we can put into the store.
	// Otherwise only one folder will do.
	simple := strings.TrimPrefix(lib, ownLibraries+"/")
	if !strings.Contains(simple, "/") && (simple == lib || n.o.Major() >= firstControlPath) {
		to = path.Join(n.store(false), "lib", path.Base(to))
	} else if !n.writable(ctx, path.Dir(to)) {
		return nil, &NodeProblem{n.o.Node, name, to, fmt.Sprintf("is missing, and the server may not write there: copy it from %s, where its sha256 is %s", s.primary.o.Node, want)}, nil
	}
	data, err := s.primary.readFile(ctx, from)
	if err != nil {
		return nil, nil, err
	}
	return &NodeFile{Node: n.o.Node, Extension: name, Path: to, Size: len(data), SHA256: want, data: data}, nil, nil
}

// library finds the file that a node would load, and its sha256: "" if there is
// none.
func (n *node) library(ctx context.Context, lib string) (file, sum string, err error) {
	for _, file := range n.libraryFiles(lib) {
		if sum, err := n.fileHash(ctx, file); err != nil || sum != "" {
			return file, sum, err
		}
	}
	return "", "", nil
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
