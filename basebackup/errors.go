package basebackup

import (
	"fmt"
	"strings"

	"rideau/wal"
)

// A PrivilegeError says what the role may not execute that a backup needs.
type PrivilegeError struct {
	Server    string
	Role      string
	Functions []string // as regprocedure writes them
}

func (e *PrivilegeError) Error() string {
	return fmt.Sprintf("role %q may not execute %s on server %q", e.Role, strings.Join(e.Functions, ", "), e.Server)
}

// A PoolerError says that something between us and the server shares sessions
// out, so that the one that began a backup may not be the one that ends it.
type PoolerError struct{ Server string }

func (e *PoolerError) Error() string {
	return fmt.Sprintf("connection to %q goes through a connection pooler, and a backup must begin and end in the same session", e.Server)
}

// A ControlError says that the session that began the backup was lost, and the
// backup with it. What was copied is kept: the same command goes on from there.
type ControlError struct {
	Server string
	Err    error
}

func (e *ControlError) Error() string {
	return fmt.Sprintf("lost the session of the backup on server %q: %v", e.Server, e.Err)
}
func (e *ControlError) Unwrap() error { return e.Err }

// A PromotedError says that the standby became a primary during the backup,
// which voids it.
type PromotedError struct{ Server string }

func (e *PromotedError) Error() string {
	return fmt.Sprintf("standby %q was promoted during the backup, which is void", e.Server)
}

// A SettingError says that a setting of the server does not allow a backup.
type SettingError struct{ Server, Name, Value, Need string }

func (e *SettingError) Error() string {
	return fmt.Sprintf("%s is %q on server %q, and a backup needs %s", e.Name, e.Value, e.Server, e.Need)
}

// A TablespaceError says where a tablespace cannot be put.
type TablespaceError struct {
	OID      uint32
	Location string // on the server
	Local    string // here
	Reason   string
}

func (e *TablespaceError) Error() string {
	return fmt.Sprintf("cannot put tablespace %d, %q on the server, into %q: %s", e.OID, e.Location, e.Local, e.Reason)
}

// A FileError says that a file of the server's cannot be had.
type FileError struct {
	Server string
	Path   string
	Err    error
}

func (e *FileError) Error() string {
	return fmt.Sprintf("could not copy %q from server %q: %v", e.Path, e.Server, e.Err)
}
func (e *FileError) Unwrap() error { return e.Err }

// A CorruptError says that the backup is complete, but not all of it is sound:
// pages were wrong on the server itself. The report lists them.
type CorruptError struct {
	Server string
	Pages  int
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%d pages are damaged on server %q", e.Pages, e.Server)
}

// A startPoint is where a backup began.
type startPoint struct {
	LSN wal.LSN
	TLI wal.TLI
}
