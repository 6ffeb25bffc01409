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

// atHand is what the end of a container needs, opened while it runs and nobody waits.
type atHand struct {
	record *sys.FD // what becomes exit.json
	events *sys.FD // the cgroup's cgroup.events
}

// exitTemp is exit.json as long as it is not whole.
const exitTemp = "." + wire.ExitName

func openExit(dir *sys.FD) (*sys.FD, error) {
	f, err := sys.BriefOpen(dir.Int(), exitTemp, unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", exitTemp, err)
	}
	return sys.NewFD(f), nil
}

// prepare opens what it can; what is missing is opened when it is needed, and says then why it
// cannot be.
func (c *container) prepare() {
	c.end.record, _ = openExit(c.dir)
	if c.cgroup != nil {
		if n, err := sys.BriefOpen(c.cgroup.Int(), populatedName, unix.O_RDONLY, 0); err == nil {
			c.end.events = sys.NewFD(n)
		}
	}
}

func (h *atHand) close() {
	h.record.BriefClose()
	h.events.BriefClose()
}

// writeExit puts exit.json into a container's directory: whole or not at all,
// for a daemon that is not there now. The directory is on a tmpfs, where a sync
// would do nothing and nothing has to be waited for. f is the file if that is open already.
func writeExit(dir, f *sys.FD, s *wire.State) (err error) {
	if f == nil {
		if f, err = openExit(dir); err != nil {
			return err
		}
		defer f.BriefClose()
	}
	for b := exitJSON(s); len(b) > 0; {
		n, err := sys.BriefWrite(f.Int(), b)
		if err != nil {
			return fmt.Errorf("write %s: %w", exitTemp, err)
		}
		b = b[n:]
	}
	if err := sys.BriefRename(dir.Int(), exitTemp, wire.ExitName); err != nil {
		return fmt.Errorf("rename %s: %w", exitTemp, err)
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

const populatedName = "cgroup.events"

// populated says whether anybody is left in a cgroup, as far as it tells. events is its
// cgroup.events if that is open already.
func populated(cgroup, events *sys.FD) bool {
	if cgroup == nil {
		return false
	}
	b, err := look(cgroup, events, populatedName, make([]byte, 128))
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) {
		return false // removed: nobody is left
	}
	return err != nil || !bytes.Contains(b, []byte("populated 0"))
}

// look reads a small file of a cgroup, through f if that is open already.
func look(cgroup, f *sys.FD, name string, b []byte) ([]byte, error) {
	n := f.Int()
	if n < 0 {
		var err error
		if n, err = sys.BriefOpen(cgroup.Int(), name, unix.O_RDONLY, 0); err != nil {
			return nil, err
		}
		defer sys.BriefClose(n)
	}
	k, err := sys.BriefPread(n, b, 0)
	return b[:k], err
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
