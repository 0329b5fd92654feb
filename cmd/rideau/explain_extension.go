package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5/pgconn"

	"rideau/extension"
	"rideau/extension/depend"
	"rideau/extension/ledger"
	"rideau/extension/pack"
	"rideau/extension/registry"
	"rideau/extension/resolve"
	"rideau/extension/script"
)

// explainExtension explains the errors of extensions, packages and registries,
// and what a server says to these commands.
func explainExtension(err error) (explanation, bool) {
	if e, ok := explainInstall(err); ok {
		return e, true
	}
	if e, ok := explainRegistry(err); ok {
		return e, true
	}
	var ours *extensionError
	if !errors.As(err, &ours) {
		return explanation{}, false
	}
	var server *pgconn.PgError
	if failed := connectErrors(err); len(failed) > 0 {
		e := explainConnect(failed)
		var absent *unreachableError
		if errors.As(err, &absent) && absent.another {
			e.hint = strings.TrimSpace(e.hint + " To go on without that node, which may then lack what is needed: --allow-skew.")
		}
		if _, server = connectCause(failed[0]); server != nil && server.Code == "28000" { // invalid_authorization_specification
			e.hint = loginHint(server, failed[0])
		}
		return e, true
	}
	var request *url.Error
	if errors.As(err, &request) { // of HTTP: who asked for what comes first, then why not
		hint := systemHint(err)
		var gone *registry.Unreachable
		switch {
		case errors.As(err, &gone) && !errors.Is(err, syscall.ECONNREFUSED):
			hint = "Check the address of the registry (--registry, or registries in extensions.toml). A mirror, or a copy in a directory, does as well."
		case hint == "" || errors.Is(err, syscall.ECONNREFUSED):
			hint = "Does the registry answer there? A mirror, or a copy in a directory, does as well."
		}
		return explanation{message: strings.TrimSuffix(err.Error(), request.Error()) + message(request.Err), hint: hint}, true
	}
	if !errors.As(err, &server) {
		if noRoom(err) {
			return explanation{message: message(err), hint: roomHint}, true
		}
		return explanation{}, false
	}
	e := explanation{message: strings.TrimSuffix(err.Error(), ": "+server.Error()), detail: serverSaid(server), hint: refusalHint(server)}
	if e.message == server.Error() { // nobody has said what it was about
		e.message, e.detail = server.Message, ""
	}
	if name := strings.TrimSuffix(e.message, ":"); depend.CheckName(name) == nil && !strings.Contains(name, " ") {
		e.message = name + ": the server refused it"
	}
	switch server.Code {
	case "2BP01": // dependent_objects_still_exist
		e.message = strings.Replace(e.message, "the server refused it", "other objects depend on it", 1)
	case "53100": // disk_full
		e.message = strings.Replace(e.message, "the server refused it", "the server's disk is full", 1)
	case "08P01": // protocol_violation
		if server.Message == "query_wait_timeout" { // PgBouncer's
			e.message = "the connection pooler had no further session for us in time (query_wait_timeout)"
			e.hint = "Some of it needs two or three sessions at once. Let its pool have them, or connect to the server itself."
		}
	case "38000": // external_routine_exception: of COPY TO PROGRAM, which is long and says nothing
		e.detail = fmt.Sprintf("What the server was to execute for it failed (%s); why is in the server's log.", cmp.Or(server.Detail, server.Message))
		e.hint = "Is there room on that server's disk, and may it write there? The same command again goes through then."
	}
	return e, true
}

// refusalHint says what to do about a statement of ours, or of a script, that the
// server refused. It knows best what else to do.
func refusalHint(server *pgconn.PgError) string {
	switch {
	case server.Code == "2BP01": // dependent_objects_still_exist
		return dependHint
	case server.Code == "53100": // disk_full
		return roomHint
	case server.Hint == "" && server.Code == "42501": // insufficient_privilege
		return mayNotHint
	}
	return server.Hint
}

const roomHint = "Make room on the disk that is full, the server's or this machine's; then the same command goes through."

const dependHint = "Drop these first, or let them go too: --cascade. With --dry-run, first."

const mayNotHint = "The role may not do that. Another role can install it, or another mode: rideau extension why NAME says which there are."

// loginHint says what a role needs to log in.
func loginHint(server *pgconn.PgError, failed *pgconn.ConnectError) string {
	role, database := quoteIdentifier(failed.Config.User), quoteIdentifier(failed.Config.Database)
	if failed.Config.Database == "" {
		database = role // as libpq does
	}
	if strings.Contains(server.Message, "pg_hba.conf") {
		return fmt.Sprintf("Add this line to the server's pg_hba.conf, before any that rejects, and reload it (SELECT pg_reload_conf()): hostssl %s %s %s scram-sha-256", database, role, addressIn(server.Message))
	}
	return fmt.Sprintf("On the server: CREATE ROLE %s LOGIN PASSWORD '...'. To own the database is enough for most extensions.", role)
}

// nothingChanged ends the details of errors in a transaction.
const nothingChanged = "All was rolled back: nothing was changed."

// explainInstall explains why an extension was not installed, upgraded or
// uninstalled.
func explainInstall(err error) (explanation, bool) {
	var hinted *hintedError
	if errors.As(err, &hinted) {
		e, _ := explainInstall(hinted.err)
		e.hint = hinted.hint
		if hinted.message != "" {
			e.message, e.detail = hinted.message, ""
		}
		return e, true
	}
	e := explanation{message: err.Error()}
	var (
		standby    *standbyError
		elsewhere  *elsewhereError
		unsolvable *extension.UnsolvableError
		cycle      *resolve.CycleError
		mode       *extension.ModeError
		moved      *extension.MovedError
		packages   *packagesMovedError
		unnamed    *unnamedError
		rule       *extension.RuleError
		statement  *extension.ScriptError
		dependents *extension.DependentsError
		restart    *extension.RestartError
		locked     *extension.LockedError
		skew       *extension.SkewError
		absent     *extension.NotInstalledError
		open       *extension.OpenSchemaError
		setting    *extension.SettingError
		adopt      *extension.AdoptError
		modified   *extension.ModifiedError
		taken      *extension.TakenError
		shadowed   *extension.ShadowedError
		left       *extension.LeftError
		commit     *extension.CommitError
		undone     *extension.UncommittedError
		unfinished *extension.UnfinishedError
		preload    *extension.PreloadError
		pooler     *extension.PoolerError
		undeclared *extension.UndeclaredError
		upgrades   *upgradeError
		notOurs    *ledger.NotOursError
		format     *ledger.FormatError
		upload     *ledger.UploadError
		functions  *noFunctionsError
		stale      *staleLockError
		libraries  *libraryError
		server     *pgconn.PgError
	)
	switch {
	case errors.As(err, &unsolvable):
		e.message, e.detail = unsolvable.Error(), derivation(unsolvable)
		e.hint = unsolvable.Hint()
		switch {
		case e.hint != "":
		case len(unsolvable.Excluded) > 0:
			e.hint = "rideau extension why NAME says which versions there are, and what each would need."
		default:
			e.hint = "rideau extension list says what there is; --registry PLACE names where more packages are."
		}
	case errors.As(err, &left): // before what it is left of, whose hint may say that nothing was changed
		e.message = explain(left.Err).message
		e.detail = "Nothing was changed in the database. What was done before could not be undone:\n        " + lines(left.Left)
		e.hint = "Give the same command again once the reason is gone: it takes up what is there. Remove nothing by hand that an installed extension has."
	case errors.As(err, &taken):
		e.detail = nothingChanged
		e.hint = fmt.Sprintf("A server has one file of a name. Uninstall %s in every database that has it, or ask the makers of the two to rename theirs.", taken.Other)
	case errors.As(err, &shadowed):
		e.detail = "Nothing was changed."
		e.hint = fmt.Sprintf("A function of %s would be looked for in that file. Ask its makers to rename the library; or remove the file, if nobody needs it.", shadowed.Name)
	case errors.As(err, &cycle):
		e.hint = "Their packages must be changed: one of them has to be installable without the others."
	case errors.As(err, &mode):
		e.message = fmt.Sprintf("there is no way for %s %s into this database", mode.Name, mode.Version)
		e.detail = lines(mode.Reasons)
	case errors.As(err, &standby):
		e.detail = "Nothing was done."
		e.hint = "Name the primary (-d); for a pool, that and each standby."
		if standby.upstream != "" {
			e.detail = fmt.Sprintf("It follows %s, its primary_conninfo says. Nothing was done.", standby.upstream)
		}
		if len(standby.absent) > 0 {
			e.detail = fmt.Sprintf("%s did not answer. Nothing was done.", strings.Join(standby.absent, ", "))
			e.hint = "Without the primary nothing can be done: --allow-skew does without standbys only."
		}
	case errors.As(err, &elsewhere):
		e.detail = "Nothing was done."
		e.hint = "Apply it where it was made for, by the same -d; or make a plan for this one."
	case errors.As(err, &moved):
		e.detail = "Somebody has changed it since, or the server. Nothing was changed by us."
		e.hint = "Make the plan anew, and look at it again."
	case errors.As(err, &packages):
		e.detail = "The same request now leads to another plan. Nothing was changed."
		e.hint = "Make the plan anew, and look at it again."
	case errors.As(err, &unnamed):
		e.hint = "Name the directory again with --registry: a file does not decide that packages need no signature."
	case errors.As(err, &rule):
		e.message = fmt.Sprintf("%s %s", rule.Name, strings.TrimPrefix(strings.SplitN(rule.Error(), ": ", 2)[0], rule.Name+" "))
		e.detail = lines(rule.What) + "\n        " + nothingChanged
		e.hint = ruleHint[rule.Rule]
	case errors.As(err, &locked): // and what it waited for was in a script
		e.detail = nothingChanged
		if errors.As(locked.Err, &server) {
			e.message = fmt.Sprintf("database %q was busy in each of %d tries", locked.Database, locked.Tries)
			e.detail = serverSaid(server) + " " + nothingChanged
		}
		e.hint = "Try when less goes on, or wait longer for locks: --lock-timeout. rideau extension plan --rehearse shows which locks are needed."
	case errors.As(err, &statement):
		e.message = fmt.Sprintf("%s: could not execute %s:%d:%d", statement.Name, statement.File, statement.Line, statement.Column)
		if errors.As(statement.Err, &server) {
			e.detail = serverSaid(server)
			e.hint = refusalHint(server)
		} else {
			e.detail = statement.Err.Error()
		}
		e.detail += "\n        The statement: " + statement.Statement + "\n        " + nothingChanged
	case errors.As(err, &dependents):
		e.hint = fmt.Sprintf("Uninstall them too: rideau extension uninstall %s. Or with all that needs it: --cascade; look with --dry-run first.", strings.Join(append(slices.Clone(dependents.Dependents), dependents.Name), " "))
	case errors.As(err, &restart):
		e.detail = "The setting was made. Nothing was done in the database yet."
		e.hint = "Restart, then run the same command again."
	case errors.As(err, &skew):
		e.message = "the nodes do not have the same files: after a failover the extension would not work"
		var all []string
		for _, p := range skew.Problems {
			all = append(all, p.String())
		}
		e.detail = lines(all) + "\n        Nothing was changed."
		e.hint = "Put each file where it is named, the same on every node (by the same operating-system package, of the same version). To install all the same: --allow-skew."
	case errors.As(err, &absent):
		e.hint = "rideau extension status says what is installed."
	case errors.As(err, &open):
		e.detail = "What they create there, the script would call with your rights (CVE-2020-14350)."
		e.hint = fmt.Sprintf("Choose a schema of its own: --schema %s. Or REVOKE CREATE ON SCHEMA %s FROM %s. If you trust them: --allow-open-schema.",
			quoteIdentifier(open.Name), quoteIdentifier(open.Schema), strings.Join(open.Who, ", "))
	case errors.As(err, &setting):
		e.hint = fmt.Sprintf("Have a superuser say: %s. Then install it with --no-conf.", setting.SQL)
		if strings.HasPrefix(setting.SQL, "GRANT ") {
			e.hint = fmt.Sprintf("Have a superuser say: %s. Then the same command again; or leave foo.conf out with --no-conf.", setting.SQL)
		}
	case errors.As(err, &undone):
		e.detail = nothingChanged
		if errors.As(undone.Err, &server) {
			e.message = strings.Join(undone.Names, ", ") + ": could not commit"
			e.detail = serverSaid(server) + "\n        " + nothingChanged
			e.hint = refusalHint(server)
		}
	case errors.As(err, &commit):
		if commit.Look != nil {
			alone := *commit
			alone.Look = nil
			e.message = message(&alone)
			e.detail = fmt.Sprintf("The server could not be asked what became of it: %s.", explain(commit.Look).message)
		}
		e.hint = "rideau extension status says whether it is there. The same command again does what is missing, and no more."
	case errors.As(err, &unfinished):
		e.message = fmt.Sprintf("database %q is changed, and not all that comes after it was done", unfinished.Database)
		var all []string
		for _, failed := range unfinished.Failed {
			all = append(all, explain(failed).message)
		}
		e.detail = lines(all)
		if len(unfinished.Done) > 0 {
			e.detail += "\n        Done: " + strings.Join(unfinished.Done, ", ")
		}
		e.hint = "When that is mended, the same command again does the rest."
	case errors.As(err, &preload):
		e.detail = "Nothing was changed in the database, and shared_preload_libraries is as it was."
		e.hint = "Install the library on that node first (its operating-system package), or a package of the extension that has it."
	case errors.As(err, &pooler):
		e.hint = "Connect to the server itself, or through a pool in session mode: an installation is one session."
	case errors.As(err, &modified):
		e.message = fmt.Sprintf("cannot uninstall %s: it is not as it was installed", modified.Name)
		e.detail = "Changed since: " + lines(modified.Objects) + "\n        " + nothingChanged
		e.hint = "What is yours, rename or move it. To drop it with the rest: --modified."
	case errors.As(err, &undeclared):
		e.message = fmt.Sprintf("%s and %s cannot be in one database", undeclared.Name, undeclared.Other)
		e.detail = "Neither says that it conflicts with the other, and both have " + lines(undeclared.What)
		e.hint = "Put them into different schemas: --schema. Tell their makers to declare the conflict."
		if undeclared.Files {
			e.hint = "Choose one of them: a server has one file of a name. Tell their makers to declare the conflict."
		}
	case errors.As(err, &upgrades):
		e.detail = lines(upgrades.what())
		e.hint = "Mend the script in upgrade/; people who upgrade would not have what people who install have."
	case errors.As(err, &adopt) && len(adopt.Missing) == 0:
		e.message = fmt.Sprintf("cannot adopt %s %s: not all of it is as the package makes it", adopt.Name, adopt.Version)
		e.detail = "Defined otherwise: " + lines(adopt.Differ) + "\n        " + nothingChanged
		e.hint = "Is it of another version (" + adopt.Name + "=VERSION)? To adopt it as it is, changes of your own and all: --modified."
	case errors.As(err, &adopt):
		e.message = fmt.Sprintf("cannot adopt %s %s: not all that it makes is in the database", adopt.Name, adopt.Version)
		e.detail = lines(adopt.Missing)
		e.hint = "Is it in another schema (--schema), or of another version (" + adopt.Name + "=VERSION)?"
	case errors.As(err, &notOurs):
		e.hint = "The schema \"extension\" is where it is recorded what is installed. Rename the one that is there: ALTER SCHEMA extension RENAME TO other."
	case errors.As(err, &format):
		e.hint = "Use the newer rideau that wrote it."
	case errors.As(err, &functions):
		e.hint = "Make them: rideau extension bootstrap."
	case errors.As(err, &upload):
		e.message = upload.Error()
		e.hint = "rideau extension install can install it, where the server allows it."
	case errors.As(err, &stale):
		e.hint = "Write it anew, and look at what has changed: rideau extension lock."
		var usage *usageError
		if errors.As(err, &usage) {
			return explanation{}, false
		}
	case errors.As(err, &libraries):
		e.detail = "The server's packages were upgraded, or this is another server. What was tested is not what would be used. Nothing was changed."
		e.hint = "If that is as it should be, write the lock file anew: rideau extension lock."
	default:
		return explanation{}, false
	}
	return e, true
}

// derivation is why no versions fit together, a sentence a line, and what could
// not be chosen at all.
func derivation(u *extension.UnsolvableError) string {
	text := strings.TrimRight(u.Explain(), "\n")
	list := strings.Split(text, "\n")
	if len(list) == 1 {
		list = nil // the message has said it
	}
	for _, x := range u.Excluded {
		var mode *extension.ModeError
		if !errors.As(x.Why, &mode) {
			list = append(list, fmt.Sprintf("%s %s cannot be chosen: %v", x.Name, x.Version, x.Why))
			continue
		}
		list = append(list, fmt.Sprintf("%s %s cannot be installed here:", x.Name, x.Version))
		for _, reason := range mode.Reasons {
			list = append(list, "  "+reason)
		}
	}
	return lines(list)
}

// lines is a detail of several lines, below each other.
func lines(list []string) string { return strings.Join(list, "\n        ") }

// ruleHint says which hole each rule closes, and what can be done.
var ruleHint = map[extension.Rule]string{
	extension.Replaced:    "A script that replaces what was there before can be made to run somebody else's code (CVE-2022-2625). Remove or rename the objects, or use another schema (--schema).",
	extension.Manifest:    "An object that IF NOT EXISTS passed over belongs to somebody else, who could have put it there (CVE-2022-2625). Remove it, or use another schema (--schema). If the package is yours, pack it again with -d.",
	extension.Transaction: "A script that ends its transaction could not be undone. The package must be changed.",
}

// explainRegistry explains the errors of packages, registries and keys.
func explainRegistry(err error) (explanation, bool) {
	e := explanation{message: err.Error()}
	var (
		build     *pack.BuildError
		noPath    *pack.NoPathError
		file      *pack.Error
		cut       *script.Error
		refused   *registry.Refused
		none      *registry.NotFound
		ambiguous *registry.Ambiguous
		unsigned  *unsignedError
		password  *noPasswordError
		scratch   *scratchError
		syntax    *depend.SyntaxError
	)
	switch {
	case errors.As(err, &build):
		e.hint = "Build and install it first (make, make install); then its files are a directory that can be packed."
	case errors.As(err, &noPath):
		e.hint = "An upgrade needs a script upgrade/FROM--TO.sql in the package; an installation needs install.sql."
	case errors.As(err, &file), errors.As(err, &cut):
		if joined := flatten(err); len(joined) > 1 {
			e.message = joined[0]
			e.detail = lines(joined[1:])
		}
		e.hint = "doc/extension-guide.md explains the files of a package."
	case errors.As(err, &refused):
		e.hint = refusedHint(refused)
	case errors.As(err, &none):
		e.hint = "rideau extension search lists what there is."
	case errors.As(err, &ambiguous):
	case errors.As(err, &unsigned):
		e.detail = "What extensions.toml or a plan names must be signed by a key that you trust."
		e.hint = "Sign it (rideau extension registry init, publish), or name the directory yourself: --registry."
	case errors.As(err, &password):
		e.hint = "Passwords are asked for on a terminal. Else give --password-file FILE: arguments and environment can be seen by others."
	case errors.As(err, &scratch):
		e.hint = "What it makes is found by installing it there. Install first what it depends on, or leave out -d."
	case errors.As(err, &syntax):
		e.hint = "Relations are written like this: bar (>= 1.1, < 2), baz | qux."
	default:
		return explanation{}, false
	}
	return e, true
}

// flatten lists the errors that were joined, each in its own words.
func flatten(err error) []string {
	var joined interface{ Unwrap() []error }
	if !errors.As(err, &joined) {
		return []string{err.Error()}
	}
	var list []string
	for _, one := range joined.Unwrap() {
		list = append(list, flatten(one)...)
	}
	return list
}

// refusedHint says what to do about a registry that was refused.
func refusedHint(r *registry.Refused) string {
	switch r.Reason {
	case registry.Untrusted:
		return "If you trust its owner, get the public key from where you do, and: rideau extension trust add NAME KEY."
	case registry.Expired:
		return "Its owner must refresh it: rideau extension registry refresh. If that was done, somebody shows you an old state."
	case registry.RolledBack:
		return "Somebody shows you an older state than you have seen: a mirror that lags behind, a backup that was restored, or an attack. Ask its owner. If it is meant: rideau extension registry forget."
	case registry.NotDelegated:
		return "The key may not sign packages of that name. rideau extension registry show says which may."
	case registry.BadSignature, registry.Mismatch, registry.Oversized, registry.Malformed:
		return "The registry is damaged or was tampered with, or what brought it here was. Nothing of it was used. Try another mirror, and tell its owner."
	}
	return ""
}
