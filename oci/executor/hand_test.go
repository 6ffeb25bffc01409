package executor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// handing is a program that opens a file and hands it over, with or without a
// start wait.
func handing(wait bool, argv ...string) *prog {
	p := newProg()
	if wait {
		p.block()
	}
	how := p.room(unix.SizeofOpenHow)
	p.Data[how.Val+2] = unix.O_CLOEXEC >> 16
	p.add(unix.SYS_OPENAT2, c64(unix.AT_FDCWD), p.str("/etc/passwd"), how, c64(unix.SizeofOpenHow)).Result = 7
	p.add(step.OpHand, step.Arg{Kind: step.Reg, Val: 7}).Name = "hand it over"
	p.exec(argv...)
	return p
}

// release runs a program of handing to its execve in either way.
func release(r *run, together bool) error {
	if together {
		return r.Run()
	}
	if err := r.Ready(); err != nil {
		return err
	}
	return r.Release()
}

func needPtrace(t *testing.T) {
	needBusybox(t)
	if os.Geteuid() != 0 {
		t.Skip("needs root: takes descriptors of another process")
	}
}

func TestHandOver(t *testing.T) {
	needPtrace(t)
	for _, together := range []bool{false, true} {
		r := handing(true, busybox, "sh", "-c", "ls /proc/self/fd; exit 7").start(t)
		if r.Hands() == 0 {
			t.Fatal("nothing is handed over")
		}
		var text string
		r.Receive(r.Hands(), func(fd *sys.FD) error {
			f := fd.File("handed over")
			defer f.Close()
			b := make([]byte, 5)
			_, err := f.Read(b)
			text = string(b)
			time.Sleep(30 * time.Millisecond) // the child waits
			return err
		})
		if err := release(r, together); err != nil || text != "root:" {
			t.Fatalf("%v, %q", err, text)
		}
		if code, out := r.exit(t), r.output(t); code != 7 || strings.Contains(out, "5") {
			t.Errorf("exit %d, descriptors %q", code, out)
		}
	}
}

// TestHandOverToNobody: a child is not released into a wait for nobody.
func TestHandOverToNobody(t *testing.T) {
	needPtrace(t)
	r := handing(true, busybox, "true").start(t)
	if err := r.Ready(); err != nil {
		t.Fatal(err)
	}
	if err := r.Release(); !errors.Is(err, unix.EINVAL) {
		t.Fatalf("Release = %v", err)
	}
	if dead, err := r.dead(20 * time.Millisecond); dead || err != nil {
		t.Errorf("child is dead: %v, %v", dead, err)
	}
	unix.Kill(r.Pid(), unix.SIGKILL)
	r.exit(t)
}

// TestHandOverFails: who cannot pass the descriptor on has no child any more.
func TestHandOverFails(t *testing.T) {
	needPtrace(t)
	r := handing(true, busybox, "true").start(t)
	r.Receive(r.Hands(), func(fd *sys.FD) error { fd.Close(); return unix.ECONNREFUSED })
	if err := release(r, false); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("Release = %v", err)
	}
	if code := r.exit(t); code != -int(unix.SIGKILL) {
		t.Errorf("exit %d", code)
	}

	// A descriptor that is none.
	p := newProg()
	p.block()
	p.add(step.OpHand, c64(99))
	p.exec(busybox, "true")
	r = p.start(t)
	r.Receive(r.Hands(), func(fd *sys.FD) error { return errors.New("got one") })
	if err := release(r, true); !errors.Is(err, unix.EBADF) {
		t.Errorf("Release = %v", err)
	}
	r.exit(t)

	// A step before it fails.
	p = newProg()
	p.block()
	p.add(unix.SYS_CLOSE, c64(99)).Name = "close 99"
	p.add(step.OpHand, c64(1))
	p.exec(busybox, "true")
	for _, together := range []bool{false, true} {
		r = p.start(t)
		r.Receive(r.Hands(), func(fd *sys.FD) error { return errors.New("got one") })
		if err := release(r, together); err == nil || err.Error() != "close 99: bad file descriptor" {
			t.Errorf("Release = %v", err)
		}
		r.exit(t)
	}

	// It is killed before it comes to that, and while its parent holds what it handed over.
	r = handing(true, busybox, "true").start(t)
	r.Receive(r.Hands(), func(fd *sys.FD) error {
		fd.Close()
		return errors.Join(sys.PidfdSignal(r.PidFD(), unix.SIGKILL), func() error { _, err := r.dead(time.Second); return err }())
	})
	if err := release(r, false); !errors.Is(err, ErrDied) {
		t.Errorf("Release = %v", err)
	}
	r.exit(t)
	r = handing(true, busybox, "true").start(t)
	r.Receive(r.Hands(), func(fd *sys.FD) error { return errors.New("got one") })
	if err := r.Ready(); err != nil {
		t.Fatal(err)
	}
	unix.Kill(r.Pid(), unix.SIGKILL)
	r.dead(time.Second)
	if err := r.Release(); !errors.Is(err, ErrDied) {
		t.Errorf("Release = %v", err)
	}
	r.exit(t)
}

// orphanEnv makes the test binary a parent that dies, at the moment it names.
const orphanEnv = "VITRINE_TEST_ORPHAN"

// orphan is that parent. It writes its child's number.
func orphan(moment string) error {
	patience = 1e9
	enc, err := handing(true, busybox, "sleep", "0.1").Encode()
	if err != nil {
		return err
	}
	null, err := os.Open("/dev/null")
	if err != nil {
		return err
	}
	n := int(null.Fd())
	c, err := Start(Attr{Program: enc, CgroupFD: -1, PIDNS: -1, ProcFD: -1, Stdio: [3]int{n, n, n}})
	if err != nil {
		return err
	}
	die := func() { unix.Kill(os.Getpid(), unix.SIGKILL); select {} }
	stop := func() { unix.Kill(os.Getpid(), unix.SIGSTOP); select {} }
	c.Receive(c.Hands(), func(fd *sys.FD) error {
		switch moment {
		case "with the descriptor":
			die()
		case "stopped":
			stop()
		}
		return nil
	})
	if err := c.Ready(); err != nil {
		return err
	}
	fmt.Println(c.Pid())
	if moment == "before the start" {
		die()
	}
	mem, err := c.open()
	if err != nil {
		return err
	}
	if err := c.Allow(); err != nil {
		return err
	}
	if moment == "after the start" {
		die()
	}
	if err := c.receive(mem); err != nil {
		return err
	}
	die() // after it was taken
	return nil
}

// TestOrphanEnds: whenever the parent dies or stops, the child does not look for
// it for ever.
func TestOrphanEnds(t *testing.T) {
	if moment := os.Getenv(orphanEnv); moment != "" {
		fmt.Fprintln(os.Stderr, orphan(moment))
		os.Exit(1)
	}
	needPtrace(t)
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	for moment, want := range map[string]string{
		"before the start": "broken pipe or exit 127", "after the start": "illegal instruction", "with the descriptor": "illegal instruction",
		"stopped": "illegal instruction", "after it was taken": "exit 0",
	} {
		t.Run(moment, func(t *testing.T) {
			cmd := exec.Command(os.Args[0], "-test.run=^TestOrphanEnds$")
			cmd.Env = append(os.Environ(), orphanEnv+"="+moment)
			cmd.Stderr = os.Stderr
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 32)
			n, _ := out.Read(b)
			pid, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
			if err != nil {
				t.Fatalf("parent says %q", b[:n])
			}
			if moment != "stopped" {
				cmd.Wait()
			} else {
				defer cmd.Wait()
				defer cmd.Process.Kill()
				pidfd, err := sys.PidfdOpen(pid)
				if err != nil {
					t.Fatal(err)
				}
				defer pidfd.Close()
				for until := time.Now().Add(20 * time.Second); ; { // a signal ends a wait early
					if dead, _ := (&Child{pidfd: pidfd}).dead(time.Second); dead {
						break
					}
					if time.Now().After(until) {
						t.Fatal("it still looks for its parent")
					}
				}
				cmd.Process.Kill()
				cmd.Wait()
			}
			var ws unix.WaitStatus
			began := time.Now()
			for time.Since(began) < 20*time.Second { // it may not be ours yet
				if got, err := unix.Wait4(pid, &ws, unix.WNOHANG, nil); got == pid {
					break
				} else if err != nil && err != unix.ECHILD {
					t.Fatal(err)
				}
				time.Sleep(5 * time.Millisecond)
			}
			got := fmt.Sprintf("exit %d", ws.ExitStatus())
			if ws.Signaled() {
				got = ws.Signal().String()
			}
			if !strings.Contains(want, got) { // the report pipe may be closed later than the start pipe
				t.Errorf("it ended with %s, want %s", got, want)
			}
		})
	}
}
