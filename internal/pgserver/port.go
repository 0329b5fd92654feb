package pgserver

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
)

// Ports are taken below the range that kernels give to outgoing connections
// (32768 and up on Linux, 49152 and up elsewhere): above it, a port that is free
// while its server restarts may become a client's.
const (
	firstPort = 15000
	lastPort  = 31999
)

// FreePort reserves a TCP port of 127.0.0.1 that nobody listens on. Until
// release is called, or our process ends, no other call returns it, in any
// process of this user, whether somebody listens on it or not.
func FreePort() (port int, release func(), err error) {
	dir := filepath.Join(os.TempDir(), "rideau-ports-"+strconv.Itoa(os.Geteuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, nil, err
	}
	n := lastPort - firstPort + 1
	start := rand.IntN(n)
	for i := range n {
		port := firstPort + (start+i)%n
		lock, err := os.OpenFile(filepath.Join(dir, strconv.Itoa(port)), os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			return 0, nil, err
		}
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
			lock.Close()
			continue
		}
		if err := tryPort(port); err != nil {
			lock.Close()
			if errors.Is(err, syscall.EADDRINUSE) {
				continue
			}
			return 0, nil, os.NewSyscallError("bind", err)
		}
		// The lock files stay: to remove one that another process has just
		// opened would let two hold "the" lock.
		return port, sync.OnceFunc(func() { lock.Close() }), nil
	}
	return 0, nil, fmt.Errorf("no port from %d to %d is free on 127.0.0.1", firstPort, lastPort)
}

// tryPort finds out whether somebody listens on a port of 127.0.0.1. It does not
// listen itself, and no program is started meanwhile: of one that begins, there is a
// moment in which it still has all that we had open, and who then listens in
// earnest would find the port in use.
func tryPort(port int) error {
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	defer syscall.Close(fd)
	if err := syscall.SetsockoptInt(fd, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1); err != nil {
		return err
	}
	return syscall.Bind(fd, &syscall.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}})
}
