package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

var update = flag.Bool("update", false, "write generated files instead of comparing them")

// commands returns the command and all below it, in the order of the help.
func commands(cmd *cobra.Command) []*cobra.Command {
	all := []*cobra.Command{cmd}
	for _, child := range cmd.Commands() {
		if !child.Hidden {
			all = append(all, commands(child)...)
		}
	}
	return all
}

// screen is how many lines a help may have: what a terminal shows at once on
// the smallest laptop.
const screen = 48

// The help is written by hand. This keeps it to one screen, and to the truth:
// every option and verb there is, and none that is not.
func TestHelp(t *testing.T) {
	for _, cmd := range commands(newRoot()) {
		t.Run(cmd.CommandPath(), func(t *testing.T) {
			help := cmd.Long
			want := "Usage: " + cmd.CommandPath()
			if cmd.HasParent() {
				want = "Usage: rideau " + usageLine(cmd)
			}
			first, _, _ := strings.Cut(help, "\n")
			if !strings.HasPrefix(strings.Join(strings.Fields(help), " "), want) {
				t.Errorf("the help begins with %q, want %q", first, want)
			}
			lines := strings.Split(strings.TrimSuffix(help, "\n"), "\n")
			if len(lines) > screen {
				t.Errorf("the help has %d lines, more than a screen of %d", len(lines), screen)
			}
			for i, line := range lines {
				if n := utf8.RuneCountInString(line); n > 79 {
					t.Errorf("line %d has %d columns, more than 79: %s", i+1, n, line)
				}
				if strings.Contains(line, "\t") || strings.TrimRight(line, " ") != line {
					t.Errorf("line %d has a tab, or blanks at its end: %q", i+1, line)
				}
			}
			cmd.LocalFlags().VisitAll(func(f *pflag.Flag) {
				if f.Name != "help" && !f.Hidden && !regexp.MustCompile(`--`+f.Name+`\b`).MatchString(help) {
					t.Errorf("option --%s is not in the help", f.Name)
				}
			})
			if _, options, ok := strings.Cut(help, "\nOptions:\n"); ok {
				options, _, _ = strings.Cut(options, "\n\n")
				for _, m := range regexp.MustCompile(`(?m)^ {4}(?:-\w, )?--([a-z-]+)`).FindAllStringSubmatch(options, -1) {
					if cmd.Flags().Lookup(m[1]) == nil {
						t.Errorf("the help has option --%s, which is not there", m[1])
					}
				}
			}
			for _, child := range cmd.Commands() {
				if !child.Hidden && !regexp.MustCompile(`(?m)^ {4}`+child.Name()+` `).MatchString(help) {
					t.Errorf("%q is not in the help", child.CommandPath())
				}
			}
		})
	}
}

// The examples of a help can be pasted: the commands are there and take the
// options.
func TestHelpExamples(t *testing.T) {
	examples := 0
	for _, cmd := range commands(newRoot()) {
		for _, line := range regexp.MustCompile(`(?m)^ *\$ (rideau .*)$`).FindAllStringSubmatch(cmd.Long, -1) {
			examples++
			checkExample(t, cmd.CommandPath(), line[1])
		}
	}
	if examples == 0 {
		t.Error("no help has an example")
	}
}

// checkExample checks that a line for the shell calls a command that is there,
// with options that it has. where is named if not.
func checkExample(t *testing.T, where, line string) {
	t.Helper()
	words := shellWords(line)
	for i, word := range words {
		if word == ">" || word == "|" || word == "&&" {
			words = words[:i]
			break
		}
	}
	cmd, rest, err := newRoot().Find(words[1:])
	if err != nil {
		t.Errorf("%s: %q: %v", where, line, err)
		return
	}
	if err := cmd.ParseFlags(rest); err != nil && !errors.Is(err, pflag.ErrHelp) {
		t.Errorf("%s: %q: %v", where, line, err)
	}
	if args := cmd.Flags().Args(); cmd.HasSubCommands() && len(args) > 0 {
		t.Errorf("%s: %q: there is no %q", where, line, cmd.CommandPath()+" "+args[0])
	}
}

// shellWords splits a line as a shell does, as far as our examples go: blanks,
// and quotes of both kinds.
func shellWords(line string) []string {
	var words []string
	for _, w := range regexp.MustCompile(`(?:'[^']*'|"[^"]*"|[^\s'"])+`).FindAllString(line, -1) {
		words = append(words, strings.NewReplacer(`'`, "", `"`, "").Replace(w))
	}
	return words
}

// doc/rideau.1 is the help in another dress. Run with -update after a change.
func TestManPage(t *testing.T) {
	const file = "../../doc/rideau.1"
	want := manPage(newRoot())
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Error("doc/rideau.1 is not what the help says; make it so with: go test ./cmd/rideau -run TestManPage -update")
	}
}

// manPage renders the help of all commands in the language of man.
func manPage(root *cobra.Command) []byte {
	var out bytes.Buffer
	fmt.Fprint(&out, `.\" Generated from the help of the commands; see cmd/rideau/help_test.go.
.TH RIDEAU 1 "" "Rideau" "Rideau"
.SH NAME
rideau \- between a PostgreSQL primary and everything that needs its data
`)
	for _, cmd := range commands(root) {
		usage, text, _ := strings.Cut(cmd.Long, "\n\n")
		usage = strings.TrimPrefix(usage, "Usage: ")
		if cmd == root {
			fmt.Fprintf(&out, ".SH SYNOPSIS\n.nf\n%s\n.fi\n.SH DESCRIPTION\n", roff(usage))
		} else {
			fmt.Fprintf(&out, ".SH %s\n.nf\n\\fB%s\\fR\n.fi\n.PP\n", strings.ToUpper(cmd.CommandPath()), roff(usage))
		}
		literal := false
		for line := range strings.Lines(text) {
			line = strings.TrimRight(line, "\n")
			indented := strings.HasPrefix(line, " ")
			switch {
			case indented && !literal:
				out.WriteString(".nf\n")
				literal = true
			case !indented && line != "" && literal:
				out.WriteString(".fi\n")
				literal = false
			}
			switch {
			case line == "" && !literal:
				out.WriteString(".PP\n")
			case line == "":
				out.WriteString("\n")
			default:
				out.WriteString(roff(line) + "\n")
			}
		}
		if literal {
			out.WriteString(".fi\n")
		}
	}
	return out.Bytes()
}

// roff escapes what is a command to troff.
func roff(line string) string {
	line = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(line)
	if strings.HasPrefix(line, ".") || strings.HasPrefix(line, "'") {
		line = `\&` + line
	}
	return line
}

// The commands of the README and of the manual are there, with their options.
func TestDocumentedCommands(t *testing.T) {
	for _, file := range []string{"../../README.md", "../../doc/relay.md", "../../doc/basebackup.md", "../../doc/extension.md", "../../doc/extension-guide.md", "../../examples/README.md", "../../doc/rideau.yaml"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		// At the beginning of a line, in $(...), between backquotes or quotes.
		found := regexp.MustCompile("(?m)(?:^|[`\"'(])(rideau [a-z][^`\n]*)").FindAllStringSubmatch(string(text), -1)
		if len(found) == 0 {
			t.Errorf("%s has no command", file)
		}
		for _, m := range found {
			line, _, _ := strings.Cut(m[1], ")")
			line, _, _ = strings.Cut(line, "  #")
			if strings.HasSuffix(strings.TrimSpace(line), `"`) && strings.Count(line, `"`) == 1 || strings.Count(line, `'`) == 1 {
				line = strings.TrimRight(line, `"' `)
			}
			line, _, _ = strings.Cut(line, `" `)
			checkExample(t, file, line)
		}
	}
}
