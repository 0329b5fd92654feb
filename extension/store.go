package extension

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"

	"rideau/extension/depend"
)

// What is in the store of a node, and who it belongs to:
//
//	<data directory>/rideau/extension/foo.control, foo--1.0.sql, ...
//	                       /lib/foo.so
//	                       /packages/foo.json     the manifest: which of these are foo's
//
// A manifest is written before the files that it lists, and removed after them, so
// that no file is there of which nobody knows whose it is. It keeps what older
// versions have brought: all of it goes when the last database has dropped foo.
const (
	storeControls  = "extension"
	storeLibraries = "lib"
	storeManifests = "packages"
)

// broughtMark ends the comment of every control file that we bring: everybody
// sees it in pg_available_extensions, and the store only a superuser.
const broughtMark = "(brought by Rideau)"

// marked is a control file with the mark. Of a parameter that is set twice the
// server takes the last.
func marked(control []byte, comment string) []byte {
	if strings.HasSuffix(comment, broughtMark) {
		return control
	}
	text := bytes.Clone(control)
	if len(text) > 0 && text[len(text)-1] != '\n' {
		text = append(text, '\n')
	}
	comment = strings.TrimSpace(comment + " " + broughtMark)
	return fmt.Appendf(text, "comment = '%s'\n", strings.NewReplacer(`\`, `\\`, "'", "''", "\n", `\n`, "\r", `\r`).Replace(comment))
}

// A Store is what a node has of our files, as a superuser sees it.
type Store struct {
	Packages []StoredPackage `json:"packages,omitempty"` // by name
	// Files are all that is there, with their sizes, by place in the store.
	Files map[string]int64 `json:"files,omitempty"`
	// Unreadable are manifests that this program does not understand.
	Unreadable []string `json:"unreadable,omitempty"`
}

// A StoredPackage is a manifest: the files of one extension.
type StoredPackage struct {
	Format  int          `json:"format"`
	Name    string       `json:"name"`
	Version string       `json:"version"`           // that was brought last
	SHA256  string       `json:"package,omitempty"` // the package that it came from
	Files   []StoredFile `json:"files"`             // by path
}

// A StoredFile is one of them.
type StoredFile struct {
	Path   string `json:"path"` // in the store: "lib/foo.so"
	SHA256 string `json:"sha256"`
}

// manifestFormat is the format of manifests that this program writes.
const manifestFormat = 1

// manifestPath is the place of a manifest in the store.
func manifestPath(name string) string { return storeManifests + "/" + name + ".json" }

// inStore says whether a manifest may name such a file: one below the folders that
// hold them, and nothing else on the node.
func inStore(file string) bool {
	return path.Clean(file) == file && (strings.HasPrefix(file, storeControls+"/") || strings.HasPrefix(file, storeLibraries+"/"))
}

func readManifest(file string, text []byte) (StoredPackage, error) {
	var m StoredPackage
	if err := json.Unmarshal(text, &m); err != nil {
		return m, err
	}
	switch {
	case m.Format != manifestFormat:
		return m, fmt.Errorf("format %d is not known", m.Format)
	case depend.CheckName(m.Name) != nil || manifestPath(m.Name) != file:
		return m, fmt.Errorf("it is of %q", m.Name)
	}
	for _, f := range m.Files {
		if !inStore(f.Path) {
			return m, fmt.Errorf("%q is not in the store", f.Path)
		}
	}
	return m, nil
}

func (m *StoredPackage) text() []byte {
	text, err := json.MarshalIndent(m, "", "\t")
	if err != nil {
		panic(fmt.Sprintf("extension: cannot marshal a manifest: %v", err)) // strings only
	}
	return append(text, '\n')
}

// find returns the manifest of an extension, nil if there is none.
func (st *Store) find(name string) *StoredPackage {
	if st == nil {
		return nil
	}
	for i := range st.Packages {
		if st.Packages[i].Name == name {
			return &st.Packages[i]
		}
	}
	return nil
}

// find returns one of its files.
func (m *StoredPackage) find(file string) *StoredFile {
	if m == nil {
		return nil
	}
	for i := range m.Files {
		if m.Files[i].Path == file {
			return &m.Files[i]
		}
	}
	return nil
}

// others lists the other extensions that have a file.
func (st *Store) others(name, file string) (list []StoredPackage) {
	if st == nil {
		return nil
	}
	for _, m := range st.Packages {
		if m.Name != name && m.find(file) != nil {
			list = append(list, m)
		}
	}
	return list
}

// unlisted says whether files of an extension are there, and no manifest of it:
// an older program brought them.
func (st *Store) unlisted(name string) bool {
	if st == nil || st.find(name) != nil {
		return false
	}
	return st.has(storeControls + "/" + name + ".control")
}

// has says whether a file is there.
func (st *Store) has(file string) bool {
	_, ok := st.Files[file]
	return ok
}

// askStore asks what is in the store of this node.
func (o *Observed) askStore(ctx context.Context, conn *pgx.Conn) error {
	if !o.Role.Superuser || o.DataDir == "" {
		return nil
	}
	root := path.Join(o.DataDir, storeName)
	rows, err := conn.Query(ctx, `
WITH RECURSIVE f (file, folder, size) AS (
  SELECT d, true, 0::bigint FROM unnest($2::text[]) d
  UNION ALL
  SELECT f.file || '/' || n, s.isdir, s.size
  FROM f, LATERAL pg_ls_dir(CASE WHEN f.folder THEN $1::text || '/' || f.file END, true, false) n,
       LATERAL pg_stat_file($1::text || '/' || f.file || '/' || n, true) s
)
SELECT file, size FROM f WHERE NOT folder AND file NOT LIKE '%.tmp'`, root, []string{storeControls, storeLibraries, storeManifests})
	if err != nil {
		return err
	}
	st := &Store{Files: map[string]int64{}}
	var file string
	var size int64
	if _, err := pgx.ForEachRow(rows, []any{&file, &size}, func() error { st.Files[file] = size; return nil }); err != nil || len(st.Files) == 0 {
		return err
	}
	o.Store = st
	var manifests []string
	for _, file := range names(st.Files) {
		if strings.HasPrefix(file, storeManifests+"/") && strings.HasSuffix(file, ".json") {
			manifests = append(manifests, file)
		}
		// Older programs brought control files without the mark.
		if name, ok := strings.CutPrefix(file, storeControls+"/"); ok && o.Major() >= firstControlPath && strings.HasSuffix(name, ".control") && !strings.Contains(name, "--") {
			o.Stored = append(o.Stored, strings.TrimSuffix(name, ".control"))
		}
	}
	slices.Sort(o.Stored)
	o.Stored = slices.Compact(o.Stored)
	rows, err = conn.Query(ctx, "SELECT m, pg_read_binary_file($1::text || '/' || m) FROM unnest($2::text[]) m", root, manifests)
	if err != nil {
		return err
	}
	var text []byte
	_, err = pgx.ForEachRow(rows, []any{&file, &text}, func() error {
		if m, err := readManifest(file, text); err != nil {
			st.Unreadable = append(st.Unreadable, fmt.Sprintf("%s: %v", file, err))
		} else {
			st.Packages = append(st.Packages, m)
		}
		return nil
	})
	return err
}

// toStore lists what must be written to have files of an extension in the store of
// a node, the manifest first. Files by their place in the store. What another
// extension has brought under the same name with other contents is a
// *TakenError.
func (n *node) toStore(name, version, digest string, files map[string][]byte) ([]NodeFile, error) {
	m := StoredPackage{Format: manifestFormat, Name: name, Version: version, SHA256: digest, Files: []StoredFile{}}
	if was := n.o.Store.find(name); was != nil {
		m.Files = slices.Clone(was.Files)
	}
	var list []NodeFile
	taken := map[string][]string{} // by whose it is
	for _, file := range names(files) {
		f := n.storeFile(name, file, files[file])
		list = append(list, f)
		for _, other := range n.o.Store.others(name, file) {
			if other.find(file).SHA256 != f.SHA256 {
				taken[other.Name] = append(taken[other.Name], file)
			}
		}
		if has := m.find(file); has != nil {
			has.SHA256 = f.SHA256
		} else {
			m.Files = append(m.Files, StoredFile{file, f.SHA256})
		}
	}
	for _, other := range names(taken) {
		return nil, &TakenError{Name: name, Other: other, Node: n.o.Node, Files: taken[other]}
	}
	slices.SortFunc(m.Files, func(a, b StoredFile) int { return strings.Compare(a.Path, b.Path) })
	return append([]NodeFile{n.storeFile(name, manifestPath(name), m.text())}, list...), nil
}

// storeFile is a file for the store of a node.
func (n *node) storeFile(name, file string, data []byte) NodeFile {
	return NodeFile{
		Node: n.o.Node, Extension: name, Path: path.Join(n.store(false), file),
		Size: len(data), SHA256: hashOf(data), data: data,
	}
}

// hashes are the sha256 of files of the store that are there.
func (n *node) hashes(ctx context.Context, files []string) (map[string]string, error) {
	there := slices.DeleteFunc(slices.Clone(files), func(file string) bool {
		if n.o.Store == nil {
			return true
		}
		return !n.o.Store.has(file)
	})
	sums := map[string]string{}
	if len(there) == 0 {
		return sums, nil
	}
	rows, err := n.conn.Query(ctx, "SELECT f, encode(sha256(pg_read_binary_file($1::text || '/' || f)), 'hex') FROM unnest($2::text[]) f", n.store(false), there)
	if err != nil {
		return nil, fmt.Errorf("%s: could not read the files in %s: %w", n.o.Node, n.store(false), err)
	}
	var file, sum string
	if _, err := pgx.ForEachRow(rows, []any{&file, &sum}, func() error { sums[file] = sum; return nil }); err != nil {
		return nil, fmt.Errorf("%s: could not read the files in %s: %w", n.o.Node, n.store(false), err)
	}
	return sums, nil
}

// A use is one database that has an extension.
type use struct{ database, version string }

// users says which databases of the server have which extensions in pg_extension.
type users struct {
	of      map[string][]use // by extension
	unasked []string         // `database "x" cannot be asked: ...`
}

// users asks every database of the server.
func (s *Session) users(ctx context.Context) (*users, error) {
	// A database whose DROP was interrupted (-2) can only be dropped.
	rows, err := s.primary.conn.Query(ctx, `
SELECT datname::text, datallowconn FROM pg_database WHERE datconnlimit <> -2 AND (datallowconn OR datname <> 'template0') ORDER BY 1`)
	if err != nil {
		return nil, err
	}
	type database struct {
		Name string
		Open bool
	}
	databases, err := pgx.CollectRows(rows, pgx.RowToStructByPos[database])
	if err != nil {
		return nil, err
	}
	u := &users{of: map[string][]use{}}
	for _, d := range databases {
		if !d.Open {
			u.unasked = append(u.unasked, fmt.Sprintf("database %q cannot be asked: it allows no connections", d.Name))
			continue
		}
		err := s.extensionsOf(ctx, d.Name, func(name, version string) { u.of[name] = append(u.of[name], use{d.Name, version}) })
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			u.unasked = append(u.unasked, fmt.Sprintf("database %q cannot be asked: %v", d.Name, err))
		}
	}
	return u, nil
}

func (s *Session) extensionsOf(ctx context.Context, database string, each func(name, version string)) (err error) {
	config := s.primary.config.Copy()
	config.Database = database
	conn, err := pgx.ConnectConfig(ctx, config)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, hangUp(ctx, conn)) }()
	rows, err := conn.Query(ctx, "SELECT extname::text, extversion FROM pg_catalog.pg_extension")
	if err != nil {
		return err
	}
	var name, version string
	_, err = pgx.ForEachRow(rows, []any{&name, &version}, func() error { each(name, version); return nil })
	return err
}

// who says which databases have an extension, "" if none has. without is one that
// does not count.
func (u *users) who(name, without string) string {
	var list []string
	for _, use := range u.of[name] {
		if use.database != without {
			list = append(list, fmt.Sprintf("database %q has %s %s", use.database, name, use.version))
		}
	}
	return joinSome(list, 5)
}

// A Removal is what goes of an extension from the store of a node when no database
// of the server has it any more.
type Removal struct {
	Node      string   `json:"node"`
	Extension string   `json:"extension"`
	Files     []string `json:"files"` // absolute, on the node

	left *StoredPackage // what stays, nil if all of it goes
}

func (r Removal) String() string {
	files := "1 file"
	if len(r.Files) != 1 {
		files = fmt.Sprintf("%d files", len(r.Files))
	}
	return fmt.Sprintf("%s of %s at %s", files, r.Extension, r.Node)
}

// removal says what would go from a node. A library that another extension has
// too stays, and so does one without which the server would not start.
func (n *node) removal(ctx context.Context, name string) (r Removal, notes []string, err error) {
	m := n.o.Store.find(name)
	r = Removal{Node: n.o.Node, Extension: name}
	left := *m
	left.Files = nil
	for _, f := range m.Files {
		if len(n.o.Store.others(name, f.Path)) > 0 {
			continue
		}
		if strings.HasPrefix(f.Path, storeLibraries+"/") {
			where, err := n.preloads(ctx, f.Path)
			if err != nil {
				return r, nil, err
			}
			if where != "" {
				notes = append(notes, fmt.Sprintf("%s stays at %s: it is in %s, and %s without it", path.Join(n.store(false), f.Path), n.o.Node, where, withoutLibrary(where)))
				left.Files = append(left.Files, f)
				continue
			}
		}
		r.Files = append(r.Files, path.Join(n.store(false), f.Path))
	}
	if len(left.Files) > 0 {
		r.left = &left
	} else {
		r.Files = append(r.Files, path.Join(n.store(false), manifestPath(name))) // the last of them
	}
	return r, notes, nil
}

func withoutLibrary(where string) string {
	if where == sharedPreload {
		return "the server would not start"
	}
	return "nobody could connect"
}

// preloads names the parameter by which the next start of a node, or the next
// session, loads a library of the store; "" if none does.
func (n *node) preloads(ctx context.Context, file string) (string, error) {
	same := func(list []string) bool {
		return slices.ContainsFunc(list, func(lib string) bool { return bareLibrary(lib) == bareLibrary(file) })
	}
	for _, name := range []string{sharedPreload, sessionPreload, localPreload} {
		list, err := n.nextLibraries(ctx, name)
		if err != nil {
			return "", err
		}
		if same(list) {
			return name, nil
		}
	}
	rows, err := n.conn.Query(ctx, `SELECT c FROM pg_db_role_setting, unnest(setconfig) c WHERE c ~* '^(session|local)_preload_libraries=' ORDER BY 1`)
	if err != nil {
		return "", err
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return "", err
	}
	for _, line := range lines {
		name, value, _ := strings.Cut(line, "=")
		if list, err := splitLibraries(value); err != nil || same(list) {
			return name + " of a database or role", nil
		}
	}
	return "", nil
}

// bareLibrary is how a library is called whatever folder it is looked for in.
func bareLibrary(lib string) string { return strings.TrimSuffix(path.Base(lib), ".so") }

// planRemovals plans what goes from the stores with what is uninstalled. u is
// asked only if something could go.
func (s *Session) planRemovals(ctx context.Context, p *Plan, ask func() (*users, error)) error {
	var gone []string
	for i := range p.Steps {
		if p.Steps[i].Action == Uninstall && p.Steps[i].Mode != Module {
			gone = append(gone, p.Steps[i].Name)
		}
	}
	for _, name := range p.Request.Uninstall {
		if _, ok := s.primary.o.Find(name); !ok {
			gone = append(gone, name)
			if slices.Contains(s.primary.o.Dropped, name) {
				p.Forget = append(p.Forget, name)
				p.Notes = append(p.Notes, fmt.Sprintf("%s was dropped by hand: what is recorded of it goes", name))
			}
		}
	}
	for _, name := range gone {
		_, here := s.primary.o.Find(name)
		if !s.primary.o.Role.Superuser {
			if slices.Contains(s.primary.o.Stored, name) {
				p.Notes = append(p.Notes, fmt.Sprintf("the files of %s stay on the server: removing them needs a superuser", name))
			}
			continue
		}
		for _, n := range s.nodes() {
			if n.o.Store.unlisted(name) {
				p.Notes = append(p.Notes, fmt.Sprintf("the files of %s stay in %s at %s: who brought them left no list of them", name, n.store(false), n.o.Node))
			}
		}
		if !s.stored(name) {
			continue
		}
		u, err := ask()
		if err != nil {
			return err
		}
		who := u.who(name, s.primary.o.Database)
		switch {
		case who != "" && !here && !slices.Contains(p.Forget, name):
			return &NotInstalledError{Name: name, Database: s.primary.o.Database}
		case who != "":
			p.Notes = append(p.Notes, fmt.Sprintf("the files of %s stay on the server: %s", name, who))
			continue
		case len(u.unasked) > 0:
			p.Notes = append(p.Notes, fmt.Sprintf("the files of %s stay on the server, because a database may have it: %s", name, joinSome(u.unasked, 3)))
			continue
		}
		for _, n := range s.nodes() {
			if n.o.Store.find(name) == nil {
				continue
			}
			r, notes, err := n.removal(ctx, name)
			if err != nil {
				return err
			}
			p.Notes = append(p.Notes, notes...)
			if len(r.Files) > 0 {
				p.Remove = append(p.Remove, r)
			}
		}
	}
	return nil
}

// stored says whether a node has files of an extension of which we know that they
// are its own.
func (s *Session) stored(name string) bool {
	return slices.ContainsFunc(s.nodes(), func(n *node) bool { return n.o.Role.Superuser && n.o.Store.find(name) != nil })
}

// remove removes from the stores what the plan says, if that is still so: the
// transaction is committed, and another database may have what it dropped.
func (s *Session) remove(ctx context.Context, p *Plan, report *Report) (failed []error) {
	if len(p.Remove) == 0 {
		return nil
	}
	u, err := s.users(ctx)
	if err != nil {
		return []error{fmt.Errorf("could not find out who needs the files that were to be removed: %w", err)}
	}
	lsn, err := s.insertLSN(ctx)
	if err != nil {
		return []error{err}
	}
	note := func(format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !slices.Contains(report.Notes, text) {
			report.Notes = append(report.Notes, text)
		}
	}
	for _, planned := range p.Remove {
		n, name := s.node(planned.Node), planned.Extension
		if who := u.who(name, ""); who != "" || len(u.unasked) > 0 {
			note("the files of %s stay on the server: %s", name, joinSome(append(slices.DeleteFunc([]string{who}, func(s string) bool { return s == "" }), u.unasked...), 3))
			continue
		}
		if n.o.Standby {
			// Until it has replayed that the extension is gone, its sessions may call it.
			late, err := n.replayed(ctx, lsn)
			if err != nil {
				failed = append(failed, err)
				continue
			}
			if late != "" {
				note("the files of %s stay at %s: %s; later the same command removes them", name, n.o.Node, late)
				continue
			}
		}
		r, notes, err := n.removal(ctx, name)
		if err == nil {
			for _, text := range notes {
				note("%s", text)
			}
			err = n.take(ctx, r)
		}
		if err != nil {
			failed = append(failed, fmt.Errorf("could not remove the files of %s at %s: %w", name, n.o.Node, err))
			continue
		}
		s.cfg.Log.Info("files removed", "node", n.o.Node, "extension", name, "files", len(r.Files))
		report.Removed = append(report.Removed, r.String())
	}
	return failed
}

// take carries out a removal.
func (n *node) take(ctx context.Context, r Removal) error {
	if len(r.Files) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	if r.left != nil {
		if err := n.write(ctx, path.Join(n.store(false), manifestPath(r.Extension)), r.left.text()); err != nil {
			return err
		}
	}
	files, manifest := r.Files, []string(nil)
	if r.left == nil { // the manifest stays as long as one of the others does
		files, manifest = files[:len(files)-1], files[len(files)-1:]
	}
	if err := n.removeStored(ctx, files); err != nil {
		return err
	}
	return n.removeStored(ctx, manifest)
}

// removeStored removes files of the store, and folders of it that are empty then.
// Nothing outside of the store is ever named.
func (n *node) removeStored(ctx context.Context, files []string) error {
	root := n.store(false)
	folders := []string{root}
	for _, f := range files {
		if !strings.HasPrefix(f, root+"/") || path.Clean(f) != f {
			return fmt.Errorf("extension: %q is not in the store", f)
		}
		for dir := path.Dir(f); dir != root; dir = path.Dir(dir) {
			if !slices.Contains(folders, dir) {
				folders = append(folders, dir)
			}
		}
	}
	slices.SortFunc(folders, func(a, b string) int { return len(b) - len(a) }) // the inner ones first
	const most = 200                                                           // a command line has a limit
	for len(files) > 0 {
		some := files[:min(len(files), most)]
		files = files[len(some):]
		program := "cat > /dev/null; rm -f --"
		for _, f := range some {
			program += " " + shellQuote(f)
		}
		if len(files) == 0 {
			for _, dir := range folders {
				dir, parent := shellQuote(dir), shellQuote(path.Dir(dir))
				program += fmt.Sprintf(" && { test ! -d %[1]s || { sync %[1]s && if rmdir %[1]s 2> /dev/null; then sync %[2]s; fi; }; }", dir, parent)
			}
		}
		if _, err := n.conn.PgConn().Exec(ctx, "COPY (SELECT 1) TO PROGRAM "+quoteLiteral(program)).ReadAll(); err != nil {
			return err
		}
	}
	return nil
}

// onlyNew takes out of the plan what is in the stores already, as it should be.
func (s *Session) onlyNew(ctx context.Context, p *Plan) error {
	there := map[string]bool{} // by node and path
	for _, n := range s.nodes() {
		var inside []string
		for _, f := range p.Files {
			if file, ok := strings.CutPrefix(f.Path, n.store(false)+"/"); ok && f.Node == n.o.Node {
				inside = append(inside, file)
			}
		}
		sums, err := n.hashes(ctx, inside)
		if err != nil {
			return err
		}
		for _, f := range p.Files {
			if file, ok := strings.CutPrefix(f.Path, n.store(false)+"/"); ok && f.Node == n.o.Node && sums[file] == f.SHA256 {
				there[f.Node+"\n"+f.Path] = true
				p.leadTo(f.Node, f.Path)
			}
		}
	}
	p.Files = slices.DeleteFunc(p.Files, func(f NodeFile) bool { return there[f.Node+"\n"+f.Path] })
	return nil
}

// notShadowed refuses a library that the server would not find, because a folder
// that it looks into before the store has another of that name: the functions
// would be those of that one.
func (s *Session) notShadowed(ctx context.Context, files []NodeFile) error {
	for _, f := range files {
		n := s.node(f.Node)
		folder := path.Join(n.store(false), storeLibraries)
		if path.Dir(f.Path) != folder || n.o.LibDir == "" {
			continue
		}
		for _, file := range n.libraryFiles(path.Base(f.Path)) {
			if path.Dir(file) == folder {
				break
			}
			sum, err := n.fileHash(ctx, file)
			if err != nil {
				return err
			}
			if sum != "" && sum != f.SHA256 {
				return &ShadowedError{Name: f.Extension, Node: f.Node, Library: path.Base(f.Path), File: file}
			}
		}
	}
	return nil
}

// leadTo has the search paths of a node lead to a file that is there.
func (p *Plan) leadTo(node, file string) {
	if p.lead == nil {
		p.lead = map[string][]string{}
	}
	p.lead[node] = append(p.lead[node], file)
}

// replaced says what changes for other databases because files of an extension are
// replaced that are there already.
func (s *Session) replaced(ctx context.Context, p *Plan, ask func() (*users, error)) error {
	type change struct{ extension, file string }
	where := map[change][]string{}
	var order []change
	for _, n := range s.nodes() {
		root := n.store(false) + "/"
		var inside []string
		for _, f := range p.Files {
			if file, ok := strings.CutPrefix(f.Path, root); ok && f.Node == n.o.Node && !strings.HasPrefix(file, storeManifests+"/") {
				inside = append(inside, file)
			}
		}
		sums, err := n.hashes(ctx, inside)
		if err != nil {
			return err
		}
		for _, f := range p.Files {
			file, ok := strings.CutPrefix(f.Path, root)
			if sum, there := sums[file]; !ok || !there || f.Node != n.o.Node || sum == f.SHA256 {
				continue
			}
			c := change{f.Extension, file}
			if where[c] == nil {
				order = append(order, c)
			}
			where[c] = append(where[c], n.o.Node)
			if strings.HasPrefix(file, storeLibraries+"/") && slices.ContainsFunc(n.o.Preloaded, func(lib string) bool { return bareLibrary(lib) == bareLibrary(file) }) {
				p.Restart = append(p.Restart, fmt.Sprintf("%s, for %s: it has loaded the old %s in %s, and every session keeps to that", n.o.Node, f.Extension, file, sharedPreload))
			}
		}
	}
	for _, c := range order {
		u, err := ask()
		if err != nil {
			return err
		}
		who := u.who(c.extension, "")
		for _, text := range u.unasked {
			who = strings.TrimPrefix(who+", "+text, ", ")
		}
		if who == "" {
			continue // nobody has it
		}
		switch {
		case strings.HasPrefix(c.file, storeLibraries+"/"):
			p.Notes = append(p.Notes, fmt.Sprintf("%s at %s is replaced, for every database of the server: %s; sessions that have loaded the old one keep it until they end",
				c.file, strings.Join(where[c], ", "), who))
		case strings.HasSuffix(c.file, ".control") && !strings.Contains(path.Base(c.file), "--"):
			p.Notes = append(p.Notes, fmt.Sprintf("%s at %s is replaced, for every database of the server, and with it the default version: %s",
				c.file, strings.Join(where[c], ", "), who))
		}
	}
	return nil
}

// lacking lists the files of an extension that a node should have and has not as
// they were brought.
func (n *node) lackingFiles(ctx context.Context, m *StoredPackage) ([]StoredFile, error) {
	var all []string
	for _, f := range m.Files {
		all = append(all, f.Path)
	}
	sums, err := n.hashes(ctx, all)
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(m.Files), func(f StoredFile) bool { return sums[f.Path] == f.SHA256 }), nil
}

// brought says whether the files that a node has of an extension are of its store,
// and not the server's own.
func (n *node) brought(name string) bool {
	return n.o.Store.find(name).find(storeControls+"/"+name+".control") != nil &&
		slices.ContainsFunc(n.o.Available[name], func(a Available) bool { return strings.HasSuffix(a.Comment, broughtMark) })
}

// listed is what a node should have in its store of an extension: what its own
// manifest lists, and what those of other nodes list besides. Nil if nobody knows.
func (s *Session) listed(n *node, name string, mode Mode) *StoredPackage {
	var m *StoredPackage
	if own := n.o.Store.find(name); own != nil {
		m = &StoredPackage{}
		*m = *own
		m.Files = slices.Clone(own.Files)
	}
	for _, other := range s.nodes() {
		theirs := other.o.Store.find(name)
		if other == n || theirs == nil || mode == Native && !other.brought(name) {
			continue
		}
		if m == nil {
			m = &StoredPackage{Name: name, Version: theirs.Version}
		}
		m.SHA256 = cmp.Or(m.SHA256, theirs.SHA256)
		for _, f := range theirs.Files {
			if m.find(f.Path) == nil {
				m.Files = append(m.Files, f)
			}
		}
	}
	return m
}

// storeFiles plans that every node has what another has of an extension that is
// installed from what is there already.
func (s *Session) storeFiles(ctx context.Context, p *Plan, req Request) error {
	k := s.known(ctx, req)
	for i := range p.Steps {
		step := &p.Steps[i]
		here := step.Mode == Native || step.Mode == Path && step.pkg == nil
		if step.Action != Install && step.Action != Upgrade || !here || !s.primary.brought(step.Name) {
			continue
		}
		if err := s.redoFiles(ctx, p, k, &Installed{Name: step.Name, Version: step.To, Mode: step.Mode}); err != nil {
			return err
		}
	}
	return nil
}

// redoFiles plans to bring again what is gone from the stores of what is
// installed, or never was in that of one node: from its package, or from another
// node that has it.
func (s *Session) redoFiles(ctx context.Context, p *Plan, k *known, in *Installed) error {
	if in.Mode == Module {
		return nil
	}
	for _, n := range s.nodes() {
		if !n.o.Role.Superuser {
			continue
		}
		m := s.listed(n, in.Name, in.Mode)
		if m == nil && in.Mode != Native && in.SHA256 != "" && !n.o.Store.unlisted(in.Name) {
			m = &StoredPackage{Name: in.Name, Version: in.Version, SHA256: in.SHA256}
		}
		if m == nil {
			continue
		}
		for _, f := range m.Files {
			p.leadTo(n.o.Node, path.Join(n.store(false), f.Path))
		}
		lost, err := n.lackingFiles(ctx, m)
		if err != nil {
			return err
		}
		if len(lost) == 0 && len(m.Files) > 0 {
			continue
		}
		pkg, err := k.packageOf(ctx, in.Name, m.SHA256)
		if err != nil {
			return err
		}
		have := map[string][]byte{}
		if pkg != nil {
			mode := in.Mode
			if mode == Native {
				mode = Path
			}
			if have, err = stepFiles(&Step{Name: in.Name, Mode: mode, pkg: pkg}); err != nil {
				return err
			}
		}
		bring := map[string][]byte{}
		if len(m.Files) == 0 { // all manifests are lost, too
			for file, data := range have {
				if n.o.Store == nil || !n.o.Store.has(file) {
					bring[file] = data
				}
			}
		}
		for _, f := range lost {
			data, ok := have[f.Path]
			if !ok || hashOf(data) != f.SHA256 {
				if data, err = s.copyOf(ctx, n, f); err != nil {
					return err
				}
			}
			if data == nil {
				p.Notes = append(p.Notes, fmt.Sprintf("%s of %s is not at %s as it was brought there, and cannot be brought again: no registry has the package with sha256 %s",
					path.Join(n.store(false), f.Path), in.Name, n.o.Node, m.SHA256))
				continue
			}
			bring[f.Path] = data
		}
		if len(bring) == 0 {
			continue
		}
		files, err := n.toStore(in.Name, m.Version, m.SHA256, bring)
		if err != nil {
			return err
		}
		p.Files = append(p.Files, files...)
	}
	return nil
}

// copyOf reads a file from another node that has it as it should be, nil if none
// has.
func (s *Session) copyOf(ctx context.Context, not *node, f StoredFile) ([]byte, error) {
	for _, n := range s.nodes() {
		if n == not || !n.o.Role.Superuser {
			continue
		}
		sums, err := n.hashes(ctx, []string{f.Path})
		if err != nil {
			return nil, err
		}
		if sums[f.Path] == f.SHA256 {
			return n.readFile(ctx, path.Join(n.store(false), f.Path))
		}
		if !strings.HasPrefix(f.Path, storeLibraries+"/") || n.o.LibDir == "" {
			continue
		}
		file, sum, err := n.library(ctx, ownLibraries+"/"+bareLibrary(f.Path))
		if err != nil {
			return nil, err
		}
		if sum == f.SHA256 { // the server's own
			return n.readFile(ctx, file)
		}
	}
	return nil, nil
}

// lookAtStore finds what is gone from the stores, and what is in them for nobody.
func (s *Session) lookAtStore(ctx context.Context, x *Examination) error {
	var u *users
	for _, n := range s.nodes() {
		if n.o.Role.Superuser && n.o.DataDir != "" {
			stale, live, err := n.rehearsals(ctx)
			if err != nil {
				return err
			}
			for _, dir := range stale {
				x.add(Note, []string{"It goes with the next installation that brings files."}, "%s at %s is left of a dry run that was killed", dir, n.o.Node)
			}
			for _, dir := range live {
				x.add(Note, []string{"If no dry run is going on, remove it."}, "%s at %s is of a dry run, of whose end nothing is known", dir, n.o.Node)
			}
		}
		st := n.o.Store
		if st == nil {
			continue
		}
		for _, what := range st.Unreadable {
			x.add(No, nil, "%s in %s at %s cannot be understood: whose the files are is not known", what, n.store(false), n.o.Node)
		}
		for i := range st.Packages {
			m := &st.Packages[i]
			if u == nil {
				var err error
				if u, err = s.users(ctx); err != nil {
					return err
				}
			}
			if u.who(m.Name, "") == "" {
				if len(u.unasked) > 0 {
					x.add(Note, nil, "whether anybody needs the files of %s at %s is not known: %s", m.Name, n.o.Node, joinSome(u.unasked, 3))
				} else {
					x.add(Note, []string{"rideau extension uninstall " + m.Name}, "the files of %s %s are in %s at %s, and no database of the server has it", m.Name, m.Version, n.store(false), n.o.Node)
				}
				continue
			}
			lost, err := n.lackingFiles(ctx, m)
			if err != nil {
				return err
			}
			for _, f := range lost {
				what := "is gone"
				if st.has(f.Path) {
					what = "is not as it was brought there"
				}
				x.add(No, []string{fmt.Sprintf("rideau extension install %s, with a registry that has %s %s, in a database that has it", m.Name, m.Name, m.Version)},
					"%s at %s, which %s needs, %s", path.Join(n.store(false), f.Path), n.o.Node, m.Name, what)
			}
			if len(lost) == 0 {
				x.add(OK, nil, "the %d files of %s that were brought to %s are there, unchanged", len(m.Files), m.Name, n.o.Node)
			}
		}
		for _, name := range n.o.Stored {
			if st.unlisted(name) {
				x.add(Note, nil, "the files of %s in %s at %s were brought without a list of them: they do not go by themselves", name, n.store(false), n.o.Node)
			}
		}
	}
	return nil
}
