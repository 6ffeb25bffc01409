package oci

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// exitVersion is the version of exit.json that this build reads. The monitor
// writes it by hand (oci/monitor, exit.go).
const exitVersion = 1

// ExitRecord is what a container's monitor has written into exit.json, whole or
// not at all, before it told anybody. It outlives monitor and daemon, and goes
// with the container's directory. Times are ns since 1970.
type ExitRecord struct {
	Version    int    `json:"version"`
	ID         string `json:"id"`
	Pid        int    `json:"pid"`
	Code       int    `json:"code"`   // of exit(2); 0 if it was killed
	Signal     int    `json:"signal"` // that killed it; 0 if it exited
	CreatedAt  int64  `json:"created_at"`
	StartedAt  int64  `json:"started_at"` // 0: its execve never succeeded
	FinishedAt int64  `json:"finished_at"`
	OOMKilled  bool   `json:"oom_killed"`
	OOMKills   uint32 `json:"oom_kills"` // not written by monitors before wire version 2
}

// Status returns how the process ended, as an event would have said it.
func (r *ExitRecord) Status() ExitStatus {
	return statusOf(wire.Status{Code: int32(r.Code), Signal: int32(r.Signal), OOMKilled: r.OOMKilled, OOMKills: r.OOMKills, At: r.FinishedAt})
}

// NoteKill leaves word in a container's directory that the caller is about
// to kill the container, so that its end is not taken for the OOM killer's. It
// does nothing if the main process is dead already: then it was not us. The
// note survives daemon and monitor, and a monitor that is slow finds it as well.
func NoteKill(dir string, pid int) error {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	// The state stands behind the name, which may hold anything.
	if i := bytes.LastIndexByte(b, ')'); err != nil || i+2 >= len(b) || b[i+2] == 'Z' || b[i+2] == 'X' {
		return nil //nolint:nilerr // without a process there is nobody to kill
	}
	f, err := os.OpenFile(filepath.Join(dir, wire.KilledName), os.O_WRONLY|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return f.Close()
}

// ReadExit reads the exit record in a container's directory. The error is
// fs.ErrNotExist if there is none: the container lives, was never created, or
// its monitor died before it did.
func ReadExit(dir string) (*ExitRecord, error) {
	b, err := os.ReadFile(filepath.Join(dir, wire.ExitName))
	if err != nil {
		return nil, err
	}
	r := new(ExitRecord)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("read exit record in %s: %w", dir, err)
	}
	if r.Version != exitVersion {
		return nil, fmt.Errorf("read exit record in %s: version %d instead of %d", dir, r.Version, exitVersion)
	}
	return r, nil
}
