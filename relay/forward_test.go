package relay_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"rideau/internal/pgtest"
	"rideau/relay"
)

// certificate makes a self-signed one for localhost.
func certificate(t *testing.T) (certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})
}

// Passwords get through a relay that speaks TLS to the primary, in each of the
// cases that doc/relay.md has.
func TestForwardTLS(t *testing.T) {
	t.Parallel()
	primary := pgtest.New(t, pgtest.Options{HBA: []string{"hostssl all secret 127.0.0.1/32 scram-sha-256"}})
	certPEM, keyPEM := certificate(t)
	st, err := os.Stat(primary.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string][]byte{"server.crt": certPEM, "server.key": keyPEM} {
		path := filepath.Join(primary.Dir, name)
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(path, int(st.Sys().(*syscall.Stat_t).Uid), -1); err != nil {
			t.Fatal(err)
		}
	}
	primary.Set(map[string]string{"ssl": "on"})
	primary.Start()
	primary.Exec("CREATE ROLE secret LOGIN PASSWORD 's3cret'")

	// Its own certificate, as a relay in front of a server would have.
	relayCert, relayKey := certificate(t)
	pair, err := tls.X509KeyPair(relayCert, relayKey)
	if err != nil {
		t.Fatal(err)
	}
	r := startRelay(t, relay.Config{
		Upstream: primary.Conninfo("sslmode=require"), ForwardSQL: true,
		TLS: &tls.Config{Certificates: []tls.Certificate{pair}},
	})
	r.waitComplete(1, primary.LSN())
	for _, tt := range []struct{ name, conninfo, want string }{
		{"client without TLS", "sslmode=disable", "works"},
		{"client with TLS, told that there is no channel to bind to", "sslmode=require channel_binding=disable", "works"},
		{"client with TLS that binds to the relay's channel", "sslmode=require", "channel binding"},
		{"a wrong password", "sslmode=disable password=guess", `password authentication failed for user "secret"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cmd := pgtest.Command(t, 15, "psql", "-wXAtc", "SELECT 'works'",
				fmt.Sprintf("host=127.0.0.1 port=%d user=secret dbname=postgres password=s3cret %s", r.port(), tt.conninfo))
			out, _ := cmd.CombinedOutput()
			if !strings.Contains(string(out), tt.want) {
				t.Errorf("got %s, want %q", out, tt.want)
			}
		})
	}
}
