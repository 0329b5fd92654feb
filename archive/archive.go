package archive

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"iter"
	"strings"
	"time"

	"rideau/wal"
)

// A Store keeps files for an [Archive]. It knows nothing of WAL.
//
// Names are those of files: no slash, no leading dot. All methods may be called
// at the same time. testStore in store_test.go is the test each Store passes.
type Store interface {
	// Open answers the content of a file and how long it is, or an error that
	// is fs.ErrNotExist if there is no such file; no other error is.
	Open(ctx context.Context, name string) (io.ReadCloser, int64, error)

	// Put makes content a file, replacing what has its name. When Put returns
	// nil the file is there to stay; until then, and after an error, nobody
	// sees anything but what was there before.
	Put(ctx context.Context, name string, content io.Reader) error

	// List answers the files whose names sort after the one given, in the
	// order of their bytes; all files if it is empty. The first error is the
	// last pair.
	List(ctx context.Context, after string) iter.Seq2[Object, error]

	// Remove removes a file for good. To remove what is not there is no error.
	Remove(ctx context.Context, name string) error
}

// An Object is a file in a [Store].
type Object struct {
	Name     string
	Size     int64
	Modified time.Time
}

// Suffixes of PostgreSQL's: XLogArchive's and pg_receivewal's.
const (
	partialSuffix = ".partial"
	historySuffix = ".history"
)

// A kind is what a file's name says that it is.
type kind int

const (
	other   kind = iota
	segment      // 24 hexadecimal digits
	partial      // a segment's name, then .partial
	history      // 8 hexadecimal digits, then .history
)

// kindOf tells files apart by their names alone. Which LSN a segment begins at
// depends on the size of segments, and so does whether its name can be.
func kindOf(name string) kind {
	switch {
	case isHex(name, 24):
		return segment
	case strings.HasSuffix(name, partialSuffix) && isHex(strings.TrimSuffix(name, partialSuffix), 24):
		return partial
	case strings.HasSuffix(name, historySuffix) && isHex(strings.TrimSuffix(name, historySuffix), 8):
		return history
	}
	return other
}

func isHex(s string, digits int) bool {
	return len(s) == digits && strings.Trim(s, "0123456789ABCDEF") == ""
}

// IsWAL reports whether name is one that PostgreSQL gives to a segment, to one
// that was not completed, or to a history file.
func IsWAL(name string) bool { return kindOf(name) != other }

// An Archive is WAL in a [Store]. It has no state but the Store's; methods may
// be called at the same time.
type Archive struct {
	store Store
}

// New answers the archive in store.
func New(store Store) *Archive { return &Archive{store: store} }

// A NameError says that a name cannot be one of a file in an archive.
type NameError struct {
	Name string
}

func (e *NameError) Error() string {
	return fmt.Sprintf("%q is not the name of a WAL segment or timeline history file", e.Name)
}

// A DamageError says that a file is there and is not what its name says:
// to ask again does not help, and to go on without it would be wrong.
type DamageError struct {
	Name   string
	Reason string
}

func (e *DamageError) Error() string {
	return fmt.Sprintf("%q is damaged: %s", e.Name, e.Reason)
}

// An ExistsError says that the archive holds another content under the name of
// a file that was to be put there.
type ExistsError struct {
	Name string
}

func (e *ExistsError) Error() string {
	return fmt.Sprintf("%q is in the archive already, with another content", e.Name)
}

// Open answers the content of a segment, a partial segment or a history file,
// and how long it is; as the Store gave it if that can be sought, so an
// [*os.File] of a [Dir]. A segment has been looked at: its size and its first
// page are what its name says, or the error is a [*DamageError].
//
// If there is no such file the error is fs.ErrNotExist; but [ErrEmpty] if there
// is no other either.
func (a *Archive) Open(ctx context.Context, name string) (io.ReadCloser, int64, error) {
	kind := kindOf(name)
	if kind == other {
		return nil, 0, &NameError{Name: name}
	}
	content, size, err := a.store.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, a.absent(ctx, err)
	}
	if err != nil || kind != segment {
		return content, size, err
	}
	page := make([]byte, longHeaderSize)
	n, err := io.ReadFull(content, page)
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = checkSegment(name, page[:n], size)
	}
	file, seekable := content.(io.Seeker)
	if err == nil && seekable {
		_, err = file.Seek(0, io.SeekStart)
	}
	if err != nil {
		content.Close()
		return nil, 0, err
	}
	if !seekable {
		content = &rewound{Reader: io.MultiReader(bytes.NewReader(page), content), Closer: content}
	}
	return content, size, nil
}

// ErrEmpty says that an archive holds no WAL at all. To a server in recovery an
// empty archive looks like one that has come to its end. To us it looks like a
// file system that is not mounted, or the wrong directory.
var ErrEmpty = errors.New("there is no WAL in the archive")

// A glancer is a Store that can tell sooner than by an ordered list whether it
// has a file with a name for which is says so. PostgreSQL asks for many files that are not
// there, and waits for the answer.
type glancer interface {
	glance(is func(name string) bool) (bool, error)
}

// absent makes sure that there is WAL where one file of it was not.
func (a *Archive) absent(ctx context.Context, err error) error {
	if g, ok := a.store.(glancer); ok {
		some, glanceErr := g.glance(IsWAL)
		switch {
		case glanceErr != nil:
			return glanceErr
		case some:
			return err
		}
		return ErrEmpty
	}
	for o, listErr := range a.store.List(ctx, "") {
		if listErr != nil {
			return listErr
		}
		if IsWAL(o.Name) {
			return err
		}
	}
	return ErrEmpty
}

// rewound is content of which the beginning was read already.
type rewound struct {
	io.Reader
	io.Closer
}

// Put adds a completed segment or a history file. It is on disk when Put
// returns nil. A file that is there already is never replaced: the same content
// is no error, another is an [*ExistsError].
func (a *Archive) Put(ctx context.Context, name string, content io.Reader) error {
	switch kindOf(name) {
	case segment:
		page := make([]byte, longHeaderSize)
		n, err := io.ReadFull(content, page)
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		h, err := parseHeader(page[:n])
		if err == nil {
			err = h.agrees(name)
		}
		if err != nil {
			return &DamageError{Name: name, Reason: err.Error()}
		}
		content = &wholeReader{r: io.MultiReader(bytes.NewReader(page), content), name: name, left: int64(h.size)}
	case history:
		text, err := io.ReadAll(content)
		if err != nil {
			return err
		}
		if _, err := parseHistory(name, text); err != nil {
			return &DamageError{Name: name, Reason: err.Error()}
		}
		content = bytes.NewReader(text)
	default:
		return &NameError{Name: name}
	}

	there, _, err := a.store.Open(ctx, name)
	if errors.Is(err, fs.ErrNotExist) {
		return a.store.Put(ctx, name, content)
	}
	if err != nil {
		return err
	}
	defer there.Close()
	same, err := sameContent(there, content)
	if err == nil && !same {
		err = &ExistsError{Name: name}
	}
	return err
}

// wholeReader fails where a segment ends too early or does not end, so that
// the Store it is put into keeps nothing.
type wholeReader struct {
	r    io.Reader
	name string
	left int64 // bytes until the segment must end
}

func (w *wholeReader) Read(p []byte) (int, error) {
	n, err := w.r.Read(p)
	w.left -= int64(n)
	switch {
	case w.left < 0:
		return n, &DamageError{Name: w.name, Reason: "it is longer than its first page says"}
	case w.left > 0 && err == io.EOF:
		return n, &DamageError{Name: w.name, Reason: fmt.Sprintf("%d bytes are missing at its end", w.left)}
	}
	return n, err
}

func sameContent(a, b io.Reader) (bool, error) {
	const chunk = 1 << 16
	x, y := make([]byte, chunk), make([]byte, chunk)
	for {
		n, errA := io.ReadFull(a, x)
		m, errB := io.ReadFull(b, y)
		for _, err := range []error{errA, errB} {
			if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
				return false, err
			}
		}
		if !bytes.Equal(x[:n], y[:m]) {
			return false, nil
		}
		if errA != nil { // both ended: the chunks are equally long
			return true, nil
		}
	}
}

// Remove removes files, in the order given, and stops at the first error. It is
// meant for what [PlanExpiry] answered: should it be cut short, the archive has
// lost some of its oldest files, and the next plan names the rest.
func (a *Archive) Remove(ctx context.Context, names []string) error {
	for _, name := range names {
		if kindOf(name) == other {
			return &NameError{Name: name}
		}
		if err := a.store.Remove(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func parseHistory(name string, text []byte) (*wal.History, error) {
	var tli wal.TLI
	if _, err := fmt.Sscanf(name, "%08X"+historySuffix, &tli); err != nil {
		return nil, &NameError{Name: name}
	}
	return wal.ParseHistory(tli, string(text))
}
