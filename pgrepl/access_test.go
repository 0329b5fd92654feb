package pgrepl

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"

	"github.com/xdg-go/scram"
)

// One list, as a DBA would write it, and who gets what from it.
const exampleRules = `
# TYPE  DATABASE     USER              ADDRESS          METHOD
host    replication  mallory           all              reject
hostssl replication  cert_standby      10.0.0.0/8       cert
host    replication  standby1,standby2 10.0.0.0/8       scram-sha-256
host    replication  "all"             10.1.0.0 255.255.0.0  trust   # a user of that name
hostnossl replication plain            ::1/128          trust
host    all          all               192.168.0.0/16   trust
host    sameuser     all               172.16.0.1/32    trust
host    "replication", shop  app       203.0.113.0/24   trust
host    replication  here              samehost         trust
local   replication  all                                trust
`

func TestAccessRules(t *testing.T) {
	access, err := ParseAccess(exampleRules, nil)
	if err != nil {
		t.Fatal(err)
	}
	const (
		tls     = true
		refused = "" // no rule
	)
	tests := []struct {
		name           string
		kind           Kind
		user, database string
		from           string // empty: a local socket
		tls            bool
		want           string // method
	}{
		{"the first match decides", Physical, "mallory", "", "10.0.0.1", false, methodReject},
		{"a user of a list", Physical, "standby2", "", "10.0.0.1", false, methodSCRAM},
		{"another user", Physical, "standby3", "", "10.0.0.1", false, refused},
		{"another network", Physical, "standby2", "", "11.0.0.1", false, refused},
		{"an IPv4 address within IPv6", Physical, "standby2", "", "::ffff:10.0.0.1", false, methodSCRAM},
		{"hostssl with TLS", Physical, "cert_standby", "", "10.0.0.1", tls, methodCert},
		{"hostssl without", Physical, "cert_standby", "", "10.0.0.1", false, refused},
		{"hostnossl without TLS", Physical, "plain", "", "::1", false, methodTrust},
		{"hostnossl with", Physical, "plain", "", "::1", tls, refused},
		{"a quoted keyword is a name", Physical, "all", "", "10.1.2.3", false, methodTrust},
		{"and nothing else", Physical, "other", "", "10.1.2.3", false, refused},
		{"all databases are not replication", Physical, "x", "", "192.168.0.1", false, refused},
		{"all databases, SQL", SQL, "x", "shop", "192.168.0.1", false, methodTrust},
		{"all databases, logical", Logical, "x", "shop", "192.168.0.1", false, methodTrust},
		{"replication is not SQL", SQL, "standby1", "replication", "10.0.0.1", false, refused},
		{"sameuser", SQL, "x", "x", "172.16.0.1", false, methodTrust},
		{"sameuser, of another", SQL, "x", "y", "172.16.0.1", false, refused},
		{"a database named replication", SQL, "app", "replication", "203.0.113.9", false, methodTrust},
		{"the second of a list after a blank", SQL, "app", "shop", "203.0.113.9", false, methodTrust},
		{"a quoted replication is not physical", Physical, "app", "", "203.0.113.9", false, refused},
		{"samehost", Physical, "here", "", "198.51.100.1", false, methodTrust},
		{"not samehost", Physical, "here", "", "198.51.100.2", false, refused},
		{"a local socket", Physical, "anybody", "", "", false, methodTrust},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := peer{kind: tt.kind, user: tt.user, database: tt.database, tls: tt.tls}
			if tt.from != "" {
				p.remote = netip.MustParseAddr(tt.from).Unmap()
				p.local = netip.MustParseAddr("198.51.100.1")
			}
			r, err := access.match(p)
			if r.method != tt.want {
				t.Errorf("method %q, want %q", r.method, tt.want)
			}
			if wantErr := tt.want == refused || tt.want == methodReject; (err != nil) != wantErr {
				t.Errorf("match: %v", err)
			}
		})
	}
}

// Without rules this machine is trusted and nobody else.
func TestNoAccessRules(t *testing.T) {
	var access *Access
	for from, want := range map[string]bool{"127.0.0.1": true, "::1": true, "127.8.8.8": true, "10.0.0.1": false, "::2": false} {
		_, err := access.match(peer{user: "x", remote: netip.MustParseAddr(from)})
		if (err == nil) != want {
			t.Errorf("from %s: %v", from, err)
		}
	}
	if _, err := access.match(peer{user: "x"}); err != nil {
		t.Errorf("from a local socket: %v", err)
	}
	empty, err := ParseAccess("", nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := empty.match(peer{user: "x"}); err == nil {
		t.Error("an empty list let somebody in")
	}
}

// The words of auth.c in 14 and later.
func TestAccessRefusals(t *testing.T) {
	access, err := ParseAccess("host all,replication mallory all reject", nil)
	if err != nil {
		t.Fatal(err)
	}
	from := netip.MustParseAddr("203.0.113.7")
	tests := []struct {
		peer peer
		want string
	}{
		{peer{user: "standby", remote: from},
			`no pg_hba.conf entry for replication connection from host "203.0.113.7", user "standby", no encryption (SQLSTATE 28000)`},
		{peer{user: "standby", remote: from, tls: true},
			`no pg_hba.conf entry for replication connection from host "203.0.113.7", user "standby", SSL encryption (SQLSTATE 28000)`},
		{peer{user: "standby"},
			`no pg_hba.conf entry for replication connection from host "[local]", user "standby", no encryption (SQLSTATE 28000)`},
		{peer{kind: SQL, user: "app", database: "shop", remote: from},
			`no pg_hba.conf entry for host "203.0.113.7", user "app", database "shop", no encryption (SQLSTATE 28000)`},
		{peer{user: "mallory", remote: from},
			`pg_hba.conf rejects replication connection for host "203.0.113.7", user "mallory", no encryption (SQLSTATE 28000)`},
		{peer{kind: Logical, user: "mallory", database: "shop", remote: from},
			`pg_hba.conf rejects connection for host "203.0.113.7", user "mallory", database "shop", no encryption (SQLSTATE 28000)`},
	}
	for _, tt := range tests {
		if _, err := access.match(tt.peer); err == nil || err.Error() != tt.want {
			t.Errorf("got  %v\nwant %s", err, tt.want)
		}
	}
}

// A cancel request names nobody; only the address can be asked.
func TestMayForward(t *testing.T) {
	access, err := ParseAccess("host replication all all trust\nhost all mallory all reject\nhost shop app 10.0.0.0/8 scram-sha-256", nil)
	if err != nil {
		t.Fatal(err)
	}
	for from, want := range map[string]bool{"10.0.0.1": true, "11.0.0.1": false} {
		if got := access.mayForward(peer{kind: Cancel, remote: netip.MustParseAddr(from)}); got != want {
			t.Errorf("from %s: %v, want %v", from, got, want)
		}
	}
}

func TestParseAccessErrors(t *testing.T) {
	tests := []struct{ rules, want string }{
		{"host replication all 10.0.0.0/8 md5", `line 1 of access rules: authentication method "md5" is not supported: want trust, reject, scram-sha-256 or cert`},
		{"\n# x\nhostgssenc replication all all trust", `line 3 of access rules: invalid connection type "hostgssenc": want local, host, hostssl or hostnossl`},
		{"host", "line 1 of access rules: end of line before database specification"},
		{"host replication", "line 1 of access rules: end of line before role specification"},
		{"host replication all", "line 1 of access rules: end of line before IP address specification"},
		{"host replication all 10.0.0.1", "line 1 of access rules: end of line before netmask specification"},
		{"host replication all 10.0.0.1 trust", `line 1 of access rules: invalid IP mask "trust"`},
		{"host replication all 10.0.0.1 255.0.255.0 trust", `line 1 of access rules: invalid IP mask "255.0.255.0"`},
		{"host replication all 10.0.0.1 ffff:: trust", "line 1 of access rules: IP address and mask do not match"},
		{"host replication all db.example.com trust", `line 1 of access rules: invalid address "db.example.com": want ADDRESS/BITS, an address and a mask, samehost or all; host names are not supported`},
		{"host replication all all", "line 1 of access rules: end of line before authentication method specification"},
		{"local replication all", "line 1 of access rules: end of line before authentication method specification"},
		{"host replication +admins all trust", `line 1 of access rules: user "+admins" is not supported: want names or all`},
		{"host samerole all all trust", `line 1 of access rules: database "samerole" is not supported: want names, all, sameuser or replication`},
		{"host replication all all cert", "line 1 of access rules: cert authentication is only supported on hostssl connections"},
		{"host replication all all trust clientcert=verify-ca", `line 1 of access rules: clientcert can only be configured for "hostssl" rows`},
		{"hostssl replication all all cert clientcert=verify-ca", `line 1 of access rules: clientcert only accepts "verify-full" when using "cert" authentication`},
		{"hostssl replication all all cert map=m", `line 1 of access rules: authentication option "map" is not supported`},
		{"hostssl replication all all cert nonsense", "line 1 of access rules: authentication option not in name=value format: nonsense"},
		{`host replication "all`, "line 1 of access rules: unterminated quoted string"},
		{"include other.conf", `line 1 of access rules: invalid connection type "include": want local, host, hostssl or hostnossl`},
	}
	for _, tt := range tests {
		if _, err := ParseAccess(tt.rules, nil); err == nil || err.Error() != tt.want {
			t.Errorf("ParseAccess(%q):\n%v\nwant\n%s", tt.rules, err, tt.want)
		}
	}
	for _, text := range []string{"", "md5d41d8cd98f00b204e9800998ecf8427e", "secret", "SCRAM-SHA-256$4096:c2FsdA==$eA==:eA=="} {
		_, err := ParseAccess("", map[string]string{"standby": text})
		if err == nil || text != "" && strings.Contains(err.Error(), text) {
			t.Errorf("verifier %q: %v, want an error that does not repeat it", text, err)
		}
	}
}

// The salt and the password are those of the example of RFC 7677. What we make
// of a password can be read again.
func TestVerifier(t *testing.T) {
	const stored = "SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$WG5d8oPm3OtcPnkdi4Uo7BkeZkBFzpcXkuLmtbsT4qY=:wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU="
	v, err := parseVerifier(stored)
	if err != nil {
		t.Fatal(err)
	}
	client, err := scram.SHA256.NewClientUnprepped("", "pencil", "")
	if err != nil {
		t.Fatal(err)
	}
	want, err := client.GetStoredCredentialsWithError(v.KeyFactors)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(v.StoredKey, want.StoredKey) || !bytes.Equal(v.ServerKey, want.ServerKey) {
		t.Error("the keys are not those of the password")
	}

	a, err := NewVerifier("pencil")
	if err != nil {
		t.Fatal(err)
	}
	b, err := NewVerifier("pencil")
	if err != nil {
		t.Fatal(err)
	}
	if a == b {
		t.Error("two verifiers of a password have one salt")
	}
	if _, err := parseVerifier(a); err != nil {
		t.Error(err)
	}
	if _, err := NewVerifier(""); err == nil {
		t.Error("an empty password has a verifier")
	}
}

func FuzzParseAccess(f *testing.F) {
	f.Add(exampleRules)
	f.Add(`host "a""b",c , d +e 1.2.3.4 255.255.255.255 trust x=y`)
	f.Fuzz(func(t *testing.T, rules string) {
		access, err := ParseAccess(rules, nil)
		if err == nil {
			access.match(peer{user: "x", database: "y", remote: netip.MustParseAddr("10.0.0.1")})
		}
	})
}
