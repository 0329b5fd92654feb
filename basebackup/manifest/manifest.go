package manifest

import (
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"strings"
	"time"

	"rideau/wal"
)

// Name is the manifest's file in a backup's directory.
const Name = "backup_manifest"

// The algorithms that PostgreSQL knows (checksum_helper.c), as a manifest names
// them. It leaves None out.
const (
	None   = "NONE"
	CRC32C = "CRC32C"
	SHA224 = "SHA224"
	SHA256 = "SHA256"
	SHA384 = "SHA384"
	SHA512 = "SHA512"
)

// A File is one file of a backup.
type File struct {
	Path      string // relative to the data directory, with '/'; any bytes but NUL
	Size      int64
	ModTime   time.Time // to the second; zero: not said
	Algorithm string    // one of those above; "" is None to a Writer, and never parsed
	Checksum  []byte    // of the length that Algorithm has, see CRCBytes; nil with None
}

// A Range is WAL that the backup needs to become consistent. Where the timeline
// switched during the backup there are several, the newest first.
type Range struct {
	TLI        wal.TLI
	Start, End wal.LSN
}

// A Manifest is what backup_manifest says.
type Manifest struct {
	Version  int    // 1 or 2
	SystemID uint64 // 0 in version 1, which does not say
	Files    []File // in the manifest's order
	WAL      []Range
}

// VersionFor is the version of the manifests that servers of a major version
// write, 13 being the first that does.
func VersionFor(major int) int {
	if major >= 17 {
		return 2
	}
	return 1
}

// algorithms has the length of each algorithm's checksums, and its hash.
var algorithms = map[string]struct {
	size int
	hash func() hash.Hash
}{
	None:   {0, nil},
	CRC32C: {crc32.Size, func() hash.Hash { return crc{crc32.New(castagnoli)} }},
	SHA224: {sha256.Size224, sha256.New224},
	SHA256: {sha256.Size, sha256.New},
	SHA384: {sha512.Size384, sha512.New384},
	SHA512: {sha512.Size, sha512.New},
}

// check reports why f cannot be in a manifest.
func (f *File) check() error {
	algorithm, ok := algorithms[f.Algorithm]
	switch {
	case !validPath(f.Path):
		return fmt.Errorf("path %q does not name a file below the data directory", f.Path)
	case f.Size < 0:
		return fmt.Errorf("%q has size %d", f.Path, f.Size)
	case !ok:
		return fmt.Errorf("%q has the unknown checksum algorithm %q", f.Path, f.Algorithm)
	case len(f.Checksum) != algorithm.size:
		return fmt.Errorf("%q has a checksum of %d bytes, and those of %s have %d", f.Path, len(f.Checksum), f.Algorithm, algorithm.size)
	}
	return nil
}

// validPath is fs.ValidPath without its demand for UTF-8, and without ".".
func validPath(path string) bool {
	for elem := range strings.SplitSeq(path, "/") {
		if elem == "" || elem == "." || elem == ".." {
			return false
		}
	}
	return !strings.Contains(path, "\x00")
}

// check reports why r cannot be in a manifest.
func (r Range) check() error {
	if r.TLI == 0 || r.Start == wal.InvalidLSN || r.End < r.Start {
		return fmt.Errorf("WAL range from %s to %s on timeline %d is none", r.Start, r.End, r.TLI)
	}
	return nil
}

func checkVersion(version int) error {
	if version != 1 && version != 2 {
		return fmt.Errorf("manifest version %d is not known", version)
	}
	return nil
}

var errFinished = errors.New("the manifest is finished")
