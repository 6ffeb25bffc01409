package main

import (
	"context"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci"
)

// sample is one measurement.
type sample struct {
	Wall, CPU time.Duration
}

// worker is a host as runtimes see it: a mount namespace with some mounts, a cgroup2 hierarchy, a root filesystem, and a pod.
type worker struct {
	options
	ctx      context.Context
	dir      string  // a tmpfs of our own
	name     string  // of our subtree of the cgroup hierarchy
	tree     *sys.FD // that subtree
	ours     *sys.FD // below it: the monitors and their containers
	monitors *sys.FD // below that
	rt       *oci.Runtime
	pod      *oci.Pod
	target   *oci.Process // that execs go to
	targets  *sys.FD      // its cgroup
	count    int
	bound    *bound
	lines    map[string]*commandLine // by name
	who      map[string][]string
	specs    map[string]*specs.Spec // of the resident executor's containers, by case
}

// Names of those who are measured beside the command lines.
const (
	whoBound    = "C bound"
	whoResident = "resident executor"
	whoFresh    = "resident, unseen spec" // whose containers differ by a variable: none finds its program in package oci's cache
	whoMemory   = "memory"
)

// work does what it is asked until nobody asks.
func work(in io.Reader, out io.Writer) error {
	enc, dec := gob.NewEncoder(out), gob.NewDecoder(in)
	w := &worker{ctx: context.Background(), who: map[string][]string{}, specs: map[string]*specs.Spec{}}
	if err := dec.Decode(&w.options); err != nil {
		return err
	}
	err := w.open()
	defer w.close()
	h := hello{Who: w.who}
	if err != nil {
		h.Err = err.Error()
	}
	if err := enc.Encode(&h); err != nil {
		return err
	}
	for err == nil {
		var q question
		if err := dec.Decode(&q); err != nil {
			if errors.Is(err, io.EOF) {
				err = nil
			}
			return err
		}
		var a answer
		var err error
		if q.Who == whoMemory {
			a.Text, err = w.memory()
		} else {
			a.Sample, err = w.measure(q)
		}
		if err != nil {
			a.Err = err.Error()
		}
		if err := enc.Encode(&a); err != nil {
			return err
		}
	}
	return nil
}

func (w *worker) measure(q question) (sample, error) {
	switch {
	case q.Case == caseFilter:
		return w.boundFilter(q.Who)
	case q.Who == whoBound:
		return w.boundOnce(q.Case)
	case q.Who == whoResident && q.Case == caseExec:
		return w.residentExec()
	case q.Who == whoResident:
		return w.resident(w.specs[q.Case])
	case q.Who == whoFresh:
		return w.resident(w.unseen(q.Case))
	case q.Case == caseExec:
		return w.lines[q.Who].exec()
	}
	return w.lines[q.Who].run(q.Case)
}

// open furnishes the host and starts everybody who stays.
func (w *worker) open() error {
	if err := w.mounts(); err != nil {
		return err
	}
	if err := w.cgroups(); err != nil {
		return err
	}
	if err := w.rootfs(); err != nil {
		return err
	}
	monitors, err := w.leaf(w.ours, "monitors")
	if err != nil {
		return err
	}
	w.monitors = monitors
	if w.rt, err = oci.NewRuntime(w.OCI, monitors.Int()); err != nil {
		return err
	}
	if w.pod, err = w.startPod("pod"); err != nil {
		return err
	}
	if err := w.startTarget(); err != nil {
		return err
	}
	if err := w.startBound(); err != nil {
		return err
	}
	for _, c := range []string{caseE1, caseE3, caseE4, caseExec} {
		if w.specs[c], err = w.spec(c, "true"); err != nil {
			return err
		}
		w.who[c] = append(w.who[c], whoBound, whoResident)
		if c == caseE1 || c == caseE3 {
			w.who[c] = append(w.who[c], whoFresh)
		}
	}
	return w.commandLines()
}

// mounts makes a tmpfs for all files, and the further mounts.
func (w *worker) mounts() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	dir, err := os.MkdirTemp("", "vitrine-bench-oci-")
	if err != nil {
		return err
	}
	w.dir = dir
	if err := unix.Mount("bench", dir, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	// On a filesystem of their own: to copy a mount the kernel looks at all that lie on it, and the root
	// is copied from the one above, for us and for the bound. No executor has a part in that, and a host
	// whose containers are made of layers does not do it.
	many := filepath.Join(dir, "many")
	if err := os.Mkdir(many, 0o755); err != nil {
		return err
	}
	if err := unix.Mount("bench", many, "tmpfs", 0, "mode=0755"); err != nil {
		return fmt.Errorf("mount tmpfs: %w", err)
	}
	for i := range w.Mounts {
		at := filepath.Join(many, strconv.Itoa(i))
		if err := os.Mkdir(at, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(at, at, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind mount %d: %w", i, err)
		}
	}
	return nil
}

// cgroups makes a subtree of the machine's cgroup2 hierarchy, which is mounted where everybody looks for it.
func (w *worker) cgroups() error {
	const at = "/sys/fs/cgroup"
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return err
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		// The option is the hierarchy's, and others need it.
		if err := unix.Mount("cgroup2", at, "cgroup2", 0, "nsdelegate"); err != nil {
			return fmt.Errorf("mount cgroup2: %w", err)
		}
	}
	w.name = fmt.Sprintf("vitrine-test-bench-%d", os.Getpid())
	dir := filepath.Join(at, w.name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	var err error
	if w.tree, err = sys.OpenAt2(unix.AT_FDCWD, dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	w.ours, err = w.leaf(w.tree, "ours")
	return err
}

// leaf makes a cgroup and opens it.
func (w *worker) leaf(parent *sys.FD, name string) (*sys.FD, error) {
	if err := unix.Mkdirat(parent.Int(), name, 0o755); err != nil {
		return nil, fmt.Errorf("make cgroup %s: %w", name, err)
	}
	return sys.OpenAt2(parent.Int(), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
}

// removeLeaf removes a cgroup whose last process may still be on its way out.
func removeLeaf(parent *sys.FD, name string) error {
	for i := 0; ; i++ {
		err := unix.Unlinkat(parent.Int(), name, unix.AT_REMOVEDIR)
		if err == nil || i > 1000 {
			return err
		}
		time.Sleep(20 * time.Microsecond)
	}
}

// rootfs makes a root filesystem with a busybox.
func (w *worker) rootfs() error {
	root := filepath.Join(w.dir, "rootfs")
	for _, d := range []string{"bin", "proc", "dev", "tmp", "sys", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	b, err := os.ReadFile("/usr/bin/busybox")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(root, "bin/busybox"), b, 0o755); err != nil {
		return err
	}
	return errors.Join(os.Symlink("busybox", filepath.Join(root, "bin/true")), os.Symlink("busybox", filepath.Join(root, "bin/sleep")))
}

// close ends everybody and removes what is not in our mount namespace.
func (w *worker) close() {
	if w.bound != nil {
		w.bound.close()
	}
	for _, l := range w.lines {
		l.close()
	}
	if w.pod != nil {
		_ = w.pod.Close() // its cgroup is killed below
	}
	if w.tree != nil {
		at := "/proc/self/fd/" + strconv.Itoa(w.tree.Int())
		_ = os.WriteFile(at+"/cgroup.kill", []byte("1"), 0)
		for i := 0; i < 100; i++ {
			if removeCgroups("/sys/fs/cgroup/"+w.name) == nil {
				break
			}
			time.Sleep(20 * time.Millisecond)
		}
	}
	if w.dir != "" {
		_ = unix.Unmount(w.dir, unix.MNT_DETACH)
		_ = os.Remove(w.dir)
	}
}

// removeCgroups removes a cgroup and all below it.
func removeCgroups(path string) error {
	entries, err := os.ReadDir(path)
	if err != nil {
		return nil //nolint:nilerr // gone
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroups(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	return syscall.Rmdir(path)
}

// burnt is the CPU time of this process and of all it waited for.
func burnt() time.Duration {
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var u unix.Rusage
		if unix.Getrusage(who, &u) == nil {
			sum += time.Duration(u.Utime.Nano() + u.Stime.Nano())
		}
	}
	return sum
}
