package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"aead.dev/minisign"
	"github.com/rogpeppe/go-internal/testscript"

	"rideau/internal/pgtest"
)

// TestExtensionScripts runs the stories in testdata/extension: what a person does
// with extensions. All share one server of each major version that they are about,
// and make databases of their own there. Beside the commands of testscript they
// have
//
//	database NAME             make a database owned by role owner, who is nobody
//	                          special; $NAME is how owner connects to it, and
//	                          $NAME_SUPER how a superuser does
//	standby NAME              a standby of the server; $NAME_STANDBY is that
//	                          database on it, for a superuser
//	sql CONNINFO STATEMENT    rows become the output
//	begin CONNINFO STATEMENT  leave a transaction open, until rollback
//	rollback                  end it
//	status N COMMAND...       rideau extension COMMAND must end with status N
//
// and the variables EXAMPLES, KEY and PUB: the packages of the examples, and a pair
// of keys.
func TestExtensionScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/extension/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata/extension: %v", err)
	}
	servers := map[int]*sync.Once{}
	started := map[int]*pgtest.Server{}
	for _, major := range pgtest.Majors {
		servers[major] = new(sync.Once)
	}
	server := func(major int) *pgtest.Server {
		servers[major].Do(func() {
			started[major] = pgtest.Start(t, pgtest.Options{Major: major})
			started[major].Exec("CREATE ROLE owner LOGIN")
		})
		return started[major]
	}
	for _, file := range files {
		name := strings.TrimSuffix(filepath.Base(file), ".txt")
		majors := []int{15}
		if name == "post" {
			majors = []int{13, 15, 18}
		}
		for _, major := range majors {
			s := server(major)
			t.Run(fmt.Sprintf("%s/%d", name, major), func(t *testing.T) {
				t.Parallel()
				runExtensionScript(t, file, s.For(t), major)
			})
		}
	}
}

func runExtensionScript(t *testing.T, file string, s *pgtest.Server, major int) {
	story := strings.TrimSuffix(filepath.Base(file), ".txt")
	examples, err := filepath.Abs("../../examples")
	if err != nil {
		t.Fatal(err)
	}
	// The server of another database is the same with another dbname.
	conninfo := func(database, user string) string {
		return s.Conninfo("user="+user) + " dbname=" + database
	}
	run := func(conninfo, sql string) (string, error) {
		out, err := pgtest.Command(t, major, "psql", conninfo, "-XAtqc", sql).CombinedOutput()
		return string(out), err
	}
	var open *pgtest.Process
	testscript.Run(t, testscript.Params{
		Files:               []string{file},
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(env *testscript.Env) error {
			for _, v := range [][2]string{
				{"HOME", filepath.Join(env.WorkDir, "home")}, {"EXAMPLES", examples}, {"MAJOR", fmt.Sprint(major)},
				{"KEY", filepath.Join(env.WorkDir, "my.key")}, {"PUB", filepath.Join(env.WorkDir, "my.pub")},
			} {
				env.Setenv(v[0], v[1])
			}
			return writeTestKeys(env.WorkDir)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"database": func(ts *testscript.TestScript, _ bool, args []string) {
				name := story + "_" + args[0]
				s.Exec(fmt.Sprintf("CREATE DATABASE %s OWNER owner", name))
				ts.Setenv(args[0], conninfo(name, "owner"))
				ts.Setenv(args[0]+"_SUPER", conninfo(name, "postgres"))
			},
			"standby": func(ts *testscript.TestScript, _ bool, args []string) {
				standby := s.Standby(pgtest.Options{Name: "s1"}, s.Conninfo("user=postgres"))
				standby.Start()
				standby.WaitLSN(s.LSN())
				ts.Setenv(args[0]+"_STANDBY", standby.Conninfo("user=postgres")+" dbname="+story+"_"+args[0])
			},
			"sql": func(ts *testscript.TestScript, neg bool, args []string) {
				out, err := run(args[0], strings.Join(args[1:], " "))
				io.WriteString(ts.Stdout(), out)
				if (err != nil) != neg {
					ts.Fatalf("sql: %v\n%s", err, out)
				}
			},
			"begin": func(ts *testscript.TestScript, _ bool, args []string) {
				open = pgtest.Go(t, major, "psql", args[0], "-Xc", "BEGIN; "+args[1]+"; SELECT pg_sleep(600)")
				pgtest.Wait(t, args[1], func() (bool, string) {
					out, err := run(args[0], "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")
					return err == nil && strings.TrimSpace(out) == "1", out
				})
			},
			"rollback": func(ts *testscript.TestScript, _ bool, args []string) {
				_, err := run(args[0], "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE wait_event = 'PgSleep' AND datname = current_database()")
				ts.Check(err)
				open.Wait() // it was ended: that is no failure
			},
			"status": func(ts *testscript.TestScript, _ bool, args []string) {
				err := ts.Exec("rideau", append([]string{"extension"}, args[1:]...)...)
				got := "0"
				if err != nil {
					got = strings.TrimPrefix(err.Error(), "exit status ")
				}
				if got != args[0] {
					ts.Fatalf("the status is %s, want %s", got, args[0])
				}
			},
		},
	})
}

// writeTestKeys writes a pair of keys, the secret one without a password: to
// decrypt it takes a second and a gigabyte.
func writeTestKeys(dir string) error {
	pub, key, err := minisign.GenerateKey(nil)
	if err != nil {
		return err
	}
	secret, err := key.MarshalText()
	if err != nil {
		return err
	}
	public, err := pub.MarshalText()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "my.key"), secret, 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "my.pub"), public, 0o644)
}
