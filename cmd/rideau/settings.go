package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"rideau/archive"
	"rideau/pgrepl"
)

// settings are what a config comes to once its texts are parsed and the files
// that it names are read.
type settings struct {
	keep     archive.Keep
	access   *pgrepl.Access // nil: loopback is trusted
	tls      *tls.Config    // nil: no TLS
	log      *slog.Logger
	warnings []string // what is allowed but unwise
}

// resolve works out the settings, or says which one is wrong and where it
// stands. It reads files and changes nothing. The log goes to stderr.
func (cfg *config) resolve(stderr io.Writer) (settings, error) {
	var s settings
	var err error
	if strings.TrimSpace(cfg.Relay.Upstream) == "" {
		return s, cfg.invalid("relay.upstream", "Give it as relay: upstream: in the file, or with --upstream.",
			errors.New("no connection string of the server WAL comes from"))
	}
	if cfg.Relay.Dir == "" {
		return s, cfg.invalid("relay.dir", "Give it as relay: dir: in the file, or with --dir.",
			errors.New("no directory to keep WAL in"))
	}
	for i, addr := range cfg.Relay.Listen {
		if err := checkAddress(addr, true); err != nil {
			return s, cfg.invalid(fmt.Sprintf("relay.listen[%d]", i), "Give HOST:PORT, :PORT for every address of this machine, or the directory of a Unix socket, /DIR or /DIR:PORT.", err)
		}
	}
	if cfg.HTTP != "" && cfg.HTTP != "none" {
		if err := checkAddress(cfg.HTTP, false); err != nil {
			return s, cfg.invalid("http", "Give HOST:PORT, or none.", err)
		}
	}
	if s.keep, err = parseKeep(cfg.Relay.Keep); err != nil {
		return s, cfg.invalid("relay.keep", keepHint, err)
	}
	if s.access, err = cfg.access(); err != nil {
		return s, err
	}
	if s.tls, err = cfg.Relay.TLS.load(); err != nil {
		return s, cfg.invalid("relay.tls", "", err)
	}
	if s.log, err = newLog(stderr, cfg.Log.Format, cfg.Log.Level); err != nil {
		return s, cfg.invalid("log", "The format is text or json; the level is debug, info, warn or error.", err)
	}
	if cfg.file != nil && cfg.file.readableByAll && maskPasswords(cfg.Relay.Upstream) != cfg.Relay.Upstream {
		s.warnings = append(s.warnings, fmt.Sprintf("%s holds a password and every user of this machine can read it: chmod 600, or use a password file", cfg.file.name))
	}
	return s, nil
}

// checkAddress says what is wrong with the form of an address to listen at.
// Whether it can be had is known only when it is asked for.
func checkAddress(addr string, socket bool) error {
	var port string
	var err error
	if socket && strings.HasPrefix(addr, "/") {
		var ok bool
		if _, port, ok = strings.Cut(addr, ":"); !ok {
			return nil
		}
		_, err = strconv.ParseUint(port, 10, 16)
	} else {
		var form *net.AddrError
		if _, port, err = net.SplitHostPort(addr); errors.As(err, &form) {
			return fmt.Errorf("invalid address %q: %s", addr, form.Err)
		}
		_, err = net.LookupPort("tcp", port) // names of services too, as net.Listen
	}
	if err != nil {
		return fmt.Errorf("invalid address %q: %q is not a port", addr, port)
	}
	return nil
}

// access reads the rules and the users, one by one, to know which is wrong.
func (cfg *config) access() (*pgrepl.Access, error) {
	if len(cfg.Relay.HBA) == 0 && len(cfg.Relay.Users) == 0 {
		return nil, nil
	}
	if len(cfg.Relay.HBA) == 0 {
		return nil, cfg.invalid("relay.users", "Give rules in hba: or --hba FILE, such as: host replication all 10.0.0.0/8 scram-sha-256",
			errors.New("there are users but no access rule that would ask for their passwords"))
	}
	for i, line := range cfg.Relay.HBA {
		if _, err := pgrepl.ParseAccess(line, nil); err != nil {
			if inner := errors.Unwrap(err); inner != nil {
				err = inner // without the number of the line, always 1 here
			}
			return nil, cfg.invalid(fmt.Sprintf("relay.hba[%d]", i), "The syntax is that of pg_hba.conf; the methods are trust, reject, scram-sha-256 and cert.", err)
		}
	}
	for name, verifier := range cfg.Relay.Users {
		if _, err := pgrepl.ParseAccess("", map[string]string{name: verifier}); err != nil {
			return nil, cfg.invalid("relay.users", `Make a verifier with "rideau password".`, err)
		}
	}
	return pgrepl.ParseAccess(strings.Join(cfg.Relay.HBA, "\n"), cfg.Relay.Users)
}

// readHBAFile reads access rules from a file in the form of pg_hba.conf.
func readHBAFile(name string) ([]string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, &usageError{err: fmt.Errorf("could not read access rules: %w", err)}
	}
	lines := strings.Split(string(text), "\n")
	for i, line := range lines {
		if _, err := pgrepl.ParseAccess(line, nil); err != nil {
			if inner := errors.Unwrap(err); inner != nil {
				err = inner
			}
			return nil, &usageError{
				err:  fmt.Errorf("%s:%d: %w", name, i+1, err),
				hint: "The syntax is that of pg_hba.conf; the methods are trust, reject, scram-sha-256 and cert.",
			}
		}
	}
	return lines, nil
}

// readUsersFile reads lines of a name and a verifier, each in double quotes or
// without. PgBouncer's userlist.txt is one, if it holds verifiers.
func readUsersFile(name string) (map[string]string, error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return nil, &usageError{err: fmt.Errorf("could not read users: %w", err)}
	}
	users := map[string]string{}
	for i, line := range strings.Split(string(text), "\n") {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		user, rest, ok := cutWord(line)
		verifier, rest, ok2 := cutWord(rest)
		if !ok || !ok2 || rest != "" {
			return nil, &usageError{err: fmt.Errorf("%s:%d: a user is a name and a verifier", name, i+1)}
		}
		if _, err := pgrepl.ParseAccess("", map[string]string{user: verifier}); err != nil {
			return nil, &usageError{err: fmt.Errorf("%s:%d: %w", name, i+1, err), hint: `Make a verifier with "rideau password".`}
		}
		users[user] = verifier
	}
	return users, nil
}

// cutWord splits off the first word of a line; in double quotes a word may have
// blanks, and a quote if it is doubled.
func cutWord(line string) (word, rest string, ok bool) {
	if quoted, isQuoted := strings.CutPrefix(line, `"`); isQuoted {
		for {
			part, after, closed := strings.Cut(quoted, `"`)
			word += part
			if !closed {
				return "", "", false
			}
			if quoted, ok = strings.CutPrefix(after, `"`); !ok {
				return word, strings.TrimLeft(after, " \t"), true
			}
			word += `"`
		}
	}
	end := strings.IndexAny(line, " \t")
	if end < 0 {
		end = len(line)
	}
	return line[:end], strings.TrimLeft(line[end:], " \t"), end > 0
}

// load reads the certificates, or returns nil if there are none.
func (c tlsConfig) load() (*tls.Config, error) {
	if c == (tlsConfig{}) {
		return nil, nil
	}
	if c.Cert == "" || c.Key == "" {
		return nil, errors.New("TLS needs a certificate and its key")
	}
	pair := &keyPair{cert: c.Cert, key: c.Key}
	if _, err := pair.get(nil); err != nil {
		return nil, err
	}
	cfg := &tls.Config{GetCertificate: pair.get, MinVersion: tls.VersionTLS12}
	if c.ClientCA != "" {
		text, err := os.ReadFile(c.ClientCA)
		if err != nil {
			return nil, fmt.Errorf("could not read the authority for client certificates: %w", err)
		}
		cfg.ClientCAs = x509.NewCertPool()
		if !cfg.ClientCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("there is no certificate in %q", c.ClientCA)
		}
		// Asked of all, demanded by access rules (cert, clientcert), as
		// PostgreSQL does with ssl_ca_file.
		cfg.ClientAuth = tls.VerifyClientCertIfGiven
	}
	return cfg, nil
}

// A keyPair is a certificate and its key in files that are read again when
// they change, so that renewing a certificate needs no restart.
type keyPair struct {
	cert, key string

	mu   sync.Mutex
	read time.Time // when the newer of the two was changed
	last *tls.Certificate
}

func (p *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	changed, err := newest(p.cert, p.key)
	if err == nil && (p.last == nil || !changed.Equal(p.read)) {
		var pair tls.Certificate
		if pair, err = tls.LoadX509KeyPair(p.cert, p.key); err == nil {
			p.last, p.read = &pair, changed
		}
	}
	if p.last == nil {
		return nil, fmt.Errorf("could not read the certificate: %w", err)
	}
	// Half-renewed files do not fit each other. The old pair is good until the
	// new one is complete.
	return p.last, nil
}

// newest returns when the last of the files was changed.
func newest(names ...string) (time.Time, error) {
	var t time.Time
	for _, name := range names {
		info, err := os.Stat(filepath.Clean(name))
		if err != nil {
			return t, err
		}
		if info.ModTime().After(t) {
			t = info.ModTime()
		}
	}
	return t, nil
}
