package pgserver

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// An account is who servers and their tools run as: ourselves, or nobody when
// we are root.
type account struct {
	drop     bool // we are root, and processes must become uid and gid
	name     string
	uid, gid int
}

func serverAccount() (account, error) {
	if os.Geteuid() != 0 {
		return account{uid: os.Geteuid(), gid: os.Getegid()}, nil
	}
	u, err := user.Lookup("nobody")
	if err != nil {
		return account{}, fmt.Errorf("PostgreSQL cannot run as root, and there is no other account for it: %w", err)
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return account{}, err
	}
	gid, err := strconv.Atoi(u.Gid)
	return account{drop: true, name: u.Username, uid: uid, gid: gid}, err
}

// own makes path the account's.
func (a account) own(path string) error {
	if !a.drop {
		return nil
	}
	return os.Lchown(path, a.uid, a.gid)
}

func (a account) writeFile(path, text string) error {
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		return err
	}
	return a.own(path)
}

// become makes cmd run as the account, and die when we do.
func (a account) become(cmd *exec.Cmd, onOurDeath syscall.Signal) {
	// A process group of its own keeps an interrupt typed at our terminal from
	// reaching it: we decide how servers end.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	setDeathSignal(cmd.SysProcAttr, onOurDeath)
	if a.drop {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uint32(a.uid), Gid: uint32(a.gid)}
	}
}

// A ReachError says that the account that servers run as when we are root cannot
// get to where their files should be.
type ReachError struct {
	Dir     string // the folder it cannot enter
	Account string
}

func (e *ReachError) Error() string {
	return fmt.Sprintf("directory %q cannot be entered by %q, whom PostgreSQL runs as when we are root", e.Dir, e.Account)
}

// canReach reports, as an error that names it, the folder on the way to dir that
// the account cannot enter.
func (a account) canReach(dir string) error {
	if !a.drop {
		return nil
	}
	for {
		info, err := os.Stat(dir)
		if err != nil {
			return err
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		enter := fs.FileMode(0o001)
		if ok && int(st.Uid) == a.uid {
			enter = 0o100
		} else if ok && int(st.Gid) == a.gid {
			enter = 0o010
		}
		if info.Mode().Perm()&enter == 0 {
			return &ReachError{Dir: dir, Account: a.name}
		}
		if dir == filepath.Dir(dir) {
			return nil
		}
		dir = filepath.Dir(dir)
	}
}

// chownTree gives all of dir to the account.
func chownTree(dir string, a account) error {
	if !a.drop {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return a.own(path)
	})
}
