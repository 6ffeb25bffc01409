package monitor

import (
	"fmt"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// writeExit puts exit.json into a container's directory: whole or not at all,
// for a daemon that is not there now. The directory is on a tmpfs, where a sync
// would do nothing.
func writeExit(dir *sys.FD, s *wire.State) error {
	const tmp = "." + wire.ExitName
	n, err := unix.Openat(dir.Int(), tmp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return fmt.Errorf("create %s: %w", tmp, err)
	}
	f := sys.NewFD(n)
	defer f.Close()
	for b := exitJSON(s); len(b) > 0; {
		n, err := unix.Write(f.Int(), b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("write %s: %w", tmp, err)
		}
		b = b[n:]
	}
	if err := unix.Renameat(dir.Int(), tmp, dir.Int(), wire.ExitName); err != nil {
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

// killCgroup ends whoever is left of a container after its main process: where
// that had no pid namespace of its own, the kernel has not done it.
func killCgroup(cgroup *sys.FD) {
	if cgroup == nil {
		return
	}
	n, err := unix.Openat(cgroup.Int(), "cgroup.kill", unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return // removed: nobody is left
	}
	_, _ = unix.Write(n, []byte("1"))
	unix.Close(n)
}
