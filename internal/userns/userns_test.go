package userns

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

func maps(host, n uint32) sys.IDMaps {
	l := []sys.IDMap{{Inside: 0, Outside: host, Count: n}}
	return sys.IDMaps{UIDs: l, GIDs: l}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: maps ids that are not ours")
	}
}

// TestMake makes namespaces, and finds that they belong together, that a thread can enter them, and that nothing but the
// descriptors is left.
func TestMake(t *testing.T) {
	needRoot(t)
	for _, flags := range []uint32{0, unix.CLONE_NEWIPC, unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS} {
		s, err := Make(maps(200000, 65536), flags)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for _, ns := range []struct {
			name string
			fd   *sys.FD
			flag uint32
		}{{"net", s.Net, unix.CLONE_NEWNET}, {"ipc", s.IPC, unix.CLONE_NEWIPC}, {"uts", s.UTS, unix.CLONE_NEWUTS}} {
			if (ns.fd != nil) != (flags&ns.flag != 0) {
				t.Fatalf("flags %#x: %s: %v", flags, ns.name, ns.fd)
			}
			if ns.fd == nil {
				continue
			}
			owner, err := Owner(ns.fd)
			if err != nil {
				t.Fatal(err)
			}
			defer owner.Close()
			if inode(t, owner) != inode(t, s.User) {
				t.Errorf("%s belongs to another user namespace", ns.name)
			}
			err = sys.OnLostThread(func() error {
				if err := s.Enter(); err != nil {
					return err
				}
				var at unix.Stat_t
				if err := unix.Stat("/proc/thread-self/ns/"+ns.name, &at); err != nil || at.Ino != inode(t, ns.fd) {
					return fmt.Errorf("in %s %d: %w", ns.name, at.Ino, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		}
	}
}

func inode(t *testing.T, f *sys.FD) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Fstat(f.Int(), &st); err != nil {
		t.Fatal(err)
	}
	return st.Ino
}

// TestMakeFails: the kernel refuses, and what it says arrives.
func TestMakeFails(t *testing.T) {
	needRoot(t)
	if _, err := Make(maps(1, 0), 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("an empty map: %v", err)
	}
	if _, err := Make(maps(1, 1), unix.CLONE_PIDFD); !errors.Is(err, unix.EINVAL) {
		t.Errorf("flags that unshare does not know: %v", err)
	}
}

// TestMakeNoMore: the limit of the machine arrives as ENOSPC. The limit is that of a user namespace around the test, since this
// one's takes a capability that root need not have.
func TestMakeNoMore(t *testing.T) {
	needRoot(t)
	if os.Getenv("VITRINE_TEST_LIMITED") != "" {
		if err := os.WriteFile("/proc/sys/user/max_user_namespaces", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
		if _, err := Make(maps(0, 1), 0); !errors.Is(err, unix.ENOSPC) {
			t.Errorf("one too many: %v", err)
		}
		return
	}
	all := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 0, Size: 65536}}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestMakeNoMore$", "-test.v")
	cmd.Env = append(os.Environ(), "VITRINE_TEST_LIMITED=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER, UidMappings: all, GidMappings: all, GidMappingsEnableSetgroups: true}
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestMakeNoMore") {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestIDMap maps a directory and finds its owner changed, and is refused where the filesystem cannot.
func TestIDMap(t *testing.T) {
	needRoot(t)
	s, err := Make(maps(200000, 65536), 0)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	ours := t.TempDir() // a tmpfs could not before Linux 6.3
	for dir, want := range map[string]error{ours: nil, "/proc": unix.EINVAL} {
		fd, err := sys.OpenTree(unix.AT_FDCWD, dir, unix.OPEN_TREE_CLONE)
		if err != nil {
			t.Fatal(err)
		}
		defer fd.Close()
		if err := sys.MountIDMap(fd, s.User, true); !errors.Is(err, want) {
			t.Errorf("%s: %v, not %v", dir, err, want)
		}
		var st unix.Stat_t
		if err := unix.Fstat(fd.Int(), &st); err != nil {
			t.Fatal(err)
		}
		if want == nil && (st.Uid != 200000 || st.Gid != 200000) {
			t.Errorf("%s belongs to %d:%d", dir, st.Uid, st.Gid)
		}
	}
}
