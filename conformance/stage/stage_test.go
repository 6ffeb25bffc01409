package stage

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// place is the stage of all tests here, or nil where we are not root.
var place *Stage

func TestMain(m *testing.M) {
	s, err := Enter()
	if err != nil && !errors.Is(err, ErrNotRoot) {
		fmt.Fprintln(os.Stderr, "enter stage:", err)
		os.Exit(1)
	}
	place = s
	code := m.Run()
	if s != nil {
		if err := s.Close(); err != nil {
			fmt.Fprintln(os.Stderr, "close stage:", err)
			code = 1
		}
	}
	os.Exit(code)
}

func needStage(t *testing.T) *Stage {
	t.Helper()
	if place == nil {
		t.Skip("needs root: makes mount, PID, network and cgroup namespaces")
	}
	return place
}

func TestSurroundingsArePrivate(t *testing.T) {
	if needStage(t).IsMachine() {
		t.Skip("needs a stage in namespaces of its own: in a guest that is the whole machine")
	}
	if ppid := os.Getppid(); ppid != 1 {
		t.Errorf("the player's parent is %d, want 1", ppid)
	}
	cg, err := os.ReadFile("/proc/self/cgroup")
	if err != nil || !strings.Contains(string(cg), "0::/stage\n") {
		t.Errorf("own cgroup: %s (%v)", cg, err)
	}
	ifs, err := net.Interfaces()
	if err != nil || len(ifs) != 1 || ifs[0].Flags&net.FlagUp == 0 {
		t.Errorf("interfaces: %v (%v), want lo alone, up", ifs, err)
	}
	if _, err := os.Stat("/run/systemd"); err == nil {
		t.Error("/run is the host's")
	}
}

func TestPushedImageCanBeFetched(t *testing.T) {
	s := needStage(t)
	ctx := context.Background()
	ref, img, err := s.SeedBusybox(ctx, "try/busybox", "1")
	if err != nil {
		t.Fatal(err)
	}
	if ref != Host+"/try/busybox:1" {
		t.Error("reference:", ref)
	}
	again, err := BusyboxImage("try/busybox:1")
	if err != nil || again.Digest() != img.Digest() {
		t.Errorf("the same image again: %v, %v, want %s", again.Digest(), err, img.Digest())
	}
	var got bytes.Buffer
	cmd := exec.Command(busyboxPath(), "wget", "-q", "-O", "-", "http://"+s.Registry.Addr()+"/v2/try/busybox/manifests/1")
	cmd.Stdout = &got
	if err := cmd.Run(); err != nil || !bytes.Equal(got.Bytes(), img.Manifest) {
		t.Errorf("fetched manifest: %v\n%s", err, got.String())
	}
}

// TestLeaksAreSeen leaves one thing of each kind behind and wants it in the list.
func TestLeaksAreSeen(t *testing.T) {
	s := needStage(t)
	mnt, forgot := t.TempDir(), "/sys/fs/cgroup"+s.pods+"/forgot"
	for what, c := range map[string]struct{ make, remove func() error }{
		"process": startStop(exec.Command(busyboxPath(), "sleep", "1000")),
		"mount tmpfs": {
			func() error { return unix.Mount("tmpfs", mnt, "tmpfs", 0, "") },
			func() error { return unix.Unmount(mnt, 0) },
		},
		"path /run/netns/x":      touchRemove("/run/netns/x"),
		"ipam/vitrine/10.86.0.7": touchRemove(s.ipamDir + "/vitrine/10.86.0.7"),
		"cni-cache/results/r":    touchRemove(s.cniCache + "/results/r"),
		s.RunDir + "/pods/0123":  touchRemove(s.RunDir + "/pods/0123/pod.json"),
		s.Root + "/upper/0123":   touchRemove(s.Root + "/upper/0123/file"),
		"path " + forgot:         {func() error { return os.Mkdir(forgot, 0o755) }, func() error { return os.Remove(forgot) }},
		"interface left0":        {func() error { return bridge(unix.SIOCBRADDBR, "left0") }, func() error { return bridge(unix.SIOCBRDELBR, "left0") }},
	} {
		t.Run(what, func(t *testing.T) {
			before := s.Traces()
			if err := c.make(); err != nil {
				t.Fatal(err)
			}
			left := strings.Join(s.Traces().Left(before), "\n")
			if !strings.Contains(left, what) {
				t.Errorf("not seen; left: %q", left)
			}
			if err := c.remove(); err != nil {
				t.Fatal(err)
			}
			if left := s.Settle(before); left != nil {
				t.Errorf("left after removal: %q", left)
			}
		})
	}
}

func startStop(cmd *exec.Cmd) struct{ make, remove func() error } {
	return struct{ make, remove func() error }{cmd.Start, func() error {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		return nil
	}}
}

// touchRemove makes a file with its directories; what it made of them is removed again.
func touchRemove(path string) struct{ make, remove func() error } {
	first := path
	for {
		if _, err := os.Stat(filepath.Dir(first)); err == nil {
			break
		}
		first = filepath.Dir(first)
	}
	return struct{ make, remove func() error }{
		func() error {
			return errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o644))
		},
		func() error { return os.RemoveAll(first) },
	}
}

// bridge makes or removes a bridge, the one interface that can be made without netlink.
func bridge(request uintptr, name string) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	b := append([]byte(name), 0)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), request, uintptr(unsafe.Pointer(&b[0]))); errno != 0 {
		return errno
	}
	return nil
}
