package compress

import (
	"crypto/aes"
	"crypto/sha1"
	"crypto/subtle"
	"encoding/binary"
)

// What pgp_sym_encrypt_bytea is told. One round of SHA-1 makes the key, the old
// packet without a digest (MDC) saves another, and AES is of what is left after
// zlib. Zlib and not raw deflate, for its checksum of the raw bytes: the only one
// that is end to end, and the cheapest.
const (
	pgpKey     = "k"
	pgpOptions = "compress-algo=2, compress-level=1, cipher-algo=aes128, s2k-mode=0, disable-mdc=1"
)

// Packet tags and algorithms of RFC 4880, sections 4.3, 9.2 and 9.4. Contrib's
// pgp-encrypt.c writes new-format headers only.
const (
	tagSessionKey = 3  // symmetric-key encrypted session key: says how the key is made
	tagCompressed = 8  //
	tagEncrypted  = 9  // symmetrically encrypted data
	tagLiteral    = 11 //

	algoAES128 = 7
	algoSHA1   = 2
	algoZLIB   = 2
)

func pgpError(reason string) error { return &FormatError{Method: "pgcrypto", Reason: reason} }

// openPGP undoes pgp_sym_encrypt_bytea with pgpOptions, and nothing else:
//
//	session key | encrypted( 16 random, 2 repeated | compressed( zlib( literal( data ))))
func (d *decoder) openPGP(dst, src []byte, rawLen int) ([]byte, error) {
	how, src, err := packet(src, tagSessionKey)
	if err != nil {
		return dst, err
	}
	// Version 4, AES-128, simple S2K with SHA-1, no session key of its own.
	if len(how) != 4 || [4]byte(how) != [4]byte{4, algoAES128, 0, algoSHA1} {
		return dst, pgpError("other options were used")
	}
	body, rest, err := packet(src, tagEncrypted)
	if err != nil {
		return dst, err
	}
	if len(rest) != 0 {
		return dst, pgpError("bytes follow its end")
	}
	if body, err = decryptResync(body); err != nil {
		return dst, err
	}
	body, rest, err = packet(body, tagCompressed)
	switch {
	case err != nil:
		return dst, err
	case len(rest) != 0:
		return dst, pgpError("bytes follow the compressed packet")
	case len(body) == 0 || body[0] != algoZLIB:
		return dst, pgpError("it is not zlib's")
	}
	// The literal packet has its headers in between the data: a length of one
	// byte every 16 kB, and RFC 4880 allows none below 512.
	d.scratch, err = d.inflate.append(d.scratch[:0], body[1:], rawLen+rawLen/512+64)
	if err != nil {
		return dst, err
	}
	body, rest, err = packet(d.scratch, tagLiteral)
	switch {
	case err != nil:
		return dst, err
	case len(rest) != 0 || len(body) < 6 || body[0] != 'b' || body[1] != 0:
		return dst, pgpError("its literal packet is not what pgcrypto writes")
	case len(body)-6 > rawLen:
		return dst, tooMuch(rawLen)
	}
	return append(dst, body[6:]...), nil
}

// packet takes the packet that b begins with, which must have the tag. Its body
// may be in parts (RFC 4880, section 4.2.2.4), which are moved together within b.
func packet(b []byte, tag byte) (body, rest []byte, err error) {
	if len(b) == 0 || b[0] != 0xc0|tag {
		return nil, nil, pgpError("another packet is where one was expected")
	}
	first, in, out := -1, 1, 0
	for {
		n, size, partial := length(b[in:])
		if size == 0 || n > len(b)-in-size {
			return nil, nil, pgpError("it ends in the middle of a packet")
		}
		in += size
		if first < 0 {
			first, out = in, in
		}
		copy(b[out:], b[in:in+n])
		out, in = out+n, in+n
		if !partial {
			return b[first:out], b[in:], nil
		}
	}
}

// length reads a new-format length of size bytes; size is 0 if b ends in it.
func length(b []byte) (n, size int, partial bool) {
	switch {
	case len(b) == 0:
		return 0, 0, false
	case b[0] < 192:
		return int(b[0]), 1, false
	case b[0] < 224:
		if len(b) < 2 {
			return 0, 0, false
		}
		return int(b[0]-192)<<8 + int(b[1]) + 192, 2, false
	case b[0] < 255:
		return 1 << (b[0] & 31), 1, true
	case len(b) < 5:
		return 0, 0, false
	}
	return int(binary.BigEndian.Uint32(b[1:])), 5, false
}

// pgpBlock encrypts with the key that simple S2K makes of pgpKey.
var pgpBlock = func() func(dst, src []byte) {
	key := sha1.Sum([]byte(pgpKey))
	block, err := aes.NewCipher(key[:16])
	if err != nil {
		panic(err) // the key has 16 bytes
	}
	return block.Encrypt
}()

// decryptResync decrypts b in place and returns what is in it: OpenPGP's CFB
// (RFC 4880, section 13.9). After a block of random bytes and the repetition of
// its last two it begins anew, with the last block of what was encrypted.
func decryptResync(b []byte) ([]byte, error) {
	const bs = aes.BlockSize
	if len(b) < bs+2 {
		return nil, pgpError("it is too short")
	}
	var iv, next, stream [bs]byte
	pgpBlock(stream[:], iv[:])
	a, z := b[bs-2]^stream[bs-2], b[bs-1]^stream[bs-1]
	pgpBlock(stream[:], b[:bs])
	if b[bs]^stream[0] != a || b[bs+1]^stream[1] != z {
		return nil, pgpError("the key does not fit")
	}
	copy(iv[:], b[2:bs+2])
	b = b[bs+2:]
	for rest := b; len(rest) > 0; {
		pgpBlock(stream[:], iv[:])
		n := copy(next[:], rest)
		subtle.XORBytes(rest[:n], rest[:n], stream[:n])
		iv, rest = next, rest[n:]
	}
	return b, nil
}
