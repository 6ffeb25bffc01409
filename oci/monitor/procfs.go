package monitor

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/internal/sysctl"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// procfs is a mount of proc that is attached nowhere: only this process can
// reach it, nothing can be mounted over a file in it, and no option of the
// host's (hidepid, subset) applies.
type procfs struct {
	root    *sys.FD
	oomSelf int // our own oom_score_adj, which children inherit
	oomWas  int // the same before we changed it
}

func openProcfs() (*procfs, error) {
	fs, err := sys.FSOpen("proc")
	if err != nil {
		return nil, err
	}
	defer fs.Close()
	if err := sys.FSConfigCreate(fs); err != nil {
		return nil, err
	}
	root, err := sys.FSMount(fs, unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC)
	if err != nil {
		return nil, err
	}
	return &procfs{root: root}, nil
}

func (p *procfs) open(path string, flags int) (*os.File, error) {
	n, err := unix.Openat(p.root.Int(), path, flags|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), path), nil
}

func (p *procfs) write(path, value string) error {
	f, err := p.open(path, unix.O_WRONLY)
	if err != nil {
		return err
	}
	defer f.Close()
	// One call: of "1 2" the kernel takes the 1, and would take the rest of a second
	// call for nothing. No pwrite: /proc/self/comm does not take that.
	n, err := unix.Write(int(f.Fd()), []byte(value))
	if err == nil && n < len(value) {
		err = unix.EINVAL
	}
	return err
}

func (p *procfs) readInt(path string) (int, error) {
	f, err := p.open(path, unix.O_RDONLY)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b := make([]byte, 32)
	n, err := f.Read(b)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(b[:n])))
}

func (p *procfs) setComm(name string) {
	// For people who look at ps; nothing depends on it.
	_ = p.write("self/comm", name)
}

// lowerOwnOOM makes the monitor one of the last that the OOM killer takes: its
// death costs the pod. -999 and not -1000, so that a host which is out of
// everything else may still have it. Without CAP_SYS_RESOURCE it stays as it is.
func (p *procfs) lowerOwnOOM() {
	self := strconv.Itoa(os.Getpid()) + "/oom_score_adj"
	p.oomWas, _ = p.readInt(self)
	_ = p.write(self, "-999")
	p.oomSelf, _ = p.readInt(self)
}

// setOOM sets a child's oom_score_adj and returns what it is now. The child has
// inherited ours. Where root may not go below that, it stays, which is no
// reason not to run a container; the note says so.
func (p *procfs) setOOM(pid, want int) (got int, note string) {
	if want == p.oomSelf {
		return want, ""
	}
	file := strconv.Itoa(pid) + "/oom_score_adj"
	err := p.write(file, strconv.Itoa(want))
	if err == nil {
		return want, ""
	}
	got, rerr := p.readInt(file)
	if rerr != nil {
		got = p.oomSelf
	}
	return got, "oom_score_adj " + strconv.Itoa(want) + ": " + err.Error() + "; it stays " + strconv.Itoa(got)
}

// sysctl writes one setting inside the pod's namespaces. What belongs to a
// namespace that the pod shares with the host, or to none, is refused: it would
// change the host.
func (p *procfs) sysctl(s *wire.Setup, key, value string) error {
	path := sysctl.Path(key)
	var own bool
	switch sysctl.Of(path) {
	case sysctl.Net:
		own = !s.HostNet
	case sysctl.IPC:
		own = !s.HostIPC
	}
	if !own {
		return fmt.Errorf("set sysctl %s: not in a namespace of the pod's own: %w", key, unix.EPERM)
	}
	if err := p.write("sys/"+path, value); err != nil {
		return fmt.Errorf("set sysctl %s to %q: %w", key, value, err)
	}
	return nil
}
