// Package rideau has no code of its own: the program is in cmd/rideau, and what
// it is made of is beside this file. See ARCHITECTURE.md for the map.
//
// The tests here hold the house to its rules, so that none has to be remembered:
// imports point down, every package is explained once, only main exits, no test
// sleeps.
package rideau

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "rideau"

// layers lists our packages from the bottom up. A package may import packages
// of earlier rows and none of its own: what two features share belongs lower.
var layers = [][]string{
	{"wal", "internal/durable", "internal/netproxy", "extension/depend", "extension/script", "extension/catalog"},
	{"pgrepl", "archive", "internal/pgserver", "basebackup/page", "basebackup/control", "basebackup/manifest", "basebackup/summary", "basebackup/compress", "extension/pack", "extension/resolve"},
	{"basebackup/walsave", "extension/ledger", "extension/registry"}, // parts of one feature, and nobody else's
	{"relay", "console", "basebackup", "extension"},
	{"demo"}, // a play with features as its cast; nothing but the command knows it
	{"cmd/rideau", "bench"},
}

// onlyTests may be imported by tests alone, and then by any.
var onlyTests = []string{"internal/pgtest"}

// onlyStandardLibrary import nothing from outside it.
var onlyStandardLibrary = []string{"wal", "extension/depend", "extension/script"}

// minPackageDoc is the number of lines below which a package doc cannot have
// said what the package is for, how it starts and ends, and what it promises.
const minPackageDoc = 5

// A goPackage is what "go list -json" says of a package of ours.
type goPackage struct {
	ImportPath   string
	Dir          string
	Name         string
	GoFiles      []string
	TestGoFiles  []string
	XTestGoFiles []string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

// path is the package's place in the tree, "internal/durable"; "." at the root.
func (p *goPackage) path() string { return ours(p.ImportPath) }

// ours returns the place in our tree of an import, or "" if it is not ours.
func ours(imported string) string {
	if imported == module {
		return "."
	}
	rest, ok := strings.CutPrefix(imported, module+"/")
	if !ok {
		return ""
	}
	return rest
}

func goPackages(t *testing.T) []*goPackage {
	t.Helper()
	// -find=false is the default; -e reports packages that do not build yet,
	// which is the compiler's to say, not ours.
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Dir,Name,GoFiles,TestGoFiles,XTestGoFiles,Imports,TestImports,XTestImports", "./...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []*goPackage
	d := json.NewDecoder(strings.NewReader(string(out)))
	for {
		p := new(goPackage)
		if err := d.Decode(p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

func TestImportsPointDown(t *testing.T) {
	layer := map[string]int{}
	for i, row := range layers {
		for _, pkg := range row {
			layer[pkg] = i
		}
	}
	seen := map[string]bool{}
	for _, p := range goPackages(t) {
		from := p.path()
		seen[from] = true
		for _, imported := range p.Imports {
			if slices.Contains(onlyTests, ours(imported)) && !slices.Contains(onlyTests, from) {
				t.Errorf("%s imports %s, which is for tests only", from, ours(imported))
			}
		}
		row, ok := layer[from]
		switch {
		case from == "." || slices.Contains(onlyTests, from):
			continue
		case !ok:
			t.Errorf("%s has no place on the map: add it to layers in arch_test.go and to ARCHITECTURE.md", from)
			continue
		}
		for _, imported := range p.Imports {
			to := ours(imported)
			if toRow, ok := layer[to]; ok && toRow >= row {
				t.Errorf("%s imports %s, which is not in a lower layer", from, to)
			}
			if slices.Contains(onlyStandardLibrary, from) && (to != "" || strings.Contains(strings.Split(imported, "/")[0], ".")) {
				t.Errorf("%s imports %s: it may import the standard library only", from, imported)
			}
		}
		// A test may use what is below it, and real servers.
		for _, imported := range slices.Concat(p.TestImports, p.XTestImports) {
			to := ours(imported)
			if toRow, ok := layer[to]; ok && to != from && to != "internal/pgserver" && toRow >= row {
				t.Errorf("a test of %s imports %s, which is not in a lower layer", from, to)
			}
		}
	}
	for pkg := range layer {
		if !seen[pkg] {
			t.Logf("%s is on the map and not in the tree", pkg)
		}
	}
}

// TestPackageDocs checks that every package is explained, in one place.
func TestPackageDocs(t *testing.T) {
	for _, p := range goPackages(t) {
		if p.path() == "." {
			continue
		}
		var files []string
		for _, name := range p.GoFiles {
			f := parse(t, filepath.Join(p.Dir, name), parser.PackageClauseOnly|parser.ParseComments)
			if f.Doc == nil {
				continue
			}
			files = append(files, name)
			text := strings.TrimSpace(f.Doc.Text())
			first := "Package " + p.Name + " "
			if p.Name == "main" {
				first = "Command " + filepath.Base(p.Dir) + " "
			}
			if !strings.HasPrefix(text, first) {
				t.Errorf("%s: the package doc in %s does not begin with %q", p.path(), name, first)
			}
			if n := strings.Count(text, "\n") + 1; n < minPackageDoc {
				t.Errorf("%s: the package doc in %s has %d lines; say what it is for, how it begins and ends, what it promises", p.path(), name, n)
			}
		}
		if len(p.GoFiles) > 0 && len(files) != 1 {
			t.Errorf("%s has %d package docs %q, want one", p.path(), len(files), files)
		}
	}
}

// forbidden calls, and where they may stand all the same.
var forbidden = []struct {
	pkg     string // import path
	calls   []string
	inTests bool // forbidden in tests, else outside of them
	except  func(file string) bool
	why     string
}{
	{"time", []string{"Sleep"}, true, nil,
		"a test waits for a condition or uses testing/synctest"}, // whose time is fake, see inBubbles
	{"os", []string{"Exit"}, false, func(file string) bool { return file == "cmd/rideau/main.go" || file == "bench/main.go" },
		"only main exits"},
	{"log", []string{"Fatal", "Fatalf", "Fatalln", "Panic", "Panicf", "Panicln"}, false, nil,
		"return the error; only main exits"},
}

func TestForbiddenCalls(t *testing.T) {
	for _, p := range goPackages(t) {
		for _, name := range slices.Concat(p.GoFiles, p.TestGoFiles, p.XTestGoFiles) {
			file := filepath.ToSlash(filepath.Join(p.path(), name))
			syntax := parse(t, filepath.Join(p.Dir, name), 0)
			for _, call := range forbiddenCalls(syntax, file) {
				t.Error(call)
			}
		}
	}
}

// forbiddenCalls returns a complaint for each forbidden call in a file. It goes
// by the names under which the file imports packages, so a method that happens
// to be called Sleep is none of its business.
func forbiddenCalls(syntax *ast.File, file string) []string {
	imported := map[string]string{} // name in the file to import path
	for _, spec := range syntax.Imports {
		path, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			continue
		}
		name := path[strings.LastIndex(path, "/")+1:]
		if spec.Name != nil {
			name = spec.Name.Name
		}
		imported[name] = path
	}
	var complaints []string
	fake := inBubbles(syntax)
	ast.Inspect(syntax, func(n ast.Node) bool {
		if n != nil && fake[n] {
			return false
		}
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		x, ok := sel.X.(*ast.Ident)
		if !ok {
			return true
		}
		for _, rule := range forbidden {
			isTest := strings.HasSuffix(file, "_test.go")
			if imported[x.Name] == rule.pkg && slices.Contains(rule.calls, sel.Sel.Name) && isTest == rule.inTests &&
				(rule.except == nil || !rule.except(file)) {
				complaints = append(complaints, file+" uses "+rule.pkg+"."+sel.Sel.Name+": "+rule.why)
			}
		}
		return true
	})
	return complaints
}

// inBubbles returns the functions of a file that run in fake time: those handed
// to synctest.Test, or to a function of the file that calls it.
func inBubbles(syntax *ast.File) map[ast.Node]bool {
	isBubble := func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return false
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return false
		}
		x, ok := sel.X.(*ast.Ident)
		return ok && x.Name == "synctest" && sel.Sel.Name == "Test"
	}
	helpers := map[string]bool{}
	for _, decl := range syntax.Decls {
		if f, ok := decl.(*ast.FuncDecl); ok && !strings.HasPrefix(f.Name.Name, "Test") {
			ast.Inspect(f, func(n ast.Node) bool {
				helpers[f.Name.Name] = helpers[f.Name.Name] || isBubble(n)
				return true
			})
		}
	}
	fake := map[ast.Node]bool{}
	ast.Inspect(syntax, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		name, _ := call.Fun.(*ast.Ident)
		if isBubble(call) || name != nil && helpers[name.Name] {
			for _, arg := range call.Args {
				if f, ok := arg.(*ast.FuncLit); ok {
					fake[f] = true
				}
			}
		}
		return true
	})
	return fake
}

// The rule must be able to fail.
func TestForbiddenCallsAreSeen(t *testing.T) {
	tests := []struct {
		name, file, code string
		want             int
	}{
		{"a test that sleeps", "a/a_test.go", `import "time"; func f() { time.Sleep(1) }`, 1},
		{"under another name", "a/a_test.go", `import z "time"; func f() { z.Sleep(1) }`, 1},
		{"as a value", "a/a_test.go", `import "time"; var nap = time.Sleep`, 1},
		{"in fake time", "a/a_test.go", `import ("time"; "testing/synctest"); func f() { synctest.Test(nil, func() { time.Sleep(1) }) }`, 0},
		{"in fake time, by way of a helper", "a/a_test.go", `import ("time"; "testing/synctest"); func h(f func()) { synctest.Test(nil, f) }; func g() { h(func() { time.Sleep(1) }) }`, 0},
		{"beside fake time", "a/a_test.go", `import ("time"; "testing/synctest"); func f() { time.Sleep(1); synctest.Test(nil, func() {}) }`, 1},
		{"the program may", "a/a.go", `import "time"; func f() { time.Sleep(1) }`, 0},
		{"a method of that name", "a/a_test.go", `func f() { clock.Sleep(1) }`, 0},
		{"a package that exits", "a/a.go", `import "os"; func f() { os.Exit(1) }`, 1},
		{"main exits", "cmd/rideau/main.go", `import "os"; func f() { os.Exit(1) }`, 0},
		{"main of the bench exits", "bench/main.go", `import "os"; func f() { os.Exit(1) }`, 0},
		{"TestMain exits", "a/a_test.go", `import "os"; func f() { os.Exit(1) }`, 0},
		{"log.Fatal", "cmd/rideau/main.go", `import "log"; func f() { log.Fatal(1) }`, 1},
		{"another log", "a/a.go", `import "log/slog"; func f() { slog.Error("") }`, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			syntax, err := parser.ParseFile(token.NewFileSet(), tt.file, "package a; "+tt.code, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got := forbiddenCalls(syntax, tt.file); len(got) != tt.want {
				t.Errorf("complaints %q, want %d", got, tt.want)
			}
		})
	}
}

// What is committed speaks of the project alone: no file names a path of the
// machine it was written on.
func TestNoPathsOfOneMachine(t *testing.T) {
	out, err := exec.Command("git", "ls-files", "-z").Output()
	if err != nil {
		t.Skipf("not a git checkout: %v", err)
	}
	homes := []string{"/" + "work/", "/" + "root/", "/" + "home/runner"}
	for name := range strings.SplitSeq(string(out), "\x00") {
		if name == "" {
			continue
		}
		text, err := readText(name)
		if errors.Is(err, fs.ErrNotExist) {
			continue // removed, not committed yet
		}
		if err != nil {
			t.Fatal(err)
		}
		for _, home := range homes {
			if strings.Contains(text, home) {
				t.Errorf("%s names the path %q", name, home)
			}
		}
	}
}

func parse(t *testing.T, file string, mode parser.Mode) *ast.File {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, mode)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// readText returns a file's content if it is text, "" if not.
func readText(name string) (string, error) {
	text, err := os.ReadFile(name)
	if err != nil || strings.ContainsRune(string(text[:min(len(text), 8000)]), 0) {
		return "", err
	}
	return string(text), nil
}
