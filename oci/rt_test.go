package oci

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The test binary is the attacker too: "hostile" in a container beside others,
// and as "/bin/evil" what a script with the interpreter /proc/self/exe runs.
func hostileMain(args []string) {
	switch args[0] {
	case "watch":
		watch()
	case "/bin/evil":
		overwrite("self")
	}
}

// overwrite tries to write to the executable of a process, and says what it is.
func overwrite(pid string) {
	exe := "/proc/" + pid + "/exe"
	link, _ := os.Readlink(exe)
	for _, flags := range []int{os.O_WRONLY, os.O_RDWR, os.O_WRONLY | os.O_TRUNC} {
		fd, err := unix.Open(exe, flags|unix.O_CLOEXEC, 0)
		if err == nil {
			_, err = unix.Write(fd, []byte("x"))
			if terr := unix.Ftruncate(fd, 0); err != nil && terr != nil {
				unix.Close(fd)
			} else {
				fmt.Printf("VIOLATION: %s written through: %v %v\n", link, err, terr)
			}
		}
		if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ETXTBSY) && !errors.Is(err, unix.EACCES) {
			fmt.Printf("VIOLATION: %s opened with %#x: %v\n", link, flags, err)
		}
	}
	fd, err := unix.Open(exe, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		fmt.Println("cannot be read:", err)
		return
	}
	seals, err := unix.FcntlInt(uintptr(fd), unix.F_GET_SEALS, 0)
	fmt.Printf("%s seals %#x %v\n", link, seals, err)
	unix.Close(fd)
}

// watch looks for new processes and into them as fast as it can. Whose
// executable is still the runtime's has not got to its execve.
func watch() {
	own, after := os.Getpid(), 0
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		ents, err := os.ReadDir("/proc")
		if err != nil {
			continue
		}
		if _, err := os.Stat("/tmp/stop"); err == nil {
			break
		}
		for _, e := range ents {
			if pid, err := strconv.Atoi(e.Name()); err == nil && pid > 1 && pid != own {
				after += look(pid)
			}
		}
	}
	fmt.Println("seen behind their execve:", after)
}

// look looks into one process. Nothing of it may be reached before its execve.
func look(pid int) (after int) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	exe, err := os.Readlink(dir + "exe")
	if err != nil {
		return 0
	}
	if !strings.HasPrefix(exe, "/memfd:") {
		return 1
	}
	fds, _ := os.ReadDir(dir + "fd")
	var holds []string
	for _, f := range fds {
		l, _ := os.Readlink(dir + "fd/" + f.Name())
		holds = append(holds, l)
		// What may be there: pipes, the null device, the container's own init by pidfd, the procfs of the monitor.
		if l != "" && !strings.HasPrefix(l, "pipe:") && !strings.HasPrefix(l, "anon_inode:[pidfd]") && l != "/null" && l != "/dev/null" {
			fmt.Printf("HOST: %d holds %s\n", pid, l)
		}
	}
	fmt.Printf("VIOLATION: looked into %d before its execve: %q\n", pid, holds)
	return 0
}

// withHostile puts the attacker into the root filesystem.
func withHostile(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	b, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(n.rootfs, "bin/hostile"), b, 0o755),
		os.WriteFile(filepath.Join(n.rootfs, "bin/evil"), []byte("#!/proc/self/exe\n"), 0o755)); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRT01ExecIsNotSeen is CVE-2016-9962: a container in the same pid namespace
// tries to trace each exec, and to reach its descriptors, before its execve.
func TestRT01ExecIsNotSeen(t *testing.T) {
	execs := 500
	if testing.Short() {
		execs = 100
	}
	n := withHostile(t)
	p := n.pod(func(c *PodConfig) { c.SharedPID = true })
	watcher := n.run(p, "watcher", "hostile", "watch")
	target := n.run(p, "target", "sleep", "1000")
	for range execs {
		if out, s := run(t, target, "true"); s.ExitCode() != 0 {
			t.Fatalf("exec: %q, %+v", out, s)
		}
	}
	stop(t, n, p, watcher)
	log := n.log(p, "watcher")
	if strings.Contains(log, "VIOLATION") || strings.Contains(log, "HOST") {
		t.Errorf("%.2000s", log)
	}
	if !strings.Contains(log, "seen behind their execve: ") || strings.Contains(log, "execve: 0\n") {
		t.Errorf("the watcher saw nothing at all: %q", log)
	}
}

// TestRT01IsSeenWithout: a container with CAP_SYS_PTRACE is the known limit (see
// docs/security.md): that nobody is dumpable does not stop it. The same watcher
// has to see there what it is not to see above.
func TestRT01IsSeenWithout(t *testing.T) {
	n := withHostile(t)
	p := n.pod(func(c *PodConfig) { c.SharedPID = true })
	c := n.config(p, "watcher", "hostile", "watch")
	caps := []string{"CAP_SYS_PTRACE"}
	c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Permitted: caps, Effective: caps}
	watcher, err := p.Create(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	if err := watcher.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	target := n.run(p, "target", "sleep", "1000")
	for range 100 {
		run(t, target, "true")
	}
	stop(t, n, p, watcher)
	if log := n.log(p, "watcher"); !strings.Contains(log, "HOST") && !strings.Contains(log, "VIOLATION") {
		t.Errorf("with CAP_SYS_PTRACE the watcher sees nothing either: %.2000s", log)
	}
}

// stop ends a watcher and waits for what it has to say.
func stop(t *testing.T, n *node, p *Pod, watcher *Process) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(n.rootfs, "tmp/stop"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	exited(t, p, watcher.ID())
}

// TestRT03RuntimeIsNotWritten is CVE-2019-5736: a container reaches the binary
// that enters it, as /proc/<pid>/exe of an exec or as the interpreter of its own
// script, and writes to it.
func TestRT03RuntimeIsNotWritten(t *testing.T) {
	n := withHostile(t)
	binary := os.Getenv("VITRINE_OCI")
	if binary == "" {
		binary = "/proc/self/exe"
	}
	identity := func() string {
		var st unix.Stat_t
		if err := unix.Stat(binary, &st); err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(binary)
		if err != nil {
			t.Fatal(err)
		}
		mem, err := io.ReadAll(io.NewSectionReader(memReader(n.rt.Monitor.Int()), 0, 1<<30))
		if err != nil {
			t.Fatal(err)
		}
		return fmt.Sprintf("%d %v %v %x %x", st.Ino, st.Mtim, st.Size, sha256.Sum256(b), sha256.Sum256(mem))
	}
	before := identity()
	p := n.pod(nil)
	all := []string{"CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_ADMIN", "CAP_FOWNER"}
	for _, id := range []string{"entrypoint", "exec"} {
		c := n.config(p, id, "/bin/evil")
		if id == "exec" {
			c.Spec.Process.Args = []string{"sleep", "1000"}
		}
		c.Spec.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Permitted: all, Effective: all}
		pr, err := p.Create(t.Context(), c)
		if err != nil {
			t.Fatal(err)
		}
		blocked, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pr.Pid()))
		if err != nil || !strings.HasPrefix(blocked, "/memfd:") {
			t.Errorf("a blocked init is %q, %v", blocked, err)
		}
		if err := pr.Start(t.Context()); err != nil {
			t.Fatal(err)
		}
		var log string
		if id == "entrypoint" {
			exited(t, p, id)
			log = n.log(p, id)
		} else {
			log, _ = run(t, pr, "/bin/evil")
		}
		const sealed = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
		at := strings.Index(log, "seals 0x")
		if at < 0 || strings.Contains(log, "VIOLATION") {
			t.Errorf("%s: %s", id, log)
			continue
		}
		var seals int
		if _, err := fmt.Sscanf(log[at:], "seals 0x%x", &seals); err != nil || seals&sealed != sealed {
			t.Errorf("%s: %s", id, log)
		}
	}
	if after := identity(); after != before {
		t.Errorf("the runtime has changed:\n%s\n%s", before, after)
	}
}

// memReader reads a file from its beginning without moving its offset.
type memReader int

func (m memReader) ReadAt(b []byte, off int64) (int, error) {
	n, err := unix.Pread(int(m), b, off)
	if err == nil && n < len(b) {
		err = io.EOF
	}
	return n, err
}
