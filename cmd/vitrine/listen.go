package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"github.com/vitrine-runtime/vitrine/internal/unixsocket"
)

// listen makes the CRI socket at path: whoever can connect is root on the node, so
// it is for its owner alone. A socket that nobody listens on, left by a daemon that
// was killed, is replaced; anything else at path is not touched. The listener
// removes the socket when it is closed.
func listen(path string) (net.Listener, error) {
	if err := removeStale(path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	// The mode has to be right from the first moment, and bind takes it from the
	// umask. Nothing else makes files yet.
	old := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, err
	}
	return l, nil
}

func removeStale(path string) error {
	stale, err := unixsocket.Stale(path)
	if err != nil || !stale {
		return err
	}
	return os.Remove(path)
}
