package registry

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"aead.dev/minisign"
)

// A signed text is one or more signatures of minisign's, four lines each, and
// behind them what they sign, to the last byte:
//
//	untrusted comment: signature from key 8A3D…
//	RUQ…
//	trusted comment: timestamp:1795392000	hashed
//	…
//	{"type":"timestamp", …}
//
// Signature and content are one file, so that no reader can catch one without
// the other; and what is signed is bytes, so that no two programs can disagree
// about how to write a JSON value down.

// maxSignatures is how many signatures a text may have.
const maxSignatures = 32

const untrusted = "untrusted comment: "

var errNotSigned = errors.New("it does not begin with a signature")

// splitSigned takes a signed text apart. The signatures are not verified, nor
// is their base64 decoded.
func splitSigned(text []byte) (signatures [][]byte, payload []byte, err error) {
	for bytes.HasPrefix(text, []byte(untrusted)) {
		if len(signatures) == maxSignatures {
			return nil, nil, fmt.Errorf("it has more than %d signatures", maxSignatures)
		}
		end := 0
		for range 4 {
			n := bytes.IndexByte(text[end:], '\n')
			if n < 0 {
				return nil, nil, errors.New("a signature is cut off")
			}
			end += n + 1
		}
		signatures = append(signatures, text[:end:end])
		text = text[end:]
	}
	if len(signatures) == 0 {
		return nil, nil, errNotSigned
	}
	if len(text) == 0 || text[0] != '{' {
		return nil, nil, errors.New("no JSON object follows the signatures")
	}
	return signatures, text, nil
}

// splitStatements takes apart a sequence of signed texts of one line each.
func splitStatements(text []byte) ([]signedText, error) {
	var all []signedText
	for len(text) > 0 {
		signatures, rest, err := splitSigned(text)
		if err != nil {
			return nil, fmt.Errorf("entry %d: %w", len(all)+1, err)
		}
		n := bytes.IndexByte(rest, '\n') + 1
		if n == 0 {
			return nil, fmt.Errorf("entry %d is cut off", len(all)+1)
		}
		whole := text[:len(text)-len(rest)+n]
		all = append(all, signedText{whole, signatures, rest[:n:n]})
		text = rest[n:]
	}
	return all, nil
}

type signedText struct {
	whole      []byte
	signatures [][]byte
	payload    []byte
}

// signers returns which of keys signed payload: each key once, whatever id it
// goes by, and however often it signed.
func signers(signatures [][]byte, payload []byte, keys []PublicKey) []PublicKey {
	var found []PublicKey
next:
	for _, key := range keys {
		for _, f := range found {
			if sameKey(f, key) {
				continue next
			}
		}
		for _, s := range signatures {
			if minisign.Verify(key, payload, s) {
				found = append(found, key)
				break
			}
		}
	}
	return found
}

// claimed returns the ids of the keys that signatures say they are from: for
// messages only.
func claimed(signatures [][]byte) string {
	var ids []string
	for _, text := range signatures {
		var s minisign.Signature
		if err := s.UnmarshalText(text); err == nil {
			ids = append(ids, fmt.Sprintf("%016X", s.KeyID))
		}
	}
	if len(ids) == 0 {
		return "no key"
	}
	return strings.Join(ids, ", ")
}

// sign returns text, signed or not yet, with key's signature added.
func sign(text []byte, key SecretKey, now time.Time) ([]byte, error) {
	payload := text
	var before []byte
	if bytes.HasPrefix(text, []byte(untrusted)) {
		signatures, rest, err := splitSigned(text)
		if err != nil {
			return nil, err
		}
		if len(signers(signatures, rest, []PublicKey{public(key)})) > 0 {
			return text, nil
		}
		payload, before = rest, text[:len(text)-len(rest)]
	}
	// minisign's signatures are of the BLAKE2b hash since its version 0.8; the
	// other kind is on its way out.
	r := minisign.NewReader(bytes.NewReader(payload))
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	signature := r.SignWithComments(key, fmt.Sprintf("timestamp:%d\thashed", now.Unix()), "signature from key "+KeyID(public(key)))
	var out bytes.Buffer
	out.Write(before)
	out.Write(bytes.TrimRight(signature, "\n"))
	out.WriteByte('\n')
	out.Write(payload)
	return out.Bytes(), nil
}

// Sign adds key's signature to a document: a root drafted with
// [Writer.DraftRoot] or a release described with [Describe], on the machine
// where the key is. It refuses anything else: a key must not be made to sign
// what its holder did not read.
func Sign(document []byte, key SecretKey) ([]byte, error) {
	payload := document
	if bytes.HasPrefix(document, []byte(untrusted)) {
		_, rest, err := splitSigned(document)
		if err != nil {
			return nil, fmt.Errorf("could not sign: %w", err)
		}
		payload = rest
	}
	var err error
	switch kind := typeOf(payload); kind {
	case typeRoot:
		_, err = parseRoot(payload)
	case typeRelease:
		_, err = parseRelease(payload)
	default:
		err = fmt.Errorf("it is of type %q, and not a root or a release", kind)
	}
	if err != nil {
		return nil, fmt.Errorf("could not sign: %w", err)
	}
	return sign(document, key, time.Now())
}
