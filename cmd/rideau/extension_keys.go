package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"rideau/extension/registry"
)

const extensionKeygenHelp = `Usage: rideau extension keygen FILE [options]

Makes a pair of keys to sign packages and registries with, in minisign's
format. The secret key goes to FILE, encrypted with a password that is asked
for; the public key, which you give to everybody, to FILE with .pub in place
of .key. Both must not be there yet.

Whoever has the secret key and its password can sign in your name: keep it off
the machine that serves the registry, and keep a copy in a safe place.

Options:
    --password-file FILE
                      Take the password from the first line of this file, such
                      as /dev/fd/3, and do not ask.

Example:
    $ rideau extension keygen example.key
    Password:
    Again:
    key 0123456789ABCDEF: example.key is secret, example.pub is for everybody
`

func newExtensionKeygenCommand() *cobra.Command {
	var passwordFile string
	cmd := newCommand("keygen FILE [options]", extensionKeygenHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"FILE", "file for the secret key"}); err != nil {
			return err
		}
		key, err := registry.GenerateKey(args[0], func() (string, error) {
			if passwordFile != "" {
				lines, err := readPasswords(passwordFile)
				if err != nil {
					return "", err
				}
				return lines[0], nil
			}
			if !isTerminal(cmd.InOrStdin()) {
				return "", &noPasswordError{args[0]}
			}
			return askPassword(cmd.Context(), cmd.InOrStdin(), cmd.ErrOrStderr())
		})
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "key %s: %s is secret, %s is for everybody\n", registry.KeyID(key), args[0], registry.PublicKeyPath(args[0]))
		return err
	})
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "")
	return cmd
}

// A noPasswordError says that the password of a key can be asked of nobody.
type noPasswordError struct{ key string }

func (e *noPasswordError) Error() string {
	return fmt.Sprintf("no password for secret key %q", e.key)
}

func isTerminal(in io.Reader) bool {
	f, ok := in.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// readPasswords reads the lines of a file of passwords, at least one.
func readPasswords(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("could not read the password: %w", err)
	}
	lines := strings.Split(strings.TrimRight(strings.ReplaceAll(string(text), "\r\n", "\n"), "\n"), "\n")
	if lines[0] == "" {
		return nil, fmt.Errorf("the first line of password file %q is empty", file)
	}
	return lines, nil
}

// A keyring is the secret keys that a command signs with.
type keyring struct {
	files        []string
	passwordFile string
}

func (k *keyring) flags(cmd *cobra.Command) {
	cmd.Flags().StringArrayVar(&k.files, "key", nil, "")
	cmd.Flags().StringVar(&k.passwordFile, "password-file", "", "")
}

// read reads the keys. The lines of a password file are for the keys in their
// order; the last is for all that follow, too.
func (k *keyring) read(cmd *cobra.Command) ([]registry.SecretKey, error) {
	if len(k.files) == 0 {
		err := usageErrorf(cmd, "no key to sign with")
		err.hint = "Give --key FILE; rideau extension keygen makes one."
		return nil, err
	}
	var lines []string
	var keys []registry.SecretKey
	for i, file := range k.files {
		key, err := registry.ReadSecretKey(file, func() (string, error) {
			if k.passwordFile == "" {
				return typePassword(cmd.Context(), cmd.InOrStdin(), cmd.ErrOrStderr(), file)
			}
			if lines == nil {
				var err error
				if lines, err = readPasswords(k.passwordFile); err != nil {
					return "", err
				}
			}
			return lines[min(i, len(lines)-1)], nil
		})
		if err != nil {
			return nil, err
		}
		keys = append(keys, key)
	}
	return keys, nil
}

// typePassword asks once, unseen, for the password of a key that is there.
func typePassword(ctx context.Context, in io.Reader, prompt io.Writer, key string) (string, error) {
	if !isTerminal(in) {
		return "", &noPasswordError{key}
	}
	fd := int(in.(*os.File).Fd())
	state, err := term.GetState(fd)
	if err != nil {
		return "", fmt.Errorf("could not read the password: %w", err)
	}
	fmt.Fprintf(prompt, "Password of %s: ", key)
	type line struct {
		text []byte
		err  error
	}
	read := make(chan line, 1)
	go func() {
		text, err := term.ReadPassword(fd)
		read <- line{text, err}
	}()
	select {
	case l := <-read:
		fmt.Fprintln(prompt)
		if l.err != nil {
			return "", fmt.Errorf("could not read the password: %w", l.err)
		}
		return string(l.text), nil
	case <-ctx.Done():
		// Nothing ends a read from a terminal. Who interrupts must see again what
		// they type; the reader ends with us.
		term.Restore(fd, state)
		fmt.Fprintln(prompt)
		return "", ctx.Err()
	}
}

// publicOf is the half of a key that everybody may have.
func publicOf(key registry.SecretKey) registry.PublicKey { return key.Public().(registry.PublicKey) }

// readPublicKey reads a key from a file, or from its line of base64.
func readPublicKey(text string) (registry.PublicKey, error) {
	data, err := os.ReadFile(text)
	if err == nil {
		key, err := registry.ParsePublicKey(string(data))
		if errors.Is(err, registry.ErrSecretKey) {
			return key, &usageError{
				err:  fmt.Errorf("%s: %w", text, err),
				hint: fmt.Sprintf("Give the public key that belongs to it; rideau extension keygen has put it into %s.", registry.PublicKeyPath(text)),
			}
		}
		if err != nil {
			err = fmt.Errorf("%s: %w", text, err)
		}
		return key, err
	}
	key, perr := registry.ParsePublicKey(text)
	if errors.Is(perr, registry.ErrSecretKey) {
		return key, &usageError{err: perr, hint: "Others can see what is on a command line, and shells keep it: make another pair of keys (rideau extension keygen)."}
	}
	if perr != nil && strings.HasSuffix(text, ".pub") {
		return key, err // it was meant to be a file
	}
	if perr != nil {
		return key, fmt.Errorf("%q is neither a file nor a public key: %w", text, perr)
	}
	return key, nil
}

const extensionTrustHelp = `Usage: rideau extension trust VERB [options]

    add          believe what is signed with a key
    list         the keys that you believe
    remove       no longer believe one

A registry is used only if its root is signed by a key that you trust. Take the
key from where you trust its owner, not from the registry: a key is never
trusted because a registry shows it. Keys are kept in $XDG_CONFIG_HOME/rideau/
trust, else ~/.config/rideau/trust, one file each in minisign's format.

"rideau extension trust VERB --help" explains one.
`

func newExtensionTrustCommand() *cobra.Command {
	return newGroup("trust", extensionTrustHelp, newTrustAddCommand(), newTrustListCommand(), newTrustRemoveCommand())
}

const trustAddHelp = `Usage: rideau extension trust add NAME KEY

Believes what is signed with KEY: a file such as example.pub, or its line of
base64. Whoever has the secret half may, alone, say what a registry is and who
may sign packages for it; and packages execute SQL in your databases. NAME is
free, and how you call the key.

Example:
    $ rideau extension trust add example example.pub
`

func newTrustAddCommand() *cobra.Command {
	return newCommand("add NAME KEY", trustAddHelp, func(cmd *cobra.Command, args []string) error {
		err := arguments(cmd, args, [2]string{"NAME", "name for the key"}, [2]string{"KEY", "public key to trust"})
		if err != nil {
			return err
		}
		key, err := readPublicKey(args[1])
		if err != nil {
			return err
		}
		trust, _, err := trusting()
		if err != nil {
			return err
		}
		if err := trust.Add(args[0], key); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "key %s is trusted as %s\n", registry.KeyID(key), args[0])
		return err
	})
}

const trustListHelp = `Usage: rideau extension trust list [options]

Lists the keys that you trust: your name for each, its id, and the key.

Options:
    --json            Print them as JSON.
`

func newTrustListCommand() *cobra.Command {
	var asJSON bool
	cmd := newCommand("list [options]", trustListHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args); err != nil {
			return err
		}
		trust, _, err := trusting()
		if err != nil {
			return err
		}
		keys, err := trust.List()
		if err != nil {
			return err
		}
		type keyJSON struct {
			Name string `json:"name"`
			ID   string `json:"id"`
			Key  string `json:"key"`
		}
		list := []keyJSON{}
		t := newTable(cmd.OutOrStdout())
		for _, k := range keys {
			list = append(list, keyJSON{k.Name, registry.KeyID(k.Key), k.Key.String()})
			t.row(k.Name, registry.KeyID(k.Key), k.Key.String())
		}
		if asJSON {
			return writeJSON(cmd.OutOrStdout(), list)
		}
		if len(list) == 0 {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "No key is trusted.")
			return err
		}
		return t.flush()
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "")
	return cmd
}

const trustRemoveHelp = `Usage: rideau extension trust remove NAME

No longer believes what is signed with the key that you called NAME. What was
installed stays.
`

func newTrustRemoveCommand() *cobra.Command {
	return newCommand("remove NAME", trustRemoveHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"NAME", "name of the key"}); err != nil {
			return err
		}
		trust, _, err := trusting()
		if err != nil {
			return err
		}
		if err := trust.Remove(args[0]); err != nil {
			return err
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is no longer trusted\n", args[0])
		return err
	})
}
