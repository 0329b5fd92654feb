package script

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

func TestSplit(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		why  string
		sql  string
		want []string // statements, or one that begins with "ERROR "
	}{
		{"nothing", " \n-- a comment\n;;/* another */", nil},
		{"the last semicolon may be missing", "SELECT 1; SELECT 2", []string{"SELECT 1", "SELECT 2"}},
		{"comments around a statement are not of it", "/* a; */ SELECT /* b; */ 1 -- c;\n;", []string{"SELECT /* b; */ 1"}},
		{"comments nest", "/* a /* b; */ c; */SELECT 1", []string{"SELECT 1"}},
		{"a comment ends at a carriage return too", "-- a;\rSELECT 1;", []string{"SELECT 1"}},
		{"a comment begins inside of an operator", "SELECT 1 +-- ;\n 2", []string{"SELECT 1 +-- ;\n 2"}},
		{"quotes double", "SELECT 'a;'';b'; SELECT 2", []string{"SELECT 'a;'';b'", "SELECT 2"}},
		{"a backslash is one", `SELECT '\'; SELECT 2`, []string{`SELECT '\'`, "SELECT 2"}},
		{"in E strings it escapes", `SELECT E'\';'; SELECT 2`, []string{`SELECT E'\';'`, "SELECT 2"}},
		{"an E string continues as one", "SELECT E'a' -- c\n '\\';b'; SELECT 2", []string{"SELECT E'a' -- c\n '\\';b'", "SELECT 2"}},
		{"but only over a newline", `SELECT E'a' '\'; SELECT 2`, []string{`SELECT E'a' '\'`, "SELECT 2"}},
		{"a plain string does not turn into one", "SELECT 'a'\n'\\'; SELECT 2", []string{"SELECT 'a'\n'\\'", "SELECT 2"}},
		{"a name that ends in e has no E string behind it", `SELECT type'\'; SELECT 2`, []string{`SELECT type'\'`, "SELECT 2"}},
		{"U& strings have no backslash quotes", `SELECT U&'\'; SELECT 2`, []string{`SELECT U&'\'`, "SELECT 2"}},
		{"identifiers", `SELECT 1 AS "a;"";b", U&"c;"; SELECT 2`, []string{`SELECT 1 AS "a;"";b", U&"c;"`, "SELECT 2"}},
		{"dollar quotes", "SELECT $$a;'$$, $x$b;$$;$y$;$x$; SELECT 2", []string{"SELECT $$a;'$$, $x$b;$$;$y$;$x$", "SELECT 2"}},
		{"a dollar in a name is no quote", "SELECT a$b$; SELECT c$b$", []string{"SELECT a$b$", "SELECT c$b$"}},
		{"nor is a parameter", "SELECT $1$; $2$", []string{"SELECT $1$", "$2$"}},
		{"but behind a number it is", "SELECT 1$$;$$; SELECT 2", []string{"SELECT 1$$;$$", "SELECT 2"}},
		{"rules have semicolons in parentheses", "CREATE RULE r AS ON UPDATE TO t DO ALSO (SELECT 1; SELECT 2;); SELECT 3",
			[]string{"CREATE RULE r AS ON UPDATE TO t DO ALSO (SELECT 1; SELECT 2;)", "SELECT 3"}},
		{"a body in SQL", "CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END; SELECT 2",
			[]string{"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; SELECT CASE WHEN true THEN 1 END; END", "SELECT 2"}},
		{"a body with nested CASE, and columns called end",
			"create or replace procedure f() begin atomic; SELECT CASE a WHEN 1 THEN CASE WHEN b THEN 2 END ELSE 3 END AS end, 1 end, x.end; END ; SELECT 2",
			[]string{"create or replace procedure f() begin atomic; SELECT CASE a WHEN 1 THEN CASE WHEN b THEN 2 END ELSE 3 END AS end, 1 end, x.end; END", "SELECT 2"}},
		{"an empty body", "CREATE FUNCTION f() RETURNS void BEGIN ATOMIC END; SELECT 2",
			[]string{"CREATE FUNCTION f() RETURNS void BEGIN ATOMIC END", "SELECT 2"}},
		{"an argument called begin", "CREATE FUNCTION f(begin atomic) RETURNS int AS 'a;b'; SELECT 2",
			[]string{"CREATE FUNCTION f(begin atomic) RETURNS int AS 'a;b'", "SELECT 2"}},
		{"a type called begin", "CREATE FUNCTION f() RETURNS begin BEGIN ATOMIC SELECT 1; END; SELECT 2",
			[]string{"CREATE FUNCTION f() RETURNS begin BEGIN ATOMIC SELECT 1; END", "SELECT 2"}},
		{"BEGIN ATOMIC elsewhere is no body", "SELECT begin atomic; END", []string{"SELECT begin atomic", "END"}},
		{"lines for people", "\\echo Use \"CREATE EXTENSION\" 'to load\\quit\nSELECT 1;\n\\echo bye", []string{"SELECT 1"}},
		{"also inside of a statement", "SELECT\n\\echo x\n1;", []string{"SELECT\n       \n1"}},
		{"copy from the client's file is for the server to refuse", "COPY t (stdin) FROM '/x'; COPY (SELECT 1 FROM stdin) TO '/y'",
			[]string{"COPY t (stdin) FROM '/x'", "COPY (SELECT 1 FROM stdin) TO '/y'"}},
		{"a parameter set to what it is", "SET standard_conforming_strings = on; SET LOCAL client_encoding TO 'UTF8'; SET NAMES 'utf-8'",
			[]string{"SET standard_conforming_strings = on", "SET LOCAL client_encoding TO 'UTF8'", "SET NAMES 'utf-8'"}},

		{"psql commands", "SELECT 1;\n  \\i other.sql", []string{`ERROR f.sql:2:3: psql command "\\i other.sql" cannot be used in the script of an extension`}},
		{"psql's echo with something before it", "  \\echo x", []string{`ERROR f.sql:1:3: psql command "\\echo x" cannot be used in the script of an extension`}},
		{"data", "SELECT 1;\nCOPY t FROM stdin;\n1\n\\.\n", []string{"ERROR f.sql:2:1: COPY FROM STDIN cannot be used in the script of an extension: use INSERT"}},
		{"data out", "COPY (SELECT 1) TO STDOUT", []string{"ERROR f.sql:1:1: COPY TO STDOUT cannot be used in the script of an extension: use INSERT"}},
		{"string", "SELECT 1,\n 'é', 'abc;\n", []string{"ERROR f.sql:2:7: quoted string is not terminated"}},
		{"E string", `SELECT E'abc\'`, []string{"ERROR f.sql:1:8: quoted string is not terminated"}},
		{"E string, at a backslash", `SELECT E'abc\`, []string{"ERROR f.sql:1:8: quoted string is not terminated"}},
		{"identifier", `SELECT "a`, []string{"ERROR f.sql:1:8: quoted identifier is not terminated"}},
		{"dollar quote", "SELECT $a$ $b$", []string{"ERROR f.sql:1:8: dollar-quoted string $a$… is not terminated"}},
		{"comment", "SELECT 1 /* /* */", []string{"ERROR f.sql:1:10: comment is not terminated"}},
		{"parenthesis", "SELECT (1;\nSELECT 2;", []string{"ERROR f.sql:1:8: parenthesis is not closed"}},
		{"other parenthesis", "SELECT 1);\nSELECT 2;", []string{"ERROR f.sql:1:9: closing parenthesis without an opening one"}},
		{"body", "CREATE FUNCTION f() BEGIN ATOMIC SELECT 1;", []string{"ERROR f.sql:1:21: BEGIN ATOMIC has no END"}},
		{"zero byte", "SELECT\x00 1", []string{"ERROR f.sql:1:7: script contains a zero byte"}},
		{"byte order mark", "\xef\xbb\xbfSELECT 1", []string{"ERROR f.sql:1:1: byte order mark, which the server takes for a part of the word behind it"}},
		{"strings read otherwise", `SELECT 1; SET LOCAL "standard_conforming_strings" TO 'off'`,
			[]string{"ERROR f.sql:1:11: standard_conforming_strings cannot be changed in the script of an extension: strings in it are read with the parameter on"}},
		{"bytes read otherwise", "set client_encoding to sjis",
			[]string{"ERROR f.sql:1:1: client_encoding cannot be changed in the script of an extension: name the encoding of scripts in the control file"}},
		{"everything back", "RESET ALL", []string{"ERROR f.sql:1:1: RESET all cannot be used in the script of an extension: it may change how the rest of the script is read"}},
	} {
		t.Run(tc.why, func(t *testing.T) {
			list, err := Split("f.sql", []byte(tc.sql))
			var got []string
			if err != nil {
				var e *Error
				if !errors.As(err, &e) {
					t.Fatalf("error of type %T", err)
				}
				got = []string{"ERROR " + err.Error()}
			}
			for _, s := range list {
				got = append(got, s.SQL)
			}
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", tc.want) {
				t.Errorf("Split(%q)\n got %q\nwant %q", tc.sql, got, tc.want)
			}
		})
	}
}

func TestStatement(t *testing.T) {
	t.Parallel()
	list, err := Split("foo--1.0.sql", []byte("/* é */ create /* é */ OR replace\n VIEW v AS SELECT 'é',\n x;\nDO $$ $$; (SELECT 1)"))
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []struct {
		keyword              string
		line, column, offset int
	}{{"CREATE VIEW", 1, 9, 9}, {"DO", 4, 1, 64}, {"", 4, 11, 74}} {
		s := list[i]
		if s.File != "foo--1.0.sql" || s.Keyword != want.keyword || s.Line != want.line || s.Column != want.column || s.Offset != want.offset {
			t.Errorf("statement %d is %+v, want %+v", i, s, want)
		}
	}
	for _, p := range []struct{ pos, line, column int }{{1, 1, 9}, {28, 2, 2}, {51, 3, 2}, {0, 1, 9}, {1000, 3, 3}} {
		if line, column := Position(list[0], p.pos); line != p.line || column != p.column {
			t.Errorf("position %d is line %d column %d, want %d and %d", p.pos, line, column, p.line, p.column)
		}
	}
}

func TestCheckTransaction(t *testing.T) {
	t.Parallel()
	for _, sql := range []string{"BEGIN", "begin work", "START TRANSACTION", "COMMIT", "COMMIT PREPARED 'x'", "END", "ROLLBACK",
		"ROLLBACK TO x", "ABORT", "SAVEPOINT x", "RELEASE x", "PREPARE TRANSACTION 'x'", "PREPARE TRANSACTION $$x$$", "/* */ Commit /* */ AND CHAIN"} {
		list, err := Split("f.sql", []byte("SELECT 1;\n"+sql))
		if err != nil {
			t.Fatal(err)
		}
		if err := CheckTransaction(list[:1]); err != nil {
			t.Error(err)
		}
		var e *Error
		if err := CheckTransaction(list); !errors.As(err, &e) || e.Line != 2 || !strings.Contains(e.Message, "transaction control") {
			t.Errorf("%s: %v", sql, err)
		}
	}
	for _, sql := range []string{"PREPARE transaction AS SELECT 1", "PREPARE p AS SELECT 1", `"begin"`, "SET TRANSACTION READ ONLY",
		"CREATE FUNCTION f() RETURNS int BEGIN ATOMIC SELECT 1; END", "DO $$ BEGIN COMMIT; END $$"} {
		list, err := Split("f.sql", []byte(sql))
		if err == nil {
			err = CheckTransaction(list)
		}
		if err != nil {
			t.Errorf("%s: %v", sql, err)
		}
	}
}

func TestSubstitute(t *testing.T) {
	t.Parallel()
	const sql = "\\echo no\nCREATE FUNCTION @extschema@.f() AS 'MODULE_PATHNAME' -- @extowner@\n\\echo @extschema@\nSELECT @extschema:bar@.g(), $$ @extschema:my-ext@ $$;"
	s := Substitution{File: "f.sql", Schema: "My schema", Owner: "user", Required: map[string]string{"bar": "public", "my-ext": "order"}, ModulePathname: "$libdir/f"}
	got, err := Substitute([]byte(sql), s)
	if err != nil {
		t.Fatal(err)
	}
	want := "\nCREATE FUNCTION \"My schema\".f() AS '$libdir/f' -- \"user\"\n\nSELECT public.g(), $$ \"order\" $$;"
	if string(got) != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
	// What is relocatable keeps its placeholder, as on the server.
	if got, err := Substitute([]byte("@extschema@"), Substitution{Schema: "s", Relocatable: true}); err != nil || string(got) != "@extschema@" {
		t.Errorf("%q, %v", got, err)
	}
	// A bad value that is not used does no harm.
	if _, err := Substitute([]byte("SELECT 1"), Substitution{Schema: `a"b`, Owner: "o'", Required: map[string]string{"x": "$"}}); err != nil {
		t.Error(err)
	}
	for _, tc := range []struct {
		sql  string
		s    Substitution
		want string
	}{
		{"\n @extschema@", Substitution{Schema: "a$b"}, `f.sql:2:2: cannot put "a$b" in place of @extschema@: the value must not contain a line end or any of "$'\`},
		{"@extschema@", Substitution{Schema: `a"b`}, `f.sql:1:1: cannot put "a\"b" in place of @extschema@`},
		{"@extschema@", Substitution{Schema: `a'b`}, `in place of @extschema@`},
		{"@extschema@", Substitution{Schema: `a\b`}, `in place of @extschema@`},
		{"@extschema@", Substitution{Schema: "a\nb"}, `in place of @extschema@`},
		{"@extschema@", Substitution{}, `in place of @extschema@: the value is empty`},
		{"@extowner@", Substitution{Owner: "o$"}, `in place of @extowner@`},
		{"@extschema:x@", Substitution{Required: map[string]string{"x": "'"}}, `in place of @extschema:x@`},
		{"'MODULE_PATHNAME'", Substitution{ModulePathname: "a'b"}, `in place of MODULE_PATHNAME`},
		{"-- a\n'MODULE_PATHNAME'", Substitution{Strict: true}, `f.sql:2:2: nothing stands for MODULE_PATHNAME: the control file has no module_pathname`},
		{"\n@extschema:y@", Substitution{Strict: true}, `f.sql:2:1: @extschema:y@ names an extension that is not required: "y"`},
		{"@extschema@", Substitution{Strict: true, Relocatable: true, Schema: "s"}, `f.sql:1:1: @extschema@ cannot be used in the script of a relocatable extension`},
	} {
		tc.s.File = "f.sql"
		if _, err := Substitute([]byte(tc.sql), tc.s); err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%q: error %v, want %s", tc.sql, err, tc.want)
		}
	}
}

// FuzzSplit checks what the package promises of every text.
func FuzzSplit(f *testing.F) {
	for _, s := range []string{"SELECT 1; SELECT 'a;''', E'\\'', $x$ ; $x$ -- ;\n;", "CREATE FUNCTION f() BEGIN ATOMIC SELECT CASE WHEN a THEN 1 END; END; x",
		"/* /* */ */ (a;b); \"q\"\"\"", "SELECT\n\\echo hi\n1;\r\n\\echo bye", "a\xff\xc3; é; SELECT E'a'--\n'\\''", "u&'\\' U&\"x\" 1$$;$$ $1$ a$b$"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, sql []byte) {
		list, err := Split("f", sql)
		if err != nil {
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error of type %T: %v", err, err)
			}
			lines := strings.Split(string(sql), "\n")
			if e.Line < 1 || e.Line > len(lines) || e.Column < 1 || e.Column > len([]rune(lines[e.Line-1]))+1 {
				t.Fatalf("error outside of the text: %v", err)
			}
			return
		}
		seen := blankEcho(sql)
		end := 0
		gap := func(from, to int) {
			if more, err := Split("gap", seen[from:to]); err != nil || len(more) != 0 {
				t.Fatalf("between statements stands %q: %v, %v", seen[from:to], more, err)
			}
		}
		for _, s := range list {
			gap(end, s.Offset)
			end = s.Offset + len(s.SQL)
			if string(seen[s.Offset:end]) != s.SQL {
				t.Fatalf("%q is not what stands at %d", s.SQL, s.Offset)
			}
			if line, column := position(seen, s.Offset); line != s.Line || column != s.Column {
				t.Fatalf("%q at line %d column %d, should be %d and %d", s.SQL, s.Line, s.Column, line, column)
			}
			if line, column := Position(s, 1); line != s.Line || column != s.Column {
				t.Fatalf("first character at %d, %d", line, column)
			}
			again, err := Split("again", []byte(s.SQL))
			if err != nil || len(again) != 1 || again[0].SQL != s.SQL || again[0].Keyword != s.Keyword {
				t.Fatalf("%q splits into %+v, %v", s.SQL, again, err)
			}
		}
		gap(end, len(seen))
	})
}
