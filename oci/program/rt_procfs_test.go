package program_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// inMounts runs f in the mount namespace of a process.
func inMounts(pid int, f func() error) error {
	type opened struct {
		ns  *os.File
		err error
	}
	at := make(chan opened) // the calling thread has no /proc
	go func() {
		ns, err := os.Open(fmt.Sprintf("/proc/%d/ns/mnt", pid))
		at <- opened{ns, err}
	}()
	o := <-at
	if o.err != nil {
		return o.err
	}
	defer o.ns.Close()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := errors.Join(unix.Unshare(unix.CLONE_FS), unix.Setns(int(o.ns.Fd()), unix.CLONE_NEWNS))
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// TestRT16ProcfsIsOurs is CVE-2025-52881: while parameters are written, something
// is mounted over the container's /proc, with links to other files. The values go
// to the kernel or nowhere.
func TestRT16ProcfsIsOurs(t *testing.T) {
	const param = "net/ipv4/ip_forward"
	run := func(weaken func(*step.Program)) (res result, harm string, acted error) {
		root := rootTree(t)
		if err := os.MkdirAll(root+"/proc", 0o755); err != nil {
			t.Fatal(err)
		}
		s := hostile(root, newCanary(t), "cat", "/proc/sys/"+param)
		s.in.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
		s.weaken = weaken
		s.gate = named("find sysctl")
		acted = errors.New("no sysctl is written")
		s.act = func(pl place) {
			acted = inMounts(pl.pid, func() error {
				at := program.ScratchRoot + "/proc"
				if err := unix.Mount("tmpfs", at, "tmpfs", 0, ""); err != nil {
					return err
				}
				return errors.Join(os.MkdirAll(at+"/sys/net/ipv4", 0o755), os.Symlink("/canary/ptmx", at+"/sys/"+param))
			})
		}
		before := outside(t, s.canary)
		res = s.lay(t)
		if after := outside(t, s.canary); after != before {
			harm = after
		}
		return res, harm, acted
	}
	res, harm, acted := run(nil)
	if acted != nil || harm != "" || res.err != nil || res.out != "1\n" {
		t.Errorf("%v, %q (the adversary: %v): %s", res.err, res.out, acted, harm)
	}
	// By name, through what stands at /proc: as it once was.
	_, harm, acted = run(func(p *step.Program) {
		for i := range p.Steps {
			if s := &p.Steps[i]; strings.HasPrefix(s.Name, "find sysctl") {
				cwd := int64(unix.AT_FDCWD)
				s.Args[0] = step.Arg{Val: uint64(cwd)}
				s.Args[1] = addData(p, []byte(program.ScratchRoot+"/proc/sys/"+param+"\x00"))
			}
		}
		unconfined(p)
	})
	if acted != nil || harm == "" {
		t.Errorf("by name no harm is seen (the adversary: %v)", acted)
	}
}

// TestRT26LabelsAreApplied is CVE-2025-65105 and CVE-2025-64750: a label that was
// accepted is read back from the process, or its start has failed and says why.
// Which of the two can be seen is the kernel's; the rest says that it skips.
func TestRT26LabelsAreApplied(t *testing.T) {
	t.Run("AppArmor", TestAppArmor)
	t.Run("SELinux", TestSELinux)
	t.Run("refused where they would not arrive", TestLabelsThatWouldNotArrive)
	// A program that passes over what the kernel says to a label is none.
	for _, label := range []func(s *stage){
		func(s *stage) { s.in.Spec.Process.ApparmorProfile = "x" }, func(s *stage) { s.in.Spec.Process.SelinuxLabel = "x" },
	} {
		s := newStage("", "true")
		label(s)
		p, err := program.Compile(s.in)
		if err != nil {
			t.Fatal(err)
		}
		found := 0
		for i := range p.Steps {
			if st := &p.Steps[i]; strings.HasPrefix(st.Name, "run under ") && st.Nr == unix.SYS_PWRITE64 {
				found++
				st.OnErr = []step.Branch{{Errno: uint16(unix.ENOENT)}}
				if err := program.Check(p); !errors.Is(err, program.ErrRule) {
					t.Errorf("%s may fail: %v", st.Name, err)
				}
			}
		}
		if found != 1 {
			t.Errorf("%d labels are written", found)
		}
	}
}
