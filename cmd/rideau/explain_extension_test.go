package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension"
	"rideau/extension/depend"
	"rideau/extension/ledger"
	"rideau/extension/pack"
	"rideau/extension/registry"
	"rideau/extension/resolve"
	"rideau/extension/script"
)

// What went wrong with an extension, and what its user is told to do.
func TestExplainExtension(t *testing.T) {
	denied := &pgconn.PgError{Code: "42501", Message: "permission denied for schema x", Severity: "ERROR"}
	tests := []struct {
		name                  string
		err                   error
		message, detail, hint string // each a part
	}{
		{"packages that need each other", &resolve.CycleError{Names: []string{"a", "b"}},
			"a and b depend on each other", "", "packages must be changed"},
		{"no mode will do: each says why", &extension.ModeError{Name: "foo", Version: "1.0", Reasons: []string{"native: no files", "module: it has libraries"}},
			"there is no way for foo 1.0 into this database", "native: no files\n        module: it has libraries", ""},
		{"the database has moved since the plan", &extension.MovedError{Database: "app", Node: "db1:5432"},
			`database "app" at db1:5432 is not as it was`, "Nothing was changed", "Make the plan anew"},
		{"a script replaced another's function", &extension.RuleError{Name: "foo", Version: "1.0", Rule: extension.Replaced, What: []string{"function public.f() (prosrc)"}},
			"foo 1.0 changes what is not its own", "function public.f() (prosrc)\n        All was rolled back", "CVE-2022-2625"},
		{"IF NOT EXISTS passed over somebody's table", &extension.RuleError{Name: "foo", Version: "1.0", Rule: extension.Manifest, What: []string{"table t"}},
			"foo 1.0 does not create what its package says", "table t", "CVE-2022-2625"},
		{"a script that ends its transaction", &extension.RuleError{Name: "foo", Version: "1.0", Rule: extension.Transaction, What: []string{"install.sql:3"}},
			"foo 1.0 ends the transaction", "install.sql:3", "could not be undone"},
		{"a statement that the role may not execute", &extension.ScriptError{Name: "foo", File: "install.sql", Line: 7, Column: 3, Statement: "CREATE ROLE x", Err: denied},
			"foo: could not execute install.sql:7:3", "The server said: permission denied for schema x (SQLSTATE 42501).\n        The statement: CREATE ROLE x", "Another role can install it"},
		{"others need it", &extension.DependentsError{Name: "bar", Dependents: []string{"foo", "qux"}},
			"cannot uninstall bar", "", "rideau extension uninstall foo qux bar"},
		{"a restart comes first", &extension.RestartError{Nodes: []string{"db1:5432"}, Libraries: []string{"foo"}},
			"foo must be loaded when the server starts", "Nothing was done in the database yet", "Restart, then run the same command again."},
		{"a script waited for a lock, too long and too often: it is the lock that matters",
			&extension.LockedError{Database: "app", Tries: 10, Err: &extension.ScriptError{Name: "foo", File: "install.sql", Line: 1, Column: 1, Err: &pgconn.PgError{Code: "55P03", Message: "canceling statement due to lock timeout"}}},
			`database "app" was busy in each of 10 tries`, "lock timeout (SQLSTATE 55P03)", "--lock-timeout"},
		{"another installation, all the time", &extension.LockedError{Database: "app", Tries: 10, Err: errors.New("somebody else installs extensions there")},
			"somebody else installs", "nothing was changed", "Try when less goes on"},
		{"a standby lacks a library: which file, where", &extension.SkewError{Problems: []extension.NodeProblem{{Node: "db2:5432", Extension: "hstore", File: "/usr/lib/postgresql/15/lib/hstore.so", What: "is missing"}}},
			"the nodes do not have the same files", "db2:5432: /usr/lib/postgresql/15/lib/hstore.so, which hstore needs, is missing", "--allow-skew"},
		{"not installed", &extension.NotInstalledError{Name: "foo", Database: "app"},
			`extension "foo" is not installed in database "app"`, "", "rideau extension status"},
		{"others may create in the schema", &extension.OpenSchemaError{Name: "foo", Schema: "public", Who: []string{"PUBLIC"}},
			`foo cannot be installed into schema "public"`, "CVE-2020-14350", "--schema foo. Or REVOKE CREATE ON SCHEMA public FROM PUBLIC. If you trust them: --allow-open-schema."},
		{"foo.conf wants more than the role may", &extension.SettingError{Name: "foo", Setting: "foo.x", Role: "alice", SQL: "ALTER DATABASE app SET foo.x = '1'"},
			`foo.conf sets foo.x, which role "alice" may not`, "", "Have a superuser say: ALTER DATABASE app SET foo.x = '1'. Then install it with --no-conf."},
		{"and a grant will do", &extension.SettingError{Name: "foo", Setting: "foo.x", Role: "alice", SQL: "GRANT SET ON PARAMETER foo.x TO alice"},
			"foo.conf sets foo.x", "", "Then the same command again"},
		{"what is to be adopted is not there", &extension.AdoptError{Name: "foo", Version: "1.0", Missing: []string{"function s.f()"}},
			"cannot adopt foo 1.0: not all that it makes is in the database", "function s.f()", "foo=VERSION"},
		{"or is another", &extension.AdoptError{Name: "foo", Version: "1.0", Differ: []string{"function s.f()"}},
			"cannot adopt foo 1.0: not all of it is as the package makes it", "function s.f()", "--modified"},
		{"the server's disk is full", &extensionError{fmt.Errorf("foo: %w", &pgconn.PgError{Code: "53100", Message: "could not extend file", Hint: "Check free disk space."})},
			"foo: the server's disk is full", "could not extend file", "Make room on the disk that is full"},
		{"in a script", &extension.ScriptError{Name: "foo", File: "install.sql", Line: 1, Column: 1, Statement: "CREATE", Err: &pgconn.PgError{Code: "53100", Message: "could not extend file"}},
			"could not execute install.sql:1:1", "nothing was changed", "the server's or this machine's"},
		{"or ours", &extensionError{fmt.Errorf("could not keep the plan: %w", syscall.ENOSPC)},
			"could not keep the plan: no space left on device", "", "Make room on the disk that is full"},
		{"a standby, and which server it follows", &standbyError{node: "db2:5432", upstream: "db1:5432"},
			"db2:5432 is a standby", "It follows db1:5432", "Name the primary"},
		{"and the primary is down", &standbyError{node: "db2:5432", absent: []string{"db1:5432"}},
			"db2:5432 is a standby", "db1:5432 did not answer", "without standbys only"},
		{"a plan for another database", &elsewhereError{"foo.plan", "database \"a\" at db1:5432", "database \"b\" at db1:5432"},
			"foo.plan was made for database \"a\" at db1:5432, and this is database \"b\"", "Nothing was done.", "the same -d"},
		{"another extension's file has the name", &extension.TakenError{Name: "foo", Other: "bar", Node: "db1:5432", Files: []string{"lib/common.so"}},
			"cannot bring foo to db1:5432: lib/common.so is there", "nothing was changed", "Uninstall bar in every database"},
		{"the server has a library of the name", &extension.ShadowedError{Name: "foo", Node: "db1:5432", Library: "lo.so", File: "/usr/lib/lo.so"},
			"cannot bring lo.so of foo to db1:5432: the server finds /usr/lib/lo.so first", "Nothing was changed.", "rename the library"},
		{"not all could be undone", &extensionError{&extension.LeftError{Err: errors.New("foo: syntax error"), Left: []string{"/data/rideau/lib/foo.so at db2:5432 (gone)"}}},
			"foo: syntax error", "/data/rideau/lib/foo.so at db2:5432 (gone)", "by hand"},
		{"a constraint fails at COMMIT", &extensionError{&extension.UncommittedError{Names: []string{"foo", "bar"}, Err: &pgconn.PgError{Severity: "ERROR", Code: "23503", Message: "violates it", Detail: "Key (a)=(1) is not there."}}},
			"foo, bar: could not commit", "Key (a)=(1) is not there.\n        All was rolled back: nothing was changed.", ""},
		{"the answer to COMMIT was lost", &extension.CommitError{Database: "app", Err: io.ErrUnexpectedEOF},
			"may have been committed", "", "rideau extension status"},
		{"and the server is down", &extension.CommitError{Database: "app", Err: io.ErrUnexpectedEOF, Look: fmt.Errorf("could not connect: %w", syscall.ECONNREFUSED)},
			`the changes of database "app" may have been committed: unexpected EOF`, "could not be asked what became of it: could not connect: connection refused.", "rideau extension status"},
		{"a pooler with one session only", &extensionError{&pgconn.PgError{Severity: "FATAL", Code: "08P01", Message: "query_wait_timeout"}},
			"the connection pooler had no further session for us in time (query_wait_timeout)", "", "two or three sessions at once"},
		{"the server says why, and nobody what for", &extensionError{&pgconn.PgError{Severity: "ERROR", Code: "XX000", Message: "it is late"}},
			"it is late", "", ""},
		{"a file could not be written on a node", &extensionError{fmt.Errorf("could not bring /d/foo.so to db1:5432: %w", &pgconn.PgError{Code: "38000", Message: "program \"umask 077; ...\" failed", Detail: "child process exited with exit code 1"})},
			"could not bring /d/foo.so to db1:5432", "failed (child process exited with exit code 1); why is in the server's log", "room on that server's disk"},
		{"a standby died before its setting", &extension.UnfinishedError{Database: "app", Done: []string{"work_mem at db1:5432"}, Failed: []error{errors.New("db2:5432 is gone")}},
			"not all that comes after", "db2:5432 is gone", "the same command again"},
		{"a library that is not there", &extension.PreloadError{Node: "db1:5432", Library: "foo", Err: errors.New("no such file")},
			"would not start", "is as it was", "operating-system package"},
		{"a pooler", &extension.PoolerError{Node: "db1:6432"},
			"is a connection pooler", "", "session mode"},
		{"an object was changed by hand", &extension.ModifiedError{Name: "foo", Objects: []string{"function s.f()"}},
			"cannot uninstall foo", "function s.f()", "--modified"},
		{"two packages make one function", &extension.UndeclaredError{Name: "foo", Other: "bla", What: []string{"function s.f()"}},
			"foo and bla cannot be in one database", "function s.f()", "--schema"},
		{"two packages bring one file", &extension.UndeclaredError{Name: "foo", Other: "bla", What: []string{"the file lib/x.so"}, Files: true},
			"foo and bla cannot be in one database", "lib/x.so", "Choose one of them"},
		{"an upgrade forgets something", &upgradeError{"foo", extension.UpgradeProof{From: "1.0", To: "1.1", Missing: []string{"function s.f()"}}},
			"foo 1.0 upgraded to 1.1 is not the same", "function s.f() is missing", "upgrade/"},
		{"a lock file of other wishes", &staleLockError{"extensions.lock", "extensions.toml"},
			"extensions.lock is not of this extensions.toml", "", "rideau extension lock"},
		{"the server's libraries were upgraded", &libraryError{"extensions.lock", "app", []string{"hstore"}},
			"the libraries of hstore", "not what would be used", "rideau extension lock"},
		{"somebody else's schema extension", &ledger.NotOursError{},
			"", "", "ALTER SCHEMA extension RENAME TO other"},
		{"no script leads there", &pack.NoPathError{Name: "foo", From: "1.0", To: "2.0"},
			`no update path from version "1.0" to version "2.0"`, "", "upgrade/FROM--TO.sql"},
		{"several mistakes in a package, one a line", errors.Join(&pack.Error{File: "control", Line: 1, Column: 1, Message: "one"}, &pack.Error{File: "control", Line: 2, Column: 1, Message: "two"}),
			"control:1:1: one", "control:2:1: two", "doc/extension-guide.md"},
		{"a script that cannot be cut", &script.Error{File: "install.sql", Line: 3, Column: 9, Message: "a string is not closed"},
			"install.sql:3:9: a string is not closed", "", "doc/extension-guide.md"},
		{"a C extension as source", &pack.BuildError{Name: "foo", Why: "MODULES"},
			`extension "foo" must be built`, "", "make install"},
		{"a registry of a stranger", &registry.Refused{Location: "https://r", File: "1.root", Reason: registry.Untrusted},
			"untrusted", "", "rideau extension trust add"},
		{"a registry that nobody refreshed", &registry.Refused{Location: "https://r", File: "timestamp", Reason: registry.Expired},
			"expired", "", "rideau extension registry refresh"},
		{"an old state of it", &registry.Refused{Location: "https://r", File: "timestamp", Reason: registry.RolledBack},
			"rolled back", "", "older state than you have seen"},
		{"a tampered package", &registry.Refused{Location: "https://r", File: "blobs/x", Reason: registry.Mismatch},
			"checksum mismatch", "", "tampered with"},
		{"a plain directory in a file", &unsignedError{"packages"},
			"nothing in it is signed", "must be signed", "--registry"},
		{"nobody to ask for a password", &noPasswordError{"my.key"},
			`no password for secret key "my.key"`, "", "--password-file FILE"},
		{"a relation that cannot be read", fmt.Errorf("depends: %w", &depend.SyntaxError{Offset: 3, Message: "an operator is missing"}),
			"at character 4", "", "bar (>= 1.1, < 2)"},
		{"a server says no: what it says is about extensions, not about replication", fmt.Errorf("hstore: %w", denied),
			"hstore", "permission denied for schema x", "rideau extension why"},
		{"the user's own objects need it", fmt.Errorf("hstore: %w", &pgconn.PgError{Code: "2BP01", Message: "cannot drop extension hstore because other objects depend on it", Detail: "column h of table mine depends on type hstore", Hint: "Use DROP ... CASCADE to drop the dependent objects too."}),
			"hstore: other objects depend on it", "column h of table mine", "--cascade"},
		{"no answer from a web server", fmt.Errorf("could not open registry %q: %w", "https://r", &url.Error{Op: "Get", URL: "https://r/timestamp", Err: syscall.ECONNREFUSED}),
			`could not open registry "https://r": connection refused`, "", "Does the registry answer there?"},
		{"no such host", &registry.Unreachable{Location: "https://r", Err: &url.Error{Op: "Get", URL: "https://r/timestamp", Err: &net.DNSError{Err: "no such host", Name: "r", IsNotFound: true}}},
			`there is no host "r"`, "", "Check the address of the registry"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := explain(&extensionError{tt.err})
			for _, part := range [][3]string{{"message", e.message, tt.message}, {"detail", e.detail, tt.detail}, {"hint", e.hint, tt.hint}} {
				if !strings.Contains(part[1], part[2]) {
					t.Errorf("the %s is %q, want it to have %q", part[0], part[1], part[2])
				}
			}
			if strings.Contains(e.hint, "REPLICATION") {
				t.Errorf("the hint is for a relay: %s", e.hint)
			}
		})
	}
}

func TestSomeFindings(t *testing.T) {
	findings := []string{"a:1: one (PS001)", "a:2: one (PS001)", "a:3: two (with care) (PS005)", "a:4: one (PS001)", "a:5: one (PS001)", "a:6: one (PS001)"}
	want := []string{"a:1: one (PS001)", "a:2: one (PS001)", "a:3: two (with care) (PS005)", "a:4: one (PS001)", "2 more of PS001; -v prints all"}
	if got := someFindings(findings, false); !slices.Equal(got, want) {
		t.Errorf("findings %q, want %q", got, want)
	}
	if got := someFindings(findings, true); !slices.Equal(got, findings) {
		t.Errorf("with -v findings are %q", got)
	}
}
