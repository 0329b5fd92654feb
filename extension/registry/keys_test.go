package registry

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"aead.dev/minisign"
)

// hastyKey is encrypted with the password "correct horse" as minisign does it, but
// with parameters for which scrypt takes a megabyte of memory and no time, where
// minisign's own take a gigabyte and seconds. hastyPub is its public half.
const (
	hastyKey = "untrusted comment: minisign encrypted secret key\n" +
		"RWRTY0IyYSBzYWx0IHRoYXQgaXMgbm8gc2VjcmV0IGF0IGFsbC4AgAAAAAAAAAAAEAAAAAAAiIWn6+jwJB79l54UsuRFvcKOiGW5onAWmOoNw546D76sfkL11HMfna46FUjl+T7z7PW+hpaTbxm6DG58gki00S4aKHHPG1NEZhElB46N91BlQE1Ftvp10lloRDeTPAwMHUAaWuk0WBw="
	hastyPub = "RWTdH6Co/NqcgVeVgdrsbDr4DpFbN92T3l0TZL+PJd1juEReBwDgUncz"
)

func answer(password string) func() (string, error) {
	return func() (string, error) { return password, nil }
}

// Keys are made once, encrypted, and nobody else's to read.
func TestGenerateKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "alice.key")
	asked := errors.New("nobody is there to ask")
	encrypted := 0
	generate := func(password func() (string, error)) (PublicKey, error) {
		return generateKey(path, password, func(with string, key SecretKey) ([]byte, error) {
			encrypted++
			if with != "correct horse" {
				t.Errorf("encrypted with %q", with)
			}
			return key.MarshalText()
		})
	}
	if _, err := generate(func() (string, error) { return "", asked }); !errors.Is(err, asked) {
		t.Errorf("without a password: %v", err)
	}
	if _, err := generate(answer("")); err == nil {
		t.Error("with an empty password")
	}
	failed := errors.New("no memory")
	if _, err := generateKey(path, answer("x"), func(string, SecretKey) ([]byte, error) { return nil, failed }); !errors.Is(err, failed) {
		t.Errorf("without memory: %v", err)
	}
	if list, err := os.ReadDir(filepath.Dir(path)); err != nil || len(list) != 0 {
		t.Errorf("%v was written, %v", list, err)
	}
	pub, err := generate(answer("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	text, err := os.ReadFile(PublicKeyPath(path))
	if err != nil || PublicKeyPath(path) != strings.TrimSuffix(path, ".key")+".pub" {
		t.Fatal(err)
	}
	if got, err := ParsePublicKey(string(text)); err != nil || !got.Equal(pub) {
		t.Errorf("public key %v, %v", got, err)
	}
	if key, err := ReadSecretKey(path, nil); err != nil || !sameKey(public(key), pub) {
		t.Errorf("secret key %v, %v", key, err)
	}
	var there *KeyExistsError
	if _, err := generate(answer("x")); !errors.As(err, &there) || there.Path != path || encrypted != 1 {
		t.Errorf("over a key that is there: %v", err)
	}
}

// A secret key is not taken for a public one, nor the other way, and is not shown.
func TestTheOtherHalf(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	plain, err := key.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{string(plain), hastyKey, hastyKey[strings.Index(hastyKey, "\n")+1:]} {
		if _, err := ParsePublicKey(text); !errors.Is(err, ErrSecretKey) {
			t.Errorf("a secret key: %v", err)
		}
	}
	if _, err := ParsePublicKey("RWQabc"); err == nil || errors.Is(err, ErrSecretKey) {
		t.Errorf("no key at all: %v", err)
	}
	path := filepath.Join(t.TempDir(), "alice.pub")
	if err := os.WriteFile(path, []byte(public(key).String()), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecretKey(path, nil); err == nil || !strings.Contains(err.Error(), "it is a public key") {
		t.Errorf("a public key: %v", err)
	}
}

// An encrypted key is read with its password only, and if others cannot read it.
func TestReadSecretKey(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "alice.key")
	if err := os.WriteFile(path, []byte(hastyKey+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	asked := errors.New("nobody is there to ask")
	if _, err := ReadSecretKey(path, func() (string, error) { return "", asked }); !errors.Is(err, asked) {
		t.Errorf("read without a password: %v", err)
	}
	if _, err := ReadSecretKey(path, answer("wrong horse")); err == nil || !strings.Contains(err.Error(), "password is wrong") {
		t.Errorf("read with another password: %v", err)
	}
	key, err := ReadSecretKey(path, answer("correct horse"))
	if err != nil || encodeKey(public(key)) != hastyPub {
		t.Errorf("read %v, %v", key, err)
	}
	if err := os.Chmod(path, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecretKey(path, answer("correct horse")); err == nil || !strings.Contains(err.Error(), "0640") {
		t.Errorf("read a key that others can read: %v", err)
	}
}

// What GenerateKey really encrypts is read again. It takes a gigabyte and seconds;
// with the race detector, for which there is nothing here, most of a minute, and
// the program's own test of keygen does it then.
func TestEncryptedInEarnest(t *testing.T) {
	if testing.Short() || raceDetector {
		t.Skip("takes a gigabyte of memory")
	}
	path := filepath.Join(t.TempDir(), "alice.key")
	pub, err := GenerateKey(path, answer("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(path); err != nil || !minisign.IsEncrypted(text) {
		t.Errorf("the key is not encrypted, %v", err)
	}
	if key, err := ReadSecretKey(path, answer("correct horse")); err != nil || !sameKey(public(key), pub) {
		t.Errorf("read %v, %v", key, err)
	}
}

// A key that minisign made without a password (minisign -W) is read as well.
func TestSecretKeyWithoutPassword(t *testing.T) {
	t.Parallel()
	key := newKey(t)
	text, err := key.MarshalText()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "k")
	if err := os.WriteFile(path, append(text, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadSecretKey(path, func() (string, error) { t.Error("asked for a password"); return "", nil })
	if err != nil || !got.Equal(key) {
		t.Errorf("read %v, %v", got, err)
	}
	if err := os.WriteFile(path, []byte("rubbish"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ReadSecretKey(path, nil); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("read rubbish: %v", err)
	}
}

// A public key and a signature that minisign's author made, from its manual.
func TestMinisignsOwnKey(t *testing.T) {
	const text = "untrusted comment: minisign public key E7620F1842B4E81F\nRWQf6LRCGA9i53mlYecO4IzT51TGPpvWucNSCh1CBM0QTaLn73Y7GFO3\n"
	key, err := ParsePublicKey(text)
	if err != nil {
		t.Fatal(err)
	}
	if KeyID(key) != "E7620F1842B4E81F" {
		t.Errorf("id %s", KeyID(key))
	}
	if same, err := ParsePublicKey(encodeKey(key)); err != nil || !same.Equal(key) {
		t.Errorf("%v, %v", same, err)
	}
	for _, bad := range []string{"", "RWQ", strings.Repeat("A", 5000), "untrusted comment: x\n"} {
		if _, err := ParsePublicKey(bad); err == nil {
			t.Errorf("%.20q is a key", bad)
		}
	}
}

func TestTrustStore(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "deep", "trust")
	trust, err := OpenTrust(dir)
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := trust.List(); err != nil || len(keys) != 0 {
		t.Errorf("keys %v, %v", keys, err)
	}
	a, b := public(newKey(t)), public(newKey(t))
	for _, name := range []string{"", ".", "../x", "a/b", "-x", "a b", strings.Repeat("a", 101)} {
		if trust.Add(name, a) == nil || trust.Remove(name) == nil {
			t.Errorf("a key is called %q", name)
		}
	}
	for range 2 {
		if err := trust.Add("acme", a); err != nil {
			t.Fatal(err)
		}
	}
	if err := trust.Add("acme", b); err == nil || !strings.Contains(err.Error(), "another key") {
		t.Errorf("another key by the same name: %v", err)
	}
	if err := trust.Add("other", a); err == nil || !strings.Contains(err.Error(), `"acme"`) {
		t.Errorf("the same key by another name: %v", err)
	}
	if err := trust.Add("aaa", b); err != nil {
		t.Fatal(err)
	}
	keys, err := trust.List()
	if err != nil || len(keys) != 2 || keys[0].Name != "aaa" || !keys[1].Key.Equal(a) {
		t.Errorf("keys %v, %v", keys, err)
	}
	checkMode(t, dir, 0o600)
	if err := trust.Remove("aaa"); err != nil {
		t.Error(err)
	}
	if err := trust.Remove("aaa"); err == nil {
		t.Error("removed twice")
	}
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := OpenTrust(dir); err == nil || !strings.Contains(err.Error(), "others could add") {
		t.Errorf("a store that others can write to: %v", err)
	}
	if _, err := OpenTrust(""); err == nil {
		t.Error("a store that is nowhere")
	}
}
