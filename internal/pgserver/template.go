package pgserver

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// noChecksums is an option of initdb from 18 on; see Options.InitdbArgs.
const noChecksums = "--no-data-checksums"

// template returns a data directory fresh from initdb, made now or earlier by
// any process. It must not be changed.
func template(ctx context.Context, binDir string, major int, args []string, a account) (string, error) {
	args = append([]string{
		"--no-sync", "--username=postgres", "--auth=trust",
		"--encoding=UTF8", "--no-locale", "--data-checksums",
	}, args...)
	if slices.Contains(args, noChecksums) && major < 18 { // it has none unless asked to
		args = slices.DeleteFunc(args, func(arg string) bool { return arg == "--data-checksums" || arg == noChecksums })
	}

	// Another build of the same major version has a template of its own.
	info, err := os.Stat(filepath.Join(binDir, "postgres"))
	if err != nil {
		return "", err
	}
	hash := sha256.Sum256(fmt.Appendf(nil, "%s %d %d %q", binDir, info.Size(), info.ModTime().UnixNano(), args))
	cache, err := CacheDir()
	if err != nil {
		return "", err
	}
	parent := filepath.Join(cache, "templates")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	dir := filepath.Join(parent, fmt.Sprintf("%d-%x", major, hash[:8]))
	if exists(dir) { // complete, for it got its name last
		return dir, nil
	}

	lock, err := os.OpenFile(dir+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return "", err
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return "", fmt.Errorf("could not lock %q: %w", lock.Name(), err)
	}
	if exists(dir) { // while we waited
		return dir, nil
	}

	tmp := dir + ".tmp" // left by one who was killed; nobody else is here now
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o700); err != nil {
		return "", err
	}
	if err := a.own(tmp); err != nil {
		return "", err
	}
	if err := a.canReach(tmp); err != nil {
		return "", err
	}
	cmd := a.command(ctx, filepath.Join(binDir, "initdb"), append(args, "-D", tmp)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("initdb of PostgreSQL %d: %w\n%s", major, err, bytes.TrimSpace(out))
	}
	return dir, os.Rename(tmp, dir)
}

// newSystemIdentifier gives a data directory fresh from initdb a system
// identifier of its own: in pg_control, and in the first page of its WAL, which
// must agree.
func newSystemIdentifier(dir string) error {
	// As BootStrapXLOG makes it: the time, and some bits to tell apart those of
	// the same second.
	id := uint64(time.Now().Unix())<<32 | uint64(rand.Uint32())

	control := filepath.Join(dir, "global", "pg_control")
	b, err := os.ReadFile(control)
	if err != nil {
		return err
	}
	// ControlFileData begins with system_identifier and ends with the CRC-32C of
	// all before it. Where it ends differs by version, so look for the place
	// where the CRC is right; sizes are below PG_CONTROL_MAX_SAFE_SIZE (512).
	castagnoli := crc32.MakeTable(crc32.Castagnoli)
	crcAt := 0
	for n := 64; n <= 512-4; n += 4 {
		if crc32.Checksum(b[:n], castagnoli) == binary.NativeEndian.Uint32(b[n:]) {
			crcAt = n
			break
		}
	}
	if crcAt == 0 {
		return fmt.Errorf("no CRC found in %q", control)
	}
	binary.NativeEndian.PutUint64(b, id)
	binary.NativeEndian.PutUint32(b[crcAt:], crc32.Checksum(b[:crcAt], castagnoli))
	if err := overwrite(control, 0, b); err != nil {
		return err
	}

	segments, err := filepath.Glob(filepath.Join(dir, "pg_wal", strings.Repeat("[0-9A-F]", 24)))
	if err != nil {
		return err
	}
	for _, segment := range segments {
		// xlp_sysid follows the short header, padded to 24 bytes, in
		// XLogLongPageHeaderData (access/xlog_internal.h). Pages have no CRC.
		if err := overwrite(segment, 24, binary.NativeEndian.AppendUint64(nil, id)); err != nil {
			return err
		}
	}
	return nil
}

func overwrite(name string, at int64, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(b, at)
	return errors.Join(err, f.Close())
}

// copyTree copies folder src to dst, which becomes the account's. Files for
// which skip returns true are left out, folders with all that is in them. Files
// that vanish while we copy, as they do under a running server, are no error.
func copyTree(src, dst string, a account, skip func(rel string) bool) error {
	buf := make([]byte, 1<<20)
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) && path != src {
			return nil
		}
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		if skip != nil && skip(rel) {
			if d.IsDir() {
				return filepath.SkipDir
			}
			return nil
		}
		to := filepath.Join(dst, rel)
		switch {
		case d.IsDir():
			err = os.Mkdir(to, 0o700)
			if rel == "." && errors.Is(err, fs.ErrExist) {
				err = os.Chmod(to, 0o700)
			}
			if err != nil {
				return err
			}
		case d.Type().IsRegular():
			if err := copyFile(path, to, buf); err != nil {
				if errors.Is(err, fs.ErrNotExist) {
					return nil
				}
				return err
			}
		default:
			return fmt.Errorf("cannot copy %q: it is neither a file nor a folder (tablespaces are not supported)", path)
		}
		return a.own(to)
	})
}

func copyFile(from, to string, buf []byte) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	// Hidden types keep io.Copy from copy_file_range, which takes four times as
	// long for the thousand small files of a data directory (ext4, Linux 6.18).
	_, err = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in}, buf)
	return errors.Join(err, out.Close())
}
