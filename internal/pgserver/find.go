package pgserver

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// CacheDir is where installed servers (by scripts/servers) and templates of
// data directories are kept for every checkout on this machine: $RIDEAU_CACHE,
// or /var/cache/rideau for root, because the account that servers run as must be
// able to reach it, or rideau in the user's own cache folder.
func CacheDir() (string, error) {
	if dir := os.Getenv("RIDEAU_CACHE"); dir != "" {
		return filepath.Abs(dir)
	}
	if os.Geteuid() == 0 {
		return "/var/cache/rideau", nil
	}
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "rideau"), err
}

// Find returns the folder of the programs of a major version: NN/bin in
// $RIDEAU_SERVERS, in the folder .servers of the working directory or one above
// it, and in the cache directory; then the places where Debian, Red Hat and
// Homebrew put it; then $PATH.
func Find(major int) (binDir string, err error) {
	for _, dir := range places(major) {
		if _, err := os.Stat(filepath.Join(dir, "postgres")); err != nil {
			continue
		}
		// Links are followed here because the account that the server runs as
		// may not be able to: a checkout in root's home is not open to nobody.
		return filepath.EvalSymlinks(dir)
	}
	return "", fmt.Errorf("PostgreSQL %d is not installed: no .servers/%d/bin/postgres here or above, nor in the usual places (run \"make servers\")", major, major)
}

func places(major int) []string {
	nn := strconv.Itoa(major)
	var dirs []string
	if dir := os.Getenv("RIDEAU_SERVERS"); dir != "" {
		dirs = append(dirs, filepath.Join(dir, nn, "bin"))
	}
	if dir, err := os.Getwd(); err == nil {
		for {
			dirs = append(dirs, filepath.Join(dir, ".servers", nn, "bin"))
			if dir == filepath.Dir(dir) {
				break
			}
			dir = filepath.Dir(dir)
		}
	}
	if dir, err := CacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(dir, "servers", nn, "bin"))
	}
	dirs = append(dirs,
		"/usr/lib/postgresql/"+nn+"/bin",
		"/usr/pgsql-"+nn+"/bin",
		"/opt/homebrew/opt/postgresql@"+nn+"/bin",
		"/usr/local/opt/postgresql@"+nn+"/bin",
	)
	if path, err := exec.LookPath("postgres"); err == nil {
		out, err := exec.Command(path, "--version").Output() // postgres (PostgreSQL) 17.6 ...
		if _, version, ok := strings.Cut(string(out), ") "); err == nil && ok && strings.HasPrefix(version, nn+".") {
			dirs = append(dirs, filepath.Dir(path))
		}
	}
	return dirs
}

// Tool returns the path of a client program (pg_basebackup, psql, pgbench, ...)
// that can talk to a server of the major version: its own, or else that of the
// next newer version, because client programs serve older servers but not newer
// ones. Programs that read a data directory or WAL files (pg_rewind,
// pg_controldata, pg_waldump, pg_resetwal, pg_checksums, pg_archivecleanup) want
// exactly their own version, and are only looked for there.
func Tool(major int, name string) (string, error) {
	majors := []int{major}
	exact := []string{"postgres", "initdb", "pg_ctl", "pg_rewind", "pg_controldata", "pg_waldump", "pg_resetwal", "pg_checksums"}
	if !slices.Contains(exact, name) {
		for _, m := range Majors {
			if m > major {
				majors = append(majors, m)
			}
		}
	}
	for _, m := range majors {
		dir, err := Find(m)
		if err != nil {
			continue
		}
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("no %s for PostgreSQL %d is installed (run \"make servers\")", name, major)
}

// Command is a [Tool], ready to run: as the account that servers run as, in a
// folder it can be in, without the PG* variables of our environment, and killed
// when ctx ends or we die.
func Command(ctx context.Context, major int, name string, args ...string) (*exec.Cmd, error) {
	path, err := Tool(major, name)
	if err != nil {
		return nil, err
	}
	a, err := serverAccount()
	if err != nil {
		return nil, err
	}
	return a.command(ctx, path, args...), nil
}

func (a account) command(ctx context.Context, path string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, path, args...)
	a.become(cmd, syscall.SIGKILL)
	cmd.Dir = "/"
	cmd.Env = environ()
	return cmd
}

// environ is our environment without what would change what a server or tool
// does: libpq's variables, a library path meant for other binaries, and a home
// directory, which holds certificates and passwords for libpq and is not for
// the account to see.
func environ() []string {
	env := slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "PG") || strings.HasPrefix(kv, "HOME=") || strings.HasPrefix(kv, "LD_LIBRARY_PATH=") ||
			strings.HasPrefix(kv, "LC_") || strings.HasPrefix(kv, "LANG")
	})
	return append(env, "LC_ALL=C", "HOME=/nonexistent")
}
