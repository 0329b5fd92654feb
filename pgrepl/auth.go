package pgrepl

import (
	"bytes"
	"crypto"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	_ "crypto/sha512" // for channel binding with certificates that are signed with it
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/xdg-go/scram"
	"github.com/xdg-go/stringprep"
)

// SCRAM is spoken by xdg-go/scram. What PostgreSQL does beyond it is here: the
// verifier's text form, the exchange with a user who does not exist, the
// mechanism's name checked against the client's first message, and the hash
// for channel binding, which the library takes from the peer's certificate
// where a server must take it from its own.

// The mechanisms, and the limits of scram-common.h and sasl.h.
const (
	mechSCRAM       = "SCRAM-SHA-256"
	mechSCRAMPlus   = "SCRAM-SHA-256-PLUS"
	scramIterations = 4096
	scramSaltLen    = 16
	maxSASLMessage  = 1024 // PG_MAX_SASL_MESSAGE_LENGTH
)

// A verifier is what a server keeps of a password.
type verifier = scram.StoredCredentials

// NewVerifier makes a verifier of a password, with a new salt, in the form of
// pg_authid.rolpassword. It can be given to CREATE ROLE ... PASSWORD as well as
// to [ParseAccess].
func NewVerifier(password string) (string, error) {
	if password == "" {
		return "", errors.New("the password is empty")
	}
	salt := make([]byte, scramSaltLen)
	rand.Read(salt)
	// As the server and libpq do: a password that cannot be normalised is
	// taken as it is.
	if prepared, err := stringprep.SASLprep.Prepare(password); err == nil {
		password = prepared
	}
	client, err := scram.SHA256.NewClientUnprepped("", password, "")
	if err != nil {
		return "", err
	}
	v, err := client.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt), Iters: scramIterations})
	if err != nil {
		return "", err
	}
	b64 := base64.StdEncoding.EncodeToString
	return fmt.Sprintf("%s$%d:%s$%s:%s", mechSCRAM, v.Iters, b64(salt), b64(v.StoredKey), b64(v.ServerKey)), nil
}

// parseVerifier reads SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY. Its
// errors do not repeat the text, which is a secret, or a password put in the
// wrong place.
func parseVerifier(text string) (verifier, error) {
	form := errors.New("not a SCRAM verifier: want SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY")
	parts := strings.Split(text, "$")
	if len(parts) != 3 || parts[0] != mechSCRAM {
		return verifier{}, form
	}
	iterText, saltText, ok1 := strings.Cut(parts[1], ":")
	storedText, serverText, ok2 := strings.Cut(parts[2], ":")
	iters, err := strconv.ParseInt(iterText, 10, 32)
	if !ok1 || !ok2 || err != nil || iters < 1 {
		return verifier{}, form
	}
	salt, err1 := base64.StdEncoding.DecodeString(saltText)
	stored, err2 := base64.StdEncoding.DecodeString(storedText)
	server, err3 := base64.StdEncoding.DecodeString(serverText)
	if errors.Join(err1, err2, err3) != nil || len(salt) == 0 || len(stored) != sha256.Size || len(server) != sha256.Size {
		return verifier{}, form
	}
	return verifier{
		KeyFactors: scram.KeyFactors{Salt: string(salt), Iters: int(iters)},
		StoredKey:  stored, ServerKey: server,
	}, nil
}

// mockNonce makes the salts of users who do not exist: random, but the same for
// the same name as long as this process lives, as those of real users are.
var mockNonce = sync.OnceValue(func() []byte {
	b := make([]byte, 32)
	rand.Read(b)
	return b
})

// mockVerifier is a verifier that no password matches: the zero keys are no
// one's hash.
func mockVerifier(user string) verifier {
	mac := hmac.New(sha256.New, mockNonce())
	mac.Write([]byte(user))
	return verifier{
		KeyFactors: scram.KeyFactors{Salt: string(mac.Sum(nil)[:scramSaltLen]), Iters: scramIterations},
		StoredKey:  make([]byte, sha256.Size), ServerKey: make([]byte, sha256.Size),
	}
}

// errAuthEOF is a client that left when asked for its password: libpq does
// when it has none, and asks its user.
var errAuthEOF = errors.New("client left during authentication")

// authenticate makes sure that the client is who it says, in the way that r
// wants. An *Error is for the client to hear.
func (s *Session) authenticate(r rule, users map[string]verifier, serverCert *x509.Certificate) error {
	var leaf *x509.Certificate
	if s.state != nil && len(s.state.VerifiedChains) > 0 {
		leaf = s.state.PeerCertificates[0]
	}
	if r.cert != certIgnored && leaf == nil {
		return &Error{Code: "28000", Message: "connection requires a valid client certificate"}
	}
	if r.method == methodSCRAM {
		if err := s.scram(users, serverCert); err != nil {
			return err
		}
	}
	if r.cert == certUser && leaf.Subject.CommonName != s.User {
		e := Errorf("28000", `certificate authentication failed for user "%s"`, s.User)
		if r.method == methodSCRAM {
			e = errPassword(s.User)
		}
		s.log.Info("client certificate is another user's", "user", s.User, "cn", leaf.Subject.CommonName)
		return e
	}
	return nil
}

// errPassword is what every failure to prove a password ends in, whatever it
// was: that the user does not exist is not for the client to learn.
func errPassword(user string) *Error {
	return Errorf("28P01", `password authentication failed for user "%s"`, user)
}

// scram is the whole exchange.
func (s *Session) scram(users map[string]verifier, serverCert *x509.Certificate) error {
	mechanisms := []string{mechSCRAM}
	var binding scram.ChannelBinding
	if serverCert != nil {
		if data := endPointHash(serverCert); data != nil {
			mechanisms = []string{mechSCRAMPlus, mechSCRAM}
			binding = scram.ChannelBinding{Type: scram.ChannelBindingTLSServerEndpoint, Data: data}
		}
	}
	s.wbuf = encode(s.wbuf, &pgproto3.AuthenticationSASL{AuthMechanisms: mechanisms})
	if err := s.send(); err != nil {
		return err
	}

	// First message: the mechanism, then its data with a length.
	body, err := s.readSASL()
	if err != nil {
		return err
	}
	i := bytes.IndexByte(body, 0)
	if i < 0 || len(body) < i+5 {
		return &Error{Code: "08P01", Message: "insufficient data left in message"}
	}
	mechanism, data := string(body[:i]), body[i+5:]
	if n := int32(binary.BigEndian.Uint32(body[i+1:])); n == -1 && len(data) == 0 {
		// The client waits for an empty challenge before it speaks.
		s.wbuf = encode(s.wbuf, &pgproto3.AuthenticationSASLContinue{})
		if err := s.send(); err != nil {
			return err
		}
		if data, err = s.readSASL(); err != nil {
			return err
		}
	} else if int(n) != len(data) {
		return &Error{Code: "08P01", Message: "invalid message format"}
	}
	if mechanism != mechSCRAM && !(mechanism == mechSCRAMPlus && binding.IsSupported()) {
		return &Error{Code: "08P01", Message: "client selected an invalid SASL authentication mechanism"}
	}
	if err := checkBindingFlag(data, mechanism, binding.IsSupported()); err != nil {
		return err
	}

	v, known := users[s.User]
	if !known {
		v = mockVerifier(s.User)
	}
	// The user name within SCRAM is ignored, as by the server: the startup
	// packet has said it.
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) { return v, nil })
	if err != nil {
		return err
	}
	conv := server.NewConversation()
	if binding.IsSupported() {
		conv = server.NewConversationWithChannelBinding(binding)
	}
	challenge, err := conv.Step(string(data))
	if err != nil {
		return malformed(err)
	}
	s.wbuf = encode(s.wbuf, &pgproto3.AuthenticationSASLContinue{Data: []byte(challenge)})
	if err := s.send(); err != nil {
		return err
	}
	if data, err = s.readSASL(); err != nil {
		return err
	}
	final, err := conv.Step(string(data))
	switch {
	case err != nil && final == scram.ErrChannelBindingsDontMatch && mechanism == mechSCRAMPlus:
		return &Error{Code: "08P01", Message: "SCRAM channel binding check failed"}
	case err != nil && final == "":
		return malformed(err)
	case err != nil || !conv.Valid() || !known:
		return errPassword(s.User)
	}
	s.wbuf = encode(s.wbuf, &pgproto3.AuthenticationSASLFinal{Data: []byte(final)})
	return nil // goes out with AuthenticationOk
}

func malformed(err error) *Error {
	return &Error{Code: "08P01", Message: "malformed SCRAM message", Detail: upperFirst(err.Error()) + "."}
}

func upperFirst(s string) string { return strings.ToUpper(s[:1]) + s[1:] }

// checkBindingFlag compares the mechanism with the first letter of the
// client's first message, with the words of auth-scram.c. The library does not
// know which mechanism was selected, so to it a client that selects PLUS and
// binds nothing is in order.
func checkBindingFlag(data []byte, mechanism string, offered bool) error {
	var flag byte
	if len(data) > 0 {
		flag = data[0]
	}
	e := &Error{Code: "08P01", Message: "malformed SCRAM message"}
	switch {
	case flag == 0:
		e.Detail = "The message is empty."
	case (flag == 'n' || flag == 'y') && mechanism == mechSCRAMPlus:
		e.Detail = "The client selected SCRAM-SHA-256-PLUS, but the SCRAM message does not include channel binding data."
	case flag == 'y' && offered:
		e.Code, e.Message = "28000", "SCRAM channel binding negotiation error"
		e.Detail = "The client supports SCRAM channel binding but thinks the server does not.  However, this server does support channel binding."
	case flag == 'p' && mechanism == mechSCRAM:
		e.Detail = "The client selected SCRAM-SHA-256 without channel binding, but the SCRAM message includes channel binding data."
	default:
		return nil
	}
	return e
}

// readSASL reads one 'p' message.
func (s *Session) readSASL() ([]byte, error) {
	typ, n, err := s.readHeader()
	if err != nil {
		if isEOF(err) {
			return nil, errAuthEOF
		}
		return nil, err
	}
	if typ != 'p' {
		return nil, Errorf("08P01", "expected SASL response, got message type %d", typ)
	}
	return s.readBody(n, maxSASLMessage)
}

// endPointHash is tls-server-end-point of RFC 5929: the hash of the server's
// certificate by the hash that signed it, but at least SHA-256. Nil, and so no
// channel binding, for signatures with no such hash (Ed25519, which libpq
// cannot bind to either).
func endPointHash(cert *x509.Certificate) []byte {
	var hash crypto.Hash
	switch cert.SignatureAlgorithm {
	case x509.MD5WithRSA, x509.SHA1WithRSA, x509.DSAWithSHA1, x509.ECDSAWithSHA1,
		x509.SHA256WithRSA, x509.SHA256WithRSAPSS, x509.ECDSAWithSHA256, x509.DSAWithSHA256:
		hash = crypto.SHA256
	case x509.SHA384WithRSA, x509.SHA384WithRSAPSS, x509.ECDSAWithSHA384:
		hash = crypto.SHA384
	case x509.SHA512WithRSA, x509.SHA512WithRSAPSS, x509.ECDSAWithSHA512:
		hash = crypto.SHA512
	default:
		return nil
	}
	h := hash.New()
	h.Write(cert.Raw)
	return h.Sum(nil)
}

// recordCertificate makes config note in *sent which certificate the client is
// shown: channel binding is over that one, and crypto/tls does not tell.
func recordCertificate(config *tls.Config, sent **tls.Certificate) *tls.Config {
	config = config.Clone()
	if inner := config.GetConfigForClient; inner != nil {
		config.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			c, err := inner(hello)
			if c == nil || err != nil {
				return nil, err
			}
			return serverTLS(c, sent), nil
		}
	}
	given, certs := config.GetCertificate, config.Certificates
	config.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if given != nil {
			if c, err := given(hello); c != nil || err != nil {
				*sent = c
				return c, err
			}
		}
		for i := range certs {
			if hello.SupportsCertificate(&certs[i]) == nil {
				*sent = &certs[i]
				return &certs[i], nil
			}
		}
		if len(certs) == 0 {
			return nil, errors.New("no certificate is configured")
		}
		*sent = &certs[0]
		return &certs[0], nil
	}
	// crypto/tls prefers a single certificate to asking GetCertificate.
	config.Certificates = nil
	return config
}

// serverTLS is config as PostgreSQL's protocol wants it.
func serverTLS(config *tls.Config, sent **tls.Certificate) *tls.Config {
	config = recordCertificate(config, sent)
	config.NextProtos = []string{alpnProtocol}
	return config
}
