package bundle

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/early"
	"github.com/vitrine-runtime/vitrine/internal/scratch"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// harden keeps what this process knows (the environment of its caller, the spec)
// from a child that has not executed anything yet, and from who can look at that.
func harden() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("prctl PR_SET_DUMPABLE: %w", err)
	}
	return executor.HideMemory()
}

// tiny is a thread that has gone to a tiny mount namespace of its own, to start a program there, and
// that ends afterwards: the child's namespace is a copy of that, and what nobody can see needs no
// hiding. It waits for the kernel most of the time that this takes, so it goes there while others read what
// the child is to be.
type tiny struct {
	attrs chan executor.Attr // closed where nobody wants a child
	done  chan forked
}

type forked struct {
	child *executor.Child
	err   error
}

// begun is a thread that was sent before anybody has asked for one.
var begun *tiny

// Hurry begins what does not depend on which container is to be made, for the first Create or Run of this process. It is
// for a process that makes one, as soon as it knows; the kernel can make it wait for a millisecond there. What goes wrong
// is told by whoever makes the container. Who cannot is not sent.
func Hurry() {
	if Stand() != Outside {
		begun = enterTiny()
	}
}

// enterTiny sends a thread there. It must be told to leave. From here on there is work for two processors, and never for
// more: see package early.
func enterTiny() *tiny {
	if t := begun; t != nil {
		begun = nil
		return t
	}
	runtime.GOMAXPROCS(min(2, runtime.NumCPU()))
	t := &tiny{make(chan executor.Attr), make(chan forked, 1)}
	go func() { // ends with fork or leave
		var f forked
		f.err = sys.OnLostThread(func() error {
			err := notRoot("unshare the mount namespace", unix.Unshare(unix.CLONE_NEWNS))
			if err == nil {
				err = scratch.Enter("")
			}
			a, wanted := <-t.attrs
			if err != nil || !wanted {
				a.Pipes.Close()
				return err
			}
			f.child, err = executor.Start(a)
			return err
		})
		t.done <- f
	}()
	return t
}

// leave ends the thread.
func (t *tiny) leave() {
	if t != nil {
		close(t.attrs)
	}
}

// fork starts a program from there, once.
func (t *tiny) fork(a executor.Attr) (*executor.Child, error) {
	proc, err := openProc()
	if err == nil {
		// It stays open as long as the child may be asked about: as long as we live.
		a.ProcFD = proc.Disown()
	} else {
		a.Pipes.Close()
		return nil, err
	}
	t.attrs <- a
	f := <-t.done
	return f.child, f.err
}

// raiseLimits raises our hard limits to those of a process in a user namespace. It
// may not go above what it inherits from us; what we may not raise either is the program's
// to tell. Soft limits stay as they are.
func raiseLimits(l *specs.Linux, limits []specs.POSIXRlimit) {
	if !slices.ContainsFunc(l.Namespaces, func(ns specs.LinuxNamespace) bool { return ns.Type == specs.UserNamespace }) {
		return
	}
	for _, want := range limits {
		var now unix.Rlimit
		if n, known := program.Rlimit(want.Type); known && unix.Prlimit(0, n, nil, &now) == nil && want.Hard > now.Max {
			_ = unix.Prlimit(0, n, &unix.Rlimit{Cur: now.Cur, Max: want.Hard}, nil)
		}
	}
}

// firstFD is the first of the descriptors that we were started with to be passed on.
func (r *Runtime) firstFD() int {
	if r != nil && r.Inside {
		return asking + 1 // see enter
	}
	return 3
}

// inherited copies n descriptors from first on that we were started with.
func inherited(first, n int) (list []*sys.FD, err error) {
	if n < 0 || n > 1000 {
		return nil, fmt.Errorf("preserve %d descriptors: %w", n, ErrInvalid)
	}
	for i := first; i < first+n; i++ {
		fd, err := -1, error(unix.EBADF)
		if i != early.Mount() { // nobody has given us that
			fd, err = unix.FcntlInt(uintptr(i), unix.F_DUPFD_CLOEXEC, first+n)
		}
		if err != nil {
			return list, fmt.Errorf("preserve descriptor %d: %w", i-first+3, err)
		}
		list = append(list, sys.NewFD(fd))
	}
	return list, nil
}

// notRoot names what is missing where the kernel refuses what only root may do.
func notRoot(what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, unix.EPERM) && os.Geteuid() != 0 {
		return fmt.Errorf("%s: %w as uid %d: %w", what, ErrNotRoot, os.Geteuid(), err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

// openProc opens /proc and makes sure that it is one: what we write there decides
// about limits and labels (CVE-2019-16884).
func openProc() (*sys.FD, error) {
	fd, err := sys.OpenAt2(unix.AT_FDCWD, "/proc", unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(fd.Int(), &st); err != nil || st.Type != unix.PROC_SUPER_MAGIC {
		fd.Close()
		return nil, fmt.Errorf("use /proc: it is no procfs: %w", errors.Join(unix.EINVAL, err))
	}
	return fd, nil
}

// setOOM sets a child's oom_score_adj.
func setOOM(pid, adj int) error {
	proc, err := openProc()
	if err != nil {
		return err
	}
	defer proc.Close()
	name := strconv.Itoa(pid) + "/oom_score_adj"
	fd, err := sys.OpenAt2(proc.Int(), name, unix.O_WRONLY, unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	if err != nil {
		return err
	}
	defer fd.Close()
	if _, err := unix.Write(fd.Int(), []byte(strconv.Itoa(adj))); err != nil {
		return fmt.Errorf("process.oomScoreAdj: set to %d: %w", adj, err)
	}
	return nil
}

// withFileLimit adds the limit on descriptors that we were started with, where the
// spec has none: ours is another one, because the Go runtime raises it.
func withFileLimit(limits []specs.POSIXRlimit) []specs.POSIXRlimit {
	for _, l := range limits {
		if l.Type == "RLIMIT_NOFILE" {
			return limits
		}
	}
	soft, hard := early.FileLimit()
	return append(limits[:len(limits):len(limits)], specs.POSIXRlimit{Type: "RLIMIT_NOFILE", Soft: soft, Hard: hard})
}
