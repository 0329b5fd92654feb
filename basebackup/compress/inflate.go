package compress

import (
	"bytes"
	"compress/gzip"
	"compress/zlib"
	"fmt"
	"io"
)

// An inflater reads gzip and zlib, and keeps its readers between calls.
type inflater struct {
	src  bytes.Reader
	gzip *gzip.Reader
	zlib io.ReadCloser
}

// append inflates src, all of it and of at most max bytes, to the end of dst.
func (f *inflater) append(dst, src []byte, max int) ([]byte, error) {
	f.src.Reset(src)
	r, format, err := f.open(src)
	if err != nil {
		return dst, err
	}
	n := len(dst)
	dst = grow(dst, max)[:n+max]
	end := n
	for err == nil {
		// The end is seen, and the checksum verified, only by a read beyond it.
		var beyond [1]byte
		var got int
		if end < len(dst) {
			got, err = r.Read(dst[end:])
			end += got
		} else if got, err = r.Read(beyond[:]); got > 0 {
			return dst[:n], tooMuch(max)
		}
	}
	switch {
	case err != io.EOF: // io.ErrUnexpectedEOF too: it was cut off
		return dst[:n], &FormatError{Method: format, Reason: err.Error()}
	case f.src.Len() > 0:
		return dst[:n], &FormatError{Method: format, Reason: fmt.Sprintf("%d bytes follow its end", f.src.Len())}
	}
	return dst[:end], nil
}

// open tells formats by how they begin: RFC 1952 section 2.3.1, RFC 1950 section
// 2.2, RFC 8878 section 3.1.1, and LZ4's frame format.
func (f *inflater) open(src []byte) (r io.Reader, format string, err error) {
	switch {
	case bytes.HasPrefix(src, []byte{0x1f, 0x8b}):
		if f.gzip == nil {
			f.gzip = new(gzip.Reader)
		}
		r, format, err = f.gzip, "gzip", f.gzip.Reset(&f.src)
	case len(src) > 2 && src[0]&0x0f == 8 && (int(src[0])<<8|int(src[1]))%31 == 0:
		format = "zlib"
		if f.zlib == nil {
			f.zlib, err = zlib.NewReader(&f.src)
		} else {
			err = f.zlib.(zlib.Resetter).Reset(&f.src, nil)
		}
		r = f.zlib
	case bytes.HasPrefix(src, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return nil, "", &FormatError{Method: "zstd", Reason: "this program reads gzip and zlib"}
	case bytes.HasPrefix(src, []byte{0x04, 0x22, 0x4d, 0x18}):
		return nil, "", &FormatError{Method: "lz4", Reason: "this program reads gzip and zlib"}
	default:
		return nil, "", &FormatError{Method: "a function", Reason: "it is neither gzip nor zlib"}
	}
	if err != nil {
		return nil, "", &FormatError{Method: format, Reason: err.Error()}
	}
	return r, format, nil
}

// grow returns b with room for n more bytes.
func grow(b []byte, n int) []byte {
	if cap(b)-len(b) < n {
		b = append(make([]byte, 0, len(b)+n), b...)
	}
	return b[:len(b):cap(b)]
}
