package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"
)

type pemFiles struct{ cert, key string }

// selfSigned makes a certificate and its key.
func selfSigned(t *testing.T) pemFiles {
	t.Helper()
	dir := t.TempDir()
	files := pemFiles{filepath.Join(dir, "server.crt"), filepath.Join(dir, "server.key")}
	writeSelfSigned(t, files, 1, time.Now())
	return files
}

func writeSelfSigned(t *testing.T, files pemFiles, serial int64, at time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial),
		Subject:      pkix.Name{CommonName: "relay1"},
		NotAfter:     time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		files.cert: {Type: "CERTIFICATE", Bytes: der},
		files.key:  {Type: "PRIVATE KEY", Bytes: keyDER},
	} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
}

// A renewed certificate is served without a restart; one that was renewed by
// half is not.
func TestCertificateRenewal(t *testing.T) {
	files := selfSigned(t)
	cfg, err := tlsConfig{Cert: files.cert, Key: files.key}.load()
	if err != nil {
		t.Fatal(err)
	}
	serial := func() int64 {
		pair, err := cfg.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		return pair.Leaf.SerialNumber.Int64()
	}
	if got := serial(); got != 1 {
		t.Errorf("serial %d, want 1", got)
	}
	whole := pemFiles{files.cert + ".new", files.key + ".new"}
	writeSelfSigned(t, whole, 2, time.Now().Add(time.Second))
	if err := os.Rename(whole.cert, files.cert); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 1 {
		t.Errorf("with a new certificate and the old key: serial %d, want 1", got)
	}
	if err := os.Rename(whole.key, files.key); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 2 {
		t.Errorf("after renewal: serial %d, want 2", got)
	}
	if err := os.Remove(files.key); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 2 {
		t.Errorf("with the key gone: serial %d, want 2", got)
	}
}
