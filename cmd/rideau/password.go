package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"rideau/pgrepl"
)

const passwordHelp = `Usage: rideau password

Asks for a password and prints its SCRAM-SHA-256 verifier, which goes into
"users:" of the configuration file or the file of --users. The verifier lets a
relay check the password; the password cannot be read from it.

It is the same that PostgreSQL keeps: a verifier from pg_authid.rolpassword
serves as well, and the role then has one password for both.

Without a terminal, the password is the first line of standard input.

Example:
    $ rideau password
    Password:
    Again:
    SCRAM-SHA-256$4096:pZ0s...
`

func newPasswordCommand() *cobra.Command {
	return newCommand("password", passwordHelp, func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			err := usageErrorf(cmd, "unexpected argument") // it may be the password
			err.hint = "The password is asked for, or read from standard input: arguments can be seen by every user of this machine."
			return err
		}
		password, err := askPassword(cmd.Context(), cmd.InOrStdin(), cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		verifier, err := pgrepl.NewVerifier(password)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), verifier)
		return err
	})
}

// askPassword reads a password, twice and unseen from a terminal, once from
// anything else.
func askPassword(ctx context.Context, in io.Reader, prompt io.Writer) (string, error) {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		line, err := bufio.NewReader(in).ReadString('\n')
		if err != nil && err != io.EOF {
			return "", fmt.Errorf("could not read the password: %w", err)
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	// Nothing ends a read from a terminal. Who interrupts must see again what they
	// type; the reader ends with us.
	state, err := term.GetState(int(f.Fd()))
	if err != nil {
		return "", fmt.Errorf("could not read the password: %w", err)
	}
	type line struct {
		text []byte
		err  error
	}
	var typed [2]string
	for i, label := range []string{"Password: ", "Again: "} {
		fmt.Fprint(prompt, label)
		read := make(chan line, 1)
		go func() {
			text, err := term.ReadPassword(int(f.Fd()))
			read <- line{text, err}
		}()
		select {
		case l := <-read:
			fmt.Fprintln(prompt)
			if l.err != nil {
				return "", fmt.Errorf("could not read the password: %w", l.err)
			}
			typed[i] = string(l.text)
		case <-ctx.Done():
			term.Restore(int(f.Fd()), state)
			fmt.Fprintln(prompt)
			return "", ctx.Err()
		}
	}
	if typed[0] != typed[1] {
		return "", errors.New("the two passwords differ")
	}
	return typed[0], nil
}
