package main

import (
	"errors"
	"fmt"
	"io"
	"regexp"

	"github.com/spf13/cobra"
)

// Exit statuses, as every command but a restore_command has them.
const (
	statusDone   = 0
	statusFailed = 1
	statusUsage  = 2
)

// A usageError is a mistake in the command line or the configuration: nothing
// was done, and nothing will be until it is corrected.
type usageError struct {
	err  error // nil: all has been said already
	hint string
}

func (e *usageError) Error() string {
	if e.err == nil {
		return "incorrect use"
	}
	return e.err.Error()
}

func (e *usageError) Unwrap() error { return e.err }

// usageErrorf returns a mistake in calling cmd, with a hint to read its help.
func usageErrorf(cmd *cobra.Command, format string, args ...any) *usageError {
	return &usageError{
		err:  fmt.Errorf(format, args...),
		hint: fmt.Sprintf("Run %q for usage.", cmd.CommandPath()+" --help"),
	}
}

// A statusError ends the program with an exit status of its own. It is for the
// commands that a server runs, to which the status is the answer.
type statusError struct {
	err    error // nil: nothing to print
	status int
}

func (e *statusError) Error() string {
	if e.err == nil {
		return fmt.Sprintf("exit status %d", e.status)
	}
	return e.err.Error()
}

func (e *statusError) Unwrap() error { return e.err }

// withStatus gives err an exit status. A nil err ends the program in silence.
func withStatus(status int, err error) error { return &statusError{err, status} }

// report is the one place where an error becomes words for a person and an exit
// status. name is the command that failed, "rideau relay".
func report(stderr io.Writer, name string, err error) int {
	if err == nil {
		return statusDone
	}
	status := statusFailed
	var usage *usageError
	if errors.As(err, &usage) {
		status = statusUsage
		if usage.err == nil {
			return status
		}
	}
	var own *statusError
	if errors.As(err, &own) {
		status = own.status
		if own.err == nil {
			return status
		}
	}
	words := explain(err)
	fmt.Fprintf(stderr, "%s: %s\n", name, maskPasswords(words.message))
	if words.detail != "" {
		fmt.Fprintf(stderr, "detail: %s\n", maskPasswords(words.detail))
	}
	if words.hint != "" {
		fmt.Fprintf(stderr, "hint: %s\n", maskPasswords(words.hint))
	}
	return status
}

// What a password looks like in the connection strings of libpq: a keyword with
// a plain or quoted value, a URI's user:password@, a URI's parameter.
var (
	passwordKeyword = regexp.MustCompile(`(?i)\b((?:ssl)?password\s*=\s*)(?:\*{8}|'(?:[^'\\]|\\.)*'?|(?:[^\s&'\\]|\\.)+)`)
	passwordInURI   = regexp.MustCompile(`(?i)\b(postgres(?:ql)?://[^\s:/@]*:)\S*@`)
)

// maskPasswords returns text with every password of a connection string in it
// replaced by asterisks.
func maskPasswords(text string) string {
	text = passwordInURI.ReplaceAllString(text, "${1}********@")
	return passwordKeyword.ReplaceAllString(text, "${1}********")
}
