package extension

import (
	"strings"
	"testing"
)

// Each mistake is said with its line, its key, and what was meant.
func TestWishFileMistakes(t *testing.T) {
	for _, tt := range []struct{ why, text, want string }{
		{"a list is wanted", "\nregistries = 3", `f.toml:2: registries: this must be a list of strings, ["..."], not a number`},
		{"of strings", `registries = ["a", 1]`, `f.toml:1: registries: this must be a list of strings, and a number is in it`},
		{"a table is wanted", "database = \"x\"", `f.toml:1: database: this must be a table, [database], not a string`},
		{"further in", "[database.app]\nextensions = \"hstore\"", `f.toml:2: database.app.extensions: this must be a table, [database.app.extensions], not a string`},
		{"a string is wanted", "[database.app]\nconninfo = true", `f.toml:2: database.app.conninfo: this must be a string, not true or false`},
		{"a key is mistyped", "[database.app]\n\nconinfo = \"x\"", `f.toml:3: unknown key "coninfo" in [database.app]; did you mean "conninfo"?`},
		{"of a table that has no line of its own", "# wishes\n[databse.app.extensions]\nfoo = \"*\"", `f.toml:2: unknown key "databse"; did you mean "database"?`},
		{"or is like no other", "zzz = 1", `f.toml:1: unknown key "zzz"; there are database and registries`},
		{"in an inline table", "[database.app.extensions]\nfoo = { verison = \"1\" }", `f.toml:2: unknown key "verison" in [database.app.extensions.foo]; did you mean "version"?`},
		{"true or false", "[database.app.extensions]\nfoo = { hold = \"yes\" }", `f.toml:2: database.app.extensions.foo.hold: this must be true or false, not a string`},
		{"no version", "[database.app.extensions]\nbar = \"*\"\nfoo = [\"1\"]", `f.toml:3: database.app.extensions.foo: an extension is wished for by a version ("*" for any) or a table, not by a list`},
		{"no mode", "[database.app.extensions]\nfoo = { mode = \"nativ\" }", `f.toml:2: database.app.extensions.foo.mode: there is no mode "nativ"; did you mean "native"?`},
		{"no range", "[database.app.extensions]\nfoo = \">= x y\"", `f.toml:2: database.app.extensions.foo: ">= x y": `},
		{"no name", "[database.app.extensions]\n\"a--b\" = \"*\"", `f.toml:2: database.app.extensions.a--b: invalid extension name "a--b": `},
		{"the first of two, as they stand", "[database.app]\nzz = 1\naa = 1", `f.toml:2: unknown key "zz"`},
		{"no TOML", "a = \"", `f.toml:1:`},
	} {
		if _, err := ParseWishes("f.toml", []byte(tt.text)); err == nil || !strings.HasPrefix(err.Error(), tt.want) {
			t.Errorf("%s: error\n%v, want\n%s", tt.why, err, tt.want)
		}
	}
}
