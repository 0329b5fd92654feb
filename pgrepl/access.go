package pgrepl

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Access says who may connect: rules in the syntax of pg_hba.conf, of which
// the first that matches decides, and users with SCRAM verifiers.
//
// The nil Access trusts connections from this machine and refuses all others.
type Access struct {
	rules []rule
	users map[string]verifier
}

// ParseAccess reads rules, the lines of a pg_hba.conf, and users, which maps
// names to verifiers as pg_authid.rolpassword holds them (see [NewVerifier]).
//
//	local    DATABASE USER         METHOD [OPTIONS]
//	host     DATABASE USER ADDRESS METHOD [OPTIONS]
//	hostssl  DATABASE USER ADDRESS METHOD [OPTIONS]
//	hostnossl ...
//
// DATABASE is the keyword replication for physical replication; all, sameuser
// and names are for connections that are forwarded. ADDRESS is CIDR, an address
// and a mask, samehost or all. METHOD is trust, reject, scram-sha-256, or cert;
// the option clientcert=verify-ca or verify-full may be added to a hostssl rule.
//
// A rule with anything else is refused rather than understood differently from
// PostgreSQL: group names, host names, regular expressions, include files,
// user name maps, other methods.
func ParseAccess(rules string, users map[string]string) (*Access, error) {
	a := &Access{users: make(map[string]verifier)}
	for i, line := range strings.Split(rules, "\n") {
		fields, err := hbaFields(line)
		if err == nil && len(fields) > 0 {
			var r rule
			r, err = parseRule(fields)
			a.rules = append(a.rules, r)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d of access rules: %w", i+1, err)
		}
	}
	for name, text := range users {
		v, err := parseVerifier(text)
		if err != nil {
			return nil, fmt.Errorf("user %q: %w", name, err)
		}
		a.users[name] = v
	}
	return a, nil
}

// The methods of rules.
const (
	methodTrust  = "trust"
	methodReject = "reject"
	methodSCRAM  = "scram-sha-256"
	methodCert   = "cert"
)

// clientCert is how much of a client's certificate a rule asks for.
type clientCert int

const (
	certIgnored  clientCert = iota
	certVerified            // verify-ca: signed by a known authority
	certUser                // verify-full: and its CN is the user's name
)

// A rule is one line.
type rule struct {
	local      bool // of a Unix-domain socket; else of TCP
	tls, plain bool // of TCP: with and without TLS
	databases  []hbaToken
	users      []hbaToken
	addrs      hbaAddress
	method     string
	cert       clientCert
}

// A hbaToken is a word of a rule. A quoted word is never a keyword.
type hbaToken struct {
	text   string
	quoted bool
}

func (t hbaToken) is(keyword string) bool { return !t.quoted && t.text == keyword }

type hbaAddress struct {
	all, samehost bool
	prefix        netip.Prefix
}

// peer is what the rules are asked about.
type peer struct {
	kind           Kind
	user, database string
	tls            bool
	remote, local  netip.Addr // invalid: not TCP, a socket of this machine
}

// newPeer takes the addresses from conn. What is not TCP (a Unix-domain
// socket, a pipe within this process) has none, and is local.
func newPeer(conn net.Conn) peer {
	return peer{remote: ipOf(conn.RemoteAddr()), local: ipOf(conn.LocalAddr())}
}

func ipOf(addr net.Addr) netip.Addr {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok {
		return netip.Addr{}
	}
	return tcp.AddrPort().Addr().Unmap().WithZone("")
}

// host names the client as the server's messages do.
func (p peer) host() string {
	if !p.remote.IsValid() {
		return "[local]"
	}
	return p.remote.String()
}

// encryption is the word of 14 and later; 13 says "SSL on" and "SSL off".
func (p peer) encryption() string {
	if p.tls {
		return "SSL encryption"
	}
	return "no encryption"
}

// match finds the rule that decides about p: an implicit rejection, with its
// words, is an *Error.
func (a *Access) match(p peer) (rule, error) {
	if a == nil {
		if !p.remote.IsValid() || p.remote.IsLoopback() {
			return rule{method: methodTrust}, nil
		}
	} else {
		for _, r := range a.rules {
			if !r.matches(p) {
				continue
			}
			if r.method == methodReject {
				return r, p.refused("pg_hba.conf rejects connection for host", "pg_hba.conf rejects replication connection for host")
			}
			return r, nil
		}
	}
	return rule{}, p.refused("no pg_hba.conf entry for host", "no pg_hba.conf entry for replication connection from host")
}

// refused has the words of ClientAuthentication in auth.c, which name
// pg_hba.conf: whoever looks for them finds the right chapter.
func (p peer) refused(sql, physical string) *Error {
	e := &Error{Severity: "FATAL", Code: "28000"}
	if p.kind == Physical {
		e.Message = fmt.Sprintf("%s \"%s\", user \"%s\", %s", physical, p.host(), p.user, p.encryption())
	} else {
		e.Message = fmt.Sprintf("%s \"%s\", user \"%s\", database \"%s\", %s", sql, p.host(), p.user, p.database, p.encryption())
	}
	return e
}

// mayForward reports whether some rule could let a client with p's address
// reach the other server. A cancel request names no user and no database.
func (a *Access) mayForward(p peer) bool {
	if a == nil {
		_, err := a.match(p)
		return err == nil
	}
	return slices.ContainsFunc(a.rules, func(r rule) bool {
		return r.method != methodReject && r.matchesHost(p) &&
			slices.ContainsFunc(r.databases, func(t hbaToken) bool { return !t.is("replication") })
	})
}

func (r rule) matches(p peer) bool {
	return r.matchesHost(p) && r.matchesDatabase(p) && r.matchesUser(p)
}

func (r rule) matchesHost(p peer) bool {
	if !p.remote.IsValid() {
		return r.local
	}
	if r.local || p.tls && !r.tls || !p.tls && !r.plain {
		return false
	}
	switch {
	case r.addrs.all:
		return true
	case r.addrs.samehost:
		// PostgreSQL compares with every interface of the machine; the address
		// that the client reached us by is one of them, and loopback another.
		return p.remote == p.local || p.remote.IsLoopback()
	}
	return r.addrs.prefix.Contains(p.remote)
}

// matchesDatabase is check_db of hba.c: physical replication matches its own
// keyword only, and that keyword matches nothing else.
func (r rule) matchesDatabase(p peer) bool {
	return slices.ContainsFunc(r.databases, func(t hbaToken) bool {
		switch {
		case p.kind == Physical:
			return t.is("replication")
		case t.is("replication"):
			return false
		case t.is("all"):
			return true
		case t.is("sameuser"):
			return p.user == p.database
		}
		return t.text == p.database
	})
}

func (r rule) matchesUser(p peer) bool {
	return slices.ContainsFunc(r.users, func(t hbaToken) bool {
		return t.is("all") || t.text == p.user
	})
}

// hbaFields splits a line into fields, each a list of words. Fields are
// separated by blanks; words by commas, which blanks may follow. A # outside
// quotes begins a comment.
func hbaFields(line string) ([][]hbaToken, error) {
	var fields [][]hbaToken
	for i, comma := 0, false; ; {
		for i < len(line) && (strings.IndexByte(" \t\r\f\v", line[i]) >= 0 || comma && line[i] == ',') {
			i++
		}
		if i == len(line) || line[i] == '#' {
			return fields, nil
		}
		var t hbaToken
		var text strings.Builder
		quoted := false
		for ; i < len(line); i++ {
			c := line[i]
			if c == '"' {
				quoted = !quoted
				// Quoted as a whole or in part: PostgreSQL looks at the start.
				t.quoted = t.quoted || text.Len() == 0
				continue
			}
			if !quoted && strings.IndexByte(" \t\r\f\v,#", c) >= 0 {
				break
			}
			text.WriteByte(c)
		}
		if quoted {
			return nil, errors.New("unterminated quoted string")
		}
		t.text = text.String()
		if comma {
			fields[len(fields)-1] = append(fields[len(fields)-1], t)
		} else {
			fields = append(fields, []hbaToken{t})
		}
		comma = i < len(line) && line[i] == ','
	}
}

func parseRule(fields [][]hbaToken) (rule, error) {
	take := func(what string) ([]hbaToken, error) {
		if len(fields) == 0 {
			return nil, fmt.Errorf("end of line before %s specification", what)
		}
		f := fields[0]
		fields = fields[1:]
		return f, nil
	}
	one := func(what string) (hbaToken, error) {
		f, err := take(what)
		if err != nil {
			return hbaToken{}, err
		}
		if len(f) > 1 {
			return hbaToken{}, fmt.Errorf("multiple values specified for %s", what)
		}
		return f[0], nil
	}

	var r rule
	kind, err := one("connection type")
	if err != nil {
		return r, err
	}
	switch kind.text {
	case "local":
		r.local = true
	case "host":
		r.tls, r.plain = true, true
	case "hostssl":
		r.tls = true
	case "hostnossl":
		r.plain = true
	default:
		return r, fmt.Errorf("invalid connection type %q: want local, host, hostssl or hostnossl", kind.text)
	}
	if r.databases, err = take("database"); err != nil {
		return r, err
	}
	for _, t := range r.databases {
		if !t.quoted && (strings.HasPrefix(t.text, "+") || strings.HasPrefix(t.text, "/") || strings.HasPrefix(t.text, "@") ||
			t.text == "samerole" || t.text == "samegroup") {
			return r, fmt.Errorf("database %q is not supported: want names, all, sameuser or replication", t.text)
		}
	}
	if r.users, err = take("role"); err != nil {
		return r, err
	}
	for _, t := range r.users {
		if !t.quoted && (strings.HasPrefix(t.text, "+") || strings.HasPrefix(t.text, "/") || strings.HasPrefix(t.text, "@")) {
			return r, fmt.Errorf("user %q is not supported: want names or all", t.text)
		}
	}
	if !r.local {
		addr, err := one("IP address")
		if err != nil {
			return r, err
		}
		var mask string
		if _, err := netip.ParseAddr(addr.text); err == nil {
			t, err := one("netmask")
			if err != nil {
				return r, err
			}
			mask = t.text
		}
		if r.addrs, err = parseHBAAddress(addr, mask); err != nil {
			return r, err
		}
	}
	method, err := one("authentication method")
	if err != nil {
		return r, err
	}
	r.method = method.text
	switch method.text {
	case methodTrust, methodReject, methodSCRAM:
	case methodCert:
		if !r.tls || r.plain {
			return r, errors.New("cert authentication is only supported on hostssl connections")
		}
		r.cert = certUser
	default:
		return r, fmt.Errorf("authentication method %q is not supported: want trust, reject, scram-sha-256 or cert", method.text)
	}
	for len(fields) > 0 {
		opt, err := one("authentication option")
		if err != nil {
			return r, err
		}
		name, value, ok := strings.Cut(opt.text, "=")
		switch {
		case !ok:
			return r, fmt.Errorf("authentication option not in name=value format: %s", opt.text)
		case name != "clientcert":
			return r, fmt.Errorf("authentication option %q is not supported", name)
		case !r.tls || r.plain:
			return r, errors.New(`clientcert can only be configured for "hostssl" rows`)
		case value == "verify-full":
			r.cert = certUser
		case value == "verify-ca" && r.method == methodCert:
			return r, errors.New(`clientcert only accepts "verify-full" when using "cert" authentication`)
		case value == "verify-ca":
			r.cert = certVerified
		default:
			return r, fmt.Errorf("invalid value for clientcert: %q", value)
		}
	}
	return r, nil
}

func parseHBAAddress(t hbaToken, mask string) (hbaAddress, error) {
	switch {
	case t.is("all"):
		return hbaAddress{all: true}, nil
	case t.is("samehost"):
		return hbaAddress{samehost: true}, nil
	case t.is("samenet"):
		return hbaAddress{}, errors.New(`address "samenet" is not supported: want a network in CIDR form`)
	}
	if mask != "" {
		addr, bits, err := maskBits(t.text, mask)
		if err != nil {
			return hbaAddress{}, err
		}
		return hbaAddress{prefix: netip.PrefixFrom(addr, bits).Masked()}, nil
	}
	prefix, err := netip.ParsePrefix(t.text)
	if err != nil {
		return hbaAddress{}, fmt.Errorf("invalid address %q: want ADDRESS/BITS, an address and a mask, samehost or all; host names are not supported", t.text)
	}
	return hbaAddress{prefix: prefix.Masked()}, nil
}

func maskBits(addr, mask string) (netip.Addr, int, error) {
	a, err := netip.ParseAddr(addr)
	if err != nil {
		return a, 0, fmt.Errorf("invalid IP address %q", addr)
	}
	m, err := netip.ParseAddr(mask)
	if err != nil {
		return a, 0, fmt.Errorf("invalid IP mask %q", mask)
	}
	if a.Is4() != m.Is4() {
		return a, 0, errors.New("IP address and mask do not match")
	}
	ones, bits := net.IPMask(m.AsSlice()).Size()
	if bits == 0 {
		return a, 0, fmt.Errorf("invalid IP mask %q", mask)
	}
	return a, ones, nil
}
