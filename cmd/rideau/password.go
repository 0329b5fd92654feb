package main

import (
	"bufio"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"github.com/xdg-go/scram"
	"github.com/xdg-go/stringprep"
	"golang.org/x/term"
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

// Of PostgreSQL's src/include/common/scram-common.h: the number of iterations
// that scram_iterations has by default, and the length of a salt in bytes.
const (
	scramIterations = 4096
	scramSaltLength = 16
)

func newPasswordCommand() *cobra.Command {
	return newCommand("password", passwordHelp, func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			err := usageErrorf(cmd, "unexpected argument") // it may be the password
			err.hint = "The password is asked for, or read from standard input: arguments can be seen by every user of this machine."
			return err
		}
		password, err := askPassword(cmd.InOrStdin(), cmd.ErrOrStderr())
		if err != nil {
			return err
		}
		salt := make([]byte, scramSaltLength)
		rand.Read(salt) // never fails
		verifier, err := scramVerifier(password, salt, scramIterations)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(cmd.OutOrStdout(), verifier)
		return err
	})
}

// askPassword reads a password, twice and unseen from a terminal, once from
// anything else.
func askPassword(in io.Reader, prompt io.Writer) (string, error) {
	f, ok := in.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		line, err := bufio.NewReader(in).ReadString('\n')
		if err != nil && err != io.EOF {
			return "", fmt.Errorf("could not read the password: %w", err)
		}
		return strings.TrimRight(line, "\r\n"), nil
	}
	var typed [2]string
	for i, label := range []string{"Password: ", "Again: "} {
		fmt.Fprint(prompt, label)
		text, err := term.ReadPassword(int(f.Fd()))
		fmt.Fprintln(prompt)
		if err != nil {
			return "", fmt.Errorf("could not read the password: %w", err)
		}
		typed[i] = string(text)
	}
	if typed[0] != typed[1] {
		return "", errors.New("the two passwords differ")
	}
	return typed[0], nil
}

// scramVerifier returns what PostgreSQL stores for a password (see
// scram_build_secret in src/common/scram-common.c):
//
//	SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY
func scramVerifier(password string, salt []byte, iterations int) (string, error) {
	if password == "" {
		return "", errors.New("the password is empty")
	}
	// Both ends normalize a password, and use it as it is where that cannot be
	// done: a password that is not valid UTF-8, or has forbidden characters.
	if prepared, err := stringprep.SASLprep.Prepare(password); err == nil && prepared != "" {
		password = prepared
	}
	client, err := scram.SHA256.NewClientUnprepped("", password, "")
	if err != nil {
		return "", fmt.Errorf("could not prepare the password: %w", err)
	}
	keys, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt), Iters: iterations})
	if err != nil {
		return "", fmt.Errorf("could not derive the verifier: %w", err)
	}
	encode := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("SCRAM-SHA-256$%d:%s$%s:%s", iterations, encode(salt), encode(keys.StoredKey), encode(keys.ServerKey)), nil
}
