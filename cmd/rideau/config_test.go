package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// doc/rideau.yaml must say the truth: it is valid as it is, it is valid with
// every example taken, and no setting is missing from it.
func TestDocumentedConfig(t *testing.T) {
	text, err := os.ReadFile("../../doc/rideau.yaml")
	if err != nil {
		t.Fatal(err)
	}
	cfg, err := parseConfig("rideau.yaml", text)
	if err != nil {
		t.Fatalf("as it is: %v", err)
	}
	if _, err := cfg.resolve(io.Discard); err != nil {
		t.Errorf("as it is: %v", err)
	}

	// Every commented line that has the form of a setting or of an item of a
	// list is one.
	setting := regexp.MustCompile(`(?m)^( *)# ( *(?:[a-z_0-9]+:(?: .*)?|- .*))$`)
	all := setting.ReplaceAllString(string(text), "$1$2")
	cfg, err = parseConfig("rideau.yaml", []byte(all))
	if err != nil {
		t.Fatalf("with all examples: %v\n%s", err, all)
	}
	pem := selfSigned(t)
	cfg.Relay.TLS = tlsConfig{Cert: pem.cert, Key: pem.key, ClientCA: pem.cert}
	if _, err := cfg.resolve(io.Discard); err != nil {
		t.Errorf("with all examples: %v", err)
	}
	if len(cfg.Relay.HBA) != 4 || cfg.Relay.Users["standby1"] == "" || cfg.HTTP != "localhost:5480" {
		t.Errorf("the examples were not all read: %+v", cfg)
	}
	for _, name := range settingNames(reflect.TypeFor[config]()) {
		if !regexp.MustCompile(`(?m)^[# ]*` + name + `:`).Match(text) {
			t.Errorf("setting %q is not in doc/rideau.yaml", name)
		}
	}
}

func TestParseConfigErrors(t *testing.T) {
	tests := []struct {
		name, text    string
		message, hint string
	}{
		{"a slip of the pen", "relay:\n  upstream: host=db1\n  solt: rideau\n", `rideau.yaml:3: unknown setting "solt"`, `Did you mean "slot"?`},
		{"a setting that never was", "relay:\n  checkpoint: 1\n", `rideau.yaml:2: unknown setting "checkpoint"`, "doc/rideau.yaml"},
		{"neither yes nor no", "relay:\n  forward_sql: maybe\n", `rideau.yaml:2: want true or false, got "maybe"`, "doc/rideau.yaml"},
		{"a group for a text", "relay:\n  upstream:\n    host: db1\n", `rideau.yaml:3: want a text, got a group of settings`, "doc/rideau.yaml"},
		{"at the top", "\nrelais: {}\n", `rideau.yaml:2: unknown setting "relais"`, ""},
		{"deep down", "relay:\n  tls:\n    certificate: x\n", `rideau.yaml:3: unknown setting "certificate"`, "cert"},
		{"twice", "http: none\nhttp: none\n", "rideau.yaml:2: ", ""},
		{"a word for a list", "relay:\n  hba: trust\n", "rideau.yaml:2: ", ""},
		{"a word for a boolean", "relay:\n  forward_sql: maybe\n", "rideau.yaml:2: ", ""},
		{"a bracket left open", "relay:\n  listen: [a\n", "rideau.yaml:2: ", ""},
		{"a tab", "relay:\n\tdir: x\n", "rideau.yaml:2: ", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parseConfig("rideau.yaml", []byte(tt.text))
			var usage *usageError
			if !errors.As(err, &usage) {
				t.Fatalf("parseConfig returned %v, want a usageError", err)
			}
			if !strings.HasPrefix(err.Error(), tt.message) {
				t.Errorf("message %q, want %q", err, tt.message)
			}
			if strings.Contains(err.Error(), "\n") {
				t.Errorf("message %q has several lines", err)
			}
			if !strings.Contains(usage.hint, tt.hint) {
				t.Errorf("hint %q, want %q", usage.hint, tt.hint)
			}
		})
	}
}

func TestResolveErrors(t *testing.T) {
	const base = "relay:\n  upstream: host=db1\n  dir: wal\n"
	tests := []struct {
		name, text, message string
	}{
		{"nothing at all", "", "rideau.yaml: relay.upstream: no connection string of the server WAL comes from"},
		{"no directory", "relay:\n  upstream: host=db1\n", "rideau.yaml: relay.dir: no directory to keep WAL in"},
		{"an address without a port", base + "  listen: [127.0.0.1]\n", `rideau.yaml:4: relay.listen[0]: invalid address "127.0.0.1": missing port in address`},
		{"a port that is none", base + "http: :99999\n", `rideau.yaml:4: http: invalid address ":99999": "99999" is not a port`},
		{"a socket's port that is none", base + "  listen: [/run/rideau:x]\n", `rideau.yaml:4: relay.listen[0]: invalid address "/run/rideau:x": "x" is not a port`},
		{"minutes or megabytes?", base + "  keep: 90m\n", `rideau.yaml:4: relay.keep: "90m" has an unknown unit "m"`},
		{"a key without certificate", base + "  tls:\n    key: x\n", "rideau.yaml:5: relay.tls: TLS needs a certificate and its key"},
		{"a certificate that is not there", base + "  tls:\n    key: x\n    cert: y\n", "rideau.yaml:5: relay.tls: could not read the certificate: stat y: no such file or directory"},
		{"a rule that is none, by its line", base + "  hba:\n    - local all all trust\n    - host all all 10.0.0.0/8 md5\n", `rideau.yaml:6: relay.hba[1]: authentication method "md5" is not supported`},
		{"users whom nobody asks", base + "  users:\n    a: b\n", "rideau.yaml:5: relay.users: there are users but no access rule"},
		{"a password for a verifier is not repeated", base + "  hba: [host all all all scram-sha-256]\n  users:\n    a: s3cret\n", `rideau.yaml:6: relay.users: user "a": not a SCRAM verifier`},
		{"a log nobody can read", base + "log:\n  format: xml\n", `rideau.yaml:5: log: unknown log format "xml"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			cfg, err := parseConfig("rideau.yaml", []byte(tt.text))
			if err != nil {
				t.Fatal(err)
			}
			_, err = cfg.resolve(io.Discard)
			if err == nil || !strings.HasPrefix(err.Error(), tt.message) || strings.Contains(err.Error(), "s3cret") {
				t.Errorf("resolve returned\n%v\nwant\n%s", err, tt.message)
			}
		})
	}
}

func TestReadableConfigWithPassword(t *testing.T) {
	tests := []struct {
		name, upstream string
		mode           os.FileMode
		warnings       int
	}{
		{"a password for all to read", "host=db1 password=s3cret", 0o644, 1},
		{"in a URI", "postgresql://u:s3cret@db1", 0o644, 1},
		{"for the group at most", "host=db1 password=s3cret", 0o640, 0},
		{"no password", "host=db1", 0o644, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "rideau.yaml")
			if err := os.WriteFile(name, []byte("relay: {upstream: '"+tt.upstream+"', dir: wal}\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Chmod(name, tt.mode); err != nil {
				t.Fatal(err)
			}
			cfg, err := readConfig(name)
			if err != nil {
				t.Fatal(err)
			}
			set, err := cfg.resolve(io.Discard)
			if err != nil {
				t.Fatal(err)
			}
			if len(set.warnings) != tt.warnings || strings.Contains(strings.Join(set.warnings, " "), "s3cret") {
				t.Errorf("warnings %q, want %d", set.warnings, tt.warnings)
			}
		})
	}
}

func TestReadUsersFile(t *testing.T) {
	const verifier = "SCRAM-SHA-256$4096:6bX8OpDyh4zzH9bTZtSlPg==$uzZSUzcsMYtbXcOpSSnMuEtUqFScM1uqYfS9UEkYUQQ=:Rh6xtCOnUvFMxDf1jbKpjXeoSy3LpFmrSlnDHTJcr2I="
	tests := []struct {
		name, text string
		users      []string // nil: an error
		message    string
	}{
		{"plain words", "# standbys\na " + verifier + "\n\n  b\t" + verifier + "\n", []string{"a", "b"}, ""},
		{"PgBouncer's userlist.txt", `"odd ""name""" "` + verifier + "\"\n; comment\n", []string{`odd "name"`}, ""},
		{"no verifier", "a\n", nil, ":1: a user is a name and a verifier"},
		{"too much", "\na " + verifier + " x\n", nil, ":2: a user is a name and a verifier"},
		{"a quote left open", `"a ` + verifier, nil, ":1: a user is a name and a verifier"},
		{"a password", "a s3cret\n", nil, `:1: user "a": not a SCRAM verifier`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			name := filepath.Join(t.TempDir(), "users")
			if err := os.WriteFile(name, []byte(tt.text), 0o600); err != nil {
				t.Fatal(err)
			}
			users, err := readUsersFile(name)
			if tt.users == nil {
				if err == nil || !strings.Contains(err.Error(), tt.message) || strings.Contains(err.Error(), "s3cret") {
					t.Errorf("got %v, want %q", err, tt.message)
				}
				return
			}
			var names []string
			for name, v := range users {
				names = append(names, name)
				if v != verifier {
					t.Errorf("verifier of %q is %q", name, v)
				}
			}
			slices.Sort(names)
			if err != nil || !slices.Equal(names, tt.users) {
				t.Errorf("users %q, %v; want %q", names, err, tt.users)
			}
		})
	}
}
