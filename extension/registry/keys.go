package registry

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"aead.dev/minisign"

	"rideau/internal/durable"
)

// A PublicKey verifies signatures, in minisign's format.
type PublicKey = minisign.PublicKey

// A SecretKey makes signatures, in minisign's format.
type SecretKey = minisign.PrivateKey

// maxKeyFile is the length that the file of a key may have; minisign's have a
// few hundred bytes.
const maxKeyFile = 4 << 10

// KeyID returns how people call a key: 16 hexadecimal digits, as minisign
// prints them. It is a hint and proves nothing.
func KeyID(key PublicKey) string { return fmt.Sprintf("%016X", key.ID()) }

// public returns the public half of a secret key.
func public(key SecretKey) PublicKey { return key.Public().(PublicKey) }

// sameKey reports whether two keys verify the same signatures, whatever ids
// they go by: the id is a label, and one key under two of them must not count
// as two towards a threshold.
func sameKey(a, b PublicKey) bool { return bytes.Equal(edBytes(a), edBytes(b)) }

// edBytes returns the ed25519 key in a minisign key: what follows the two bytes
// of the algorithm and the eight of the id.
func edBytes(key PublicKey) []byte {
	raw, err := base64.StdEncoding.DecodeString(encodeKey(key))
	if err != nil || len(raw) != 10+ed25519.PublicKeySize {
		return nil
	}
	return raw[10:]
}

// encodeKey returns key as one line of base64, without a comment.
func encodeKey(key PublicKey) string { return key.String() }

// ParsePublicKey reads a public key: the line of base64 that minisign prints,
// or a whole file of minisign's with its comment.
func ParsePublicKey(text string) (PublicKey, error) {
	var key PublicKey
	if len(text) > maxKeyFile {
		return key, errors.New("public key is too long")
	}
	if err := key.UnmarshalText([]byte(strings.TrimSpace(text))); err != nil {
		if isSecretKey(text) {
			return key, ErrSecretKey
		}
		return key, fmt.Errorf("invalid public key: %s", strings.TrimPrefix(err.Error(), "minisign: "))
	}
	return key, nil
}

// ErrSecretKey says that a secret key was given where a public one belongs.
var ErrSecretKey = errors.New("this is a secret key, which must not be given away")

// isSecretKey reports whether text is a secret key of minisign's, encrypted or not.
func isSecretKey(text string) bool {
	text = strings.TrimSpace(text)
	if strings.HasPrefix(text, untrusted) {
		_, text, _ = strings.Cut(text, "\n")
	}
	raw, err := base64.StdEncoding.DecodeString(strings.TrimSpace(text))
	return err == nil && len(raw) == 158 && string(raw[:2]) == "Ed"
}

// A KeyExistsError says that a key is not made because a file of it is there. To
// write over a secret key would lose it.
type KeyExistsError struct{ Path string }

func (e *KeyExistsError) Error() string {
	return fmt.Sprintf("cannot make a key: file %q is there already, and no key is overwritten; name another file", e.Path)
}

// GenerateKey makes a pair of keys. The secret one goes to path, encrypted with
// the password that the callback gives, in a file of mode 0600 that must not be
// there yet (*[KeyExistsError]); the public one to path with ".pub" in place of
// ".key", or after it. Encryption is slow and takes a gigabyte of memory, on purpose.
func GenerateKey(path string, password func() (string, error)) (PublicKey, error) {
	return generateKey(path, password, minisign.EncryptKey)
}

// generateKey is GenerateKey with an encryption that may be cheaper.
func generateKey(path string, password func() (string, error), encrypt func(password string, key SecretKey) ([]byte, error)) (PublicKey, error) {
	pubPath := PublicKeyPath(path)
	for _, p := range []string{path, pubPath} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			if err == nil {
				return PublicKey{}, &KeyExistsError{p}
			}
			return PublicKey{}, fmt.Errorf("could not create key file %q: %w", p, err)
		}
	}
	pass, err := password()
	if err != nil {
		return PublicKey{}, err
	}
	if pass == "" {
		return PublicKey{}, errors.New("the password of a secret key must not be empty")
	}
	pub, secret, err := minisign.GenerateKey(nil)
	if err != nil {
		return pub, err
	}
	text, err := encrypt(pass, secret)
	if err != nil {
		return pub, err
	}
	pubText, err := pub.MarshalText()
	if err != nil {
		return pub, err
	}
	// The secret one first: a public key without the secret one is of no use, and
	// somebody might have begun to trust it.
	if err := createFile(path, append(text, '\n'), 0o600); err != nil {
		return pub, err
	}
	return pub, createFile(pubPath, append(pubText, '\n'), 0o644)
}

// PublicKeyPath returns where [GenerateKey] puts the public key that belongs to
// the secret one at path.
func PublicKeyPath(path string) string { return strings.TrimSuffix(path, ".key") + ".pub" }

// ReadSecretKey reads a secret key of minisign's. The callback is asked for the
// password if the key is encrypted. A file that others may read is refused.
func ReadSecretKey(path string, password func() (string, error)) (SecretKey, error) {
	var key SecretKey
	info, err := os.Stat(path)
	if err != nil {
		return key, err
	}
	if text, err := readFile(path, maxKeyFile); err == nil {
		if _, err := ParsePublicKey(string(text)); err == nil {
			return key, fmt.Errorf("cannot sign with %q: it is a public key", path)
		}
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return key, fmt.Errorf("secret key %q has mode %04o and must have 0600: others may have read it", path, mode)
	}
	text, err := readFile(path, maxKeyFile)
	if err != nil {
		return key, err
	}
	text = bytes.TrimSpace(text)
	if !minisign.IsEncrypted(text) {
		if err := key.UnmarshalText(text); err != nil {
			return key, fmt.Errorf("could not read secret key %q: %s", path, strings.TrimPrefix(err.Error(), "minisign: "))
		}
		return key, nil
	}
	pass, err := password()
	if err != nil {
		return key, err
	}
	if key, err = minisign.DecryptKey(pass, text); err != nil {
		return key, fmt.Errorf("could not decrypt secret key %q: the password is wrong or the file is damaged", path)
	}
	return key, nil
}

// A Trust is the keys that a user trusts to say what a registry is: a folder of
// public keys in minisign's format, one file a key. Nothing comes into it but by
// [Trust.Add]: a key that a registry shows is never trusted for being shown.
type Trust struct{ dir string }

// A TrustedKey is a key under the name that the user gave it.
type TrustedKey struct {
	Name string
	Key  PublicKey
}

// OpenTrust opens the trust store in dir, which need not be there.
func OpenTrust(dir string) (*Trust, error) {
	if dir == "" {
		return nil, errors.New("no directory for trusted keys was given")
	}
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return &Trust{dir}, nil
	}
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		return nil, fmt.Errorf("trust store %q is not a directory", dir)
	}
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return nil, fmt.Errorf("trust store %q has mode %04o: others could add keys to it", dir, mode)
	}
	return &Trust{dir}, nil
}

// Add begins to trust a key: whoever has its secret half may, alone, say what a
// registry is and whom it trusts. The name is free, and must not be taken.
func (t *Trust) Add(name string, key PublicKey) error {
	if err := checkKeyName(name); err != nil {
		return err
	}
	keys, err := t.List()
	if err != nil {
		return err
	}
	for _, k := range keys {
		switch {
		case k.Name == name && sameKey(k.Key, key):
			return nil
		case k.Name == name:
			return fmt.Errorf("another key is trusted as %q already", name)
		case sameKey(k.Key, key):
			return fmt.Errorf("key %s is trusted as %q already", KeyID(key), k.Name)
		}
	}
	text, err := key.MarshalText()
	if err != nil {
		return err
	}
	if err := mkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	return createFile(t.path(name), append(text, '\n'), 0o600)
}

// Remove ends the trust in the key of that name.
func (t *Trust) Remove(name string) error {
	if err := checkKeyName(name); err != nil {
		return err
	}
	err := os.Remove(t.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("no key is trusted as %q", name)
	}
	if err != nil {
		return err
	}
	return durable.SyncDir(t.dir)
}

// List returns the trusted keys by name. A file in the store that is no key is
// an error: to pass over it could be to pass over the one that counts.
func (t *Trust) List() ([]TrustedKey, error) {
	files, err := os.ReadDir(t.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var keys []TrustedKey
	for _, f := range files {
		name, ok := strings.CutSuffix(f.Name(), ".pub")
		if !ok || durable.IsTemp(f.Name()) {
			continue
		}
		text, err := readFile(filepath.Join(t.dir, f.Name()), maxKeyFile)
		if err != nil {
			return nil, err
		}
		key, err := ParsePublicKey(string(text))
		if err != nil {
			return nil, fmt.Errorf("trusted key %q: %w", filepath.Join(t.dir, f.Name()), err)
		}
		keys = append(keys, TrustedKey{name, key})
	}
	slices.SortFunc(keys, func(a, b TrustedKey) int { return strings.Compare(a.Name, b.Name) })
	return keys, nil
}

func (t *Trust) path(name string) string { return filepath.Join(t.dir, name+".pub") }

// checkKeyName keeps names to what is a file's name everywhere.
func checkKeyName(name string) error {
	ok := name != "" && len(name) <= 100 && name[0] != '.' && name[0] != '-'
	for _, c := range []byte(name) {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.')
	}
	if !ok {
		return fmt.Errorf("invalid name %q: letters, digits, and - _ . inside", name)
	}
	return nil
}

// createFile is durable.WriteFile for a file that must not be there.
func createFile(path string, data []byte, perm fs.FileMode) error {
	f, err := durable.Create(path+".new", perm)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	// A link fails where a rename would replace.
	if err := os.Link(f.Name(), path); err != nil {
		return err
	}
	return durable.SyncDir(filepath.Dir(path))
}

// mkdirAll is os.MkdirAll whose directories survive a power cut.
func mkdirAll(dir string, perm fs.FileMode) error {
	err := os.Mkdir(dir, perm)
	switch {
	case err == nil:
		return durable.SyncDir(filepath.Dir(dir))
	case errors.Is(err, fs.ErrExist):
		info, err := os.Stat(dir)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%q is not a directory", dir)
		}
		return err
	case errors.Is(err, fs.ErrNotExist) && filepath.Dir(dir) != dir:
		if _, e := os.Stat(filepath.Dir(dir)); e == nil {
			return err // its parent is there, and nothing can be made in it: /proc, autofs
		}
		if err := mkdirAll(filepath.Dir(dir), perm); err != nil {
			return err
		}
		return mkdirAll(dir, perm)
	}
	return err
}

// readFile reads a file of at most limit bytes.
func readFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return readAtMost(f, path, limit)
}
