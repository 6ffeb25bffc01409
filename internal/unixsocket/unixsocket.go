// Package unixsocket says whether the path of a unix socket may be listened on: whoever binds it has to take away what a
// process left there that is gone, and must not take it from one that lives.
package unixsocket

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// maxPath is sun_path without its NUL.
const maxPath = 107

// Stale says whether there is a socket at path on which nobody listens. Where there is nothing it is false; somebody who
// listens, anything that is no socket, and a path that is too long for one are errors. It waits up to a second for one who listens and is busy.
func Stale(path string) (bool, error) {
	if len(path) > maxPath {
		return false, fmt.Errorf("a socket's path has at most %d bytes", maxPath)
	}
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return false, errors.New("there is something that is no socket")
	}
	c, err := net.DialTimeout("unix", path, time.Second)
	if err == nil {
		_ = c.Close()
		return false, errors.New("another process listens there")
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return false, err
	}
	return true, nil
}
