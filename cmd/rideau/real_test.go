package main

import (
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"rideau/internal/pgtest"
)

// TestRealScripts runs the stories in testdata/real, each with a PostgreSQL
// server of its own: what a person does to put a relay to use, and what goes
// wrong. Beside the commands of testscript they have
//
//	sql STATEMENT                  on the primary; rows become the output
//	standby DIR                    start the base backup in DIR as a server
//	onstandby STATEMENT            on that server
//	another                        start a server of another cluster, at OTHER
//	pg PROGRAM [ARGUMENTS]         one of PostgreSQL's client programs
//	get URL                        the body becomes the output
//	await REGEXP COMMAND...        one of these, until its output matches
//
// and the variables PRIMARY (a connection string), PORT and HTTP (free ports),
// and BACKUP (a directory that servers can use).
func TestRealScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/real/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata/real: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			primary := pgtest.Start(t, pgtest.Options{Settings: map[string]string{"wal_keep_size": "64MB"}})
			var standby *pgtest.Server
			commands := map[string]func(args []string) (string, error){
				"sql": func(args []string) (string, error) { return query(t, primary, args) },
				"onstandby": func(args []string) (string, error) {
					if standby == nil {
						return "", fmt.Errorf("no standby was started")
					}
					return query(t, standby, args)
				},
				"standby": func(args []string) (string, error) {
					standby = pgtest.Open(t, pgtest.Options{Dir: args[0], Name: "standby1"})
					standby.Start()
					return "", nil
				},
				"pg": func(args []string) (string, error) {
					out, err := pgtest.Command(t, primary.Major, args[0], args[1:]...).CombinedOutput()
					return string(out), err
				},
				"get": func(args []string) (string, error) { return get(args[0]) },
			}
			var scriptT testing.TB // a helper that gives up ends the script, not us
			params := testscript.Params{
				Files:               []string{file},
				RequireExplicitExec: true,
				RequireUniqueNames:  true,
				Setup: func(env *testscript.Env) error {
					scriptT = env.T().(testing.TB)
					env.Setenv("PRIMARY", primary.Conninfo("user=postgres"))
					env.Setenv("PORT", strconv.Itoa(pgtest.FreePort(t)))
					env.Setenv("HTTP", strconv.Itoa(pgtest.FreePort(t)))
					env.Setenv("BACKUP", filepath.Join(pgtest.Dir(t), "standby1"))
					return nil
				},
				Cmds: map[string]func(*testscript.TestScript, bool, []string){},
			}
			for name, run := range commands {
				params.Cmds[name] = func(ts *testscript.TestScript, neg bool, args []string) {
					if len(args) == 0 {
						ts.Fatalf("usage: %s ARGUMENTS", name)
					}
					out, err := run(args)
					io.WriteString(ts.Stdout(), out)
					if err != nil && !neg {
						ts.Fatalf("%s: %v\n%s", name, err, out)
					}
					if err == nil && neg {
						ts.Fatalf("%s succeeded, and should not have", name)
					}
				}
			}
			params.Cmds["another"] = func(ts *testscript.TestScript, _ bool, _ []string) {
				ts.Setenv("OTHER", pgtest.Start(t, pgtest.Options{}).Conninfo("user=postgres"))
			}
			params.Cmds["await"] = func(ts *testscript.TestScript, neg bool, args []string) {
				if neg || len(args) < 3 || commands[args[1]] == nil {
					ts.Fatalf("usage: await REGEXP COMMAND ARGUMENTS")
				}
				wanted := regexp.MustCompile("(?m)" + args[0])
				pgtest.Wait(scriptT, strings.Join(args, " "), func() (bool, string) {
					out, err := commands[args[1]](args[2:])
					return err == nil && wanted.MatchString(out), fmt.Sprintf("%s, %v", out, err)
				})
			}
			testscript.Run(t, params)
		})
	}
}

// query runs SQL on a server. A server that does not answer yet is an error, not
// the end of the test.
func query(t *testing.T, s *pgtest.Server, args []string) (string, error) {
	rows, err := s.Server.Query(t.Context(), strings.Join(args, " "))
	var out strings.Builder
	for _, row := range rows {
		out.WriteString(strings.Join(row, "|") + "\n")
	}
	return out.String(), err
}

func get(url string) (string, error) {
	answer, err := http.Get(url)
	if err != nil {
		return "", err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(answer.Body)
	if err == nil && answer.StatusCode != http.StatusOK {
		err = fmt.Errorf("HTTP status %s", answer.Status)
	}
	return string(body), err
}
