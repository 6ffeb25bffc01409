package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// writeExit puts exit.json into a container's directory: whole or not at all,
// for a daemon that is not there now. The directory is on a tmpfs, where a sync
// would do nothing and nothing has to be waited for.
func writeExit(dir *sys.FD, s *wire.State) error {
	const tmp = "." + wire.ExitName
	f, err := sys.BriefOpen(dir.Int(), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", tmp, err)
	}
	defer sys.BriefClose(f)
	for b := exitJSON(s); len(b) > 0; {
		n, err := sys.BriefWrite(f, b)
		if err != nil {
			return fmt.Errorf("write %s: %w", tmp, err)
		}
		b = b[n:]
	}
	if err := sys.BriefRename(dir.Int(), tmp, wire.ExitName); err != nil {
		return fmt.Errorf("rename %s: %w", tmp, err)
	}
	return nil
}

// exitJSON is written by hand: encoding/json costs a monitor more memory than
// everything else that it does.
func exitJSON(s *wire.State) []byte {
	b := append(make([]byte, 0, 512), `{"version":1,"id":"`...)
	b = append(append(b, s.ID...), '"') // checkID lets nothing through that would want an escape
	field := func(name string, v int64) {
		b = append(append(append(b, `,"`...), name...), `":`...)
		b = strconv.AppendInt(b, v, 10)
	}
	field("pid", int64(s.Pid))
	field("code", int64(s.Code))
	field("signal", int64(s.Signal))
	field("created_at", s.Created)
	field("started_at", s.Started)
	field("finished_at", s.At)
	field("oom_kills", int64(s.OOMKills))
	b = strconv.AppendBool(append(b, `,"oom_killed":`...), s.OOMKilled)
	return append(b, "}\n"...)
}

// populated says whether anybody is left in a cgroup, as far as it tells.
func populated(cgroup *sys.FD) bool {
	if cgroup == nil {
		return false
	}
	n, err := sys.BriefOpen(cgroup.Int(), "cgroup.events", unix.O_RDONLY, 0)
	if err != nil {
		return !errors.Is(err, unix.ENOENT) // removed: nobody is left
	}
	b := make([]byte, 128)
	k, err := sys.BriefRead(n, b)
	sys.BriefClose(n)
	return err != nil || !bytes.Contains(b[:k], []byte("populated 0"))
}

// killCgroup ends whoever is left of a container after its main process: where
// that had no pid namespace of its own, the kernel has not done it.
//
// The call is none of the brief ones: it waits for a lock that every change of the
// hierarchy takes.
func killCgroup(cgroup *sys.FD) {
	n, err := unix.Openat(cgroup.Int(), "cgroup.kill", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // removed: nobody is left
	}
	_, _ = unix.Write(n, []byte("1"))
	unix.Close(n)
}
