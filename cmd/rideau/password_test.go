package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"testing"
)

// The conversation of RFC 7677, section 3: with the verifier's server key we
// must sign it as the RFC's server did, and find the RFC's client proof good
// with the stored key.
func TestScramVerifierRFC7677(t *testing.T) {
	decode := func(s string) []byte {
		b, err := base64.StdEncoding.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	sign := func(key []byte, text string) []byte {
		h := hmac.New(sha256.New, key)
		h.Write([]byte(text))
		return h.Sum(nil)
	}
	verifier, err := scramVerifier("pencil", decode("W22ZaJ0SNY7soEsUEjb6gQ=="), 4096)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.FieldsFunc(verifier, func(r rune) bool { return r == '$' || r == ':' })
	if len(parts) != 5 || parts[0] != "SCRAM-SHA-256" || parts[1] != "4096" || parts[2] != "W22ZaJ0SNY7soEsUEjb6gQ==" {
		t.Fatalf("verifier %q is not of the form SCRAM-SHA-256$ITERATIONS:SALT$STOREDKEY:SERVERKEY", verifier)
	}
	const conversation = "n=user,r=rOprNGfwEbeRWgbNEkqO," +
		"r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096," +
		"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0"
	stored, server := decode(parts[3]), decode(parts[4])
	if got := base64.StdEncoding.EncodeToString(sign(server, conversation)); got != "6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=" {
		t.Errorf("server signature is %s, not the RFC's", got)
	}
	proof := decode("dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=")
	clientKey := sign(stored, conversation)
	for i := range clientKey {
		clientKey[i] ^= proof[i]
	}
	if sum := sha256.Sum256(clientKey); string(sum[:]) != string(stored) {
		t.Error("the RFC's client proof does not match the stored key")
	}
}

func TestScramVerifierNormalizes(t *testing.T) {
	salt := []byte("0123456789abcdef")
	of := func(password string) string {
		v, err := scramVerifier(password, salt, 4096)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	tests := []struct {
		name, a, b string
		same       bool
	}{
		{"a no-break space is a space", "two words", "two\u00a0words", true},
		{"a soft hyphen is nothing", "password", "pass\u00adword", true},
		{"case matters", "password", "Password", false},
		{"bytes that are not UTF-8 are taken as they are", "\xff\xfe", "\xff\xff", false},
		{"so are forbidden characters", "bell\x07", "bell", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := of(tt.a) == of(tt.b); got != tt.same {
				t.Errorf("verifiers of %q and %q are the same: %v, want %v", tt.a, tt.b, got, tt.same)
			}
		})
	}
}
