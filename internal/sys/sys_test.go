package sys

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func openNull(t *testing.T) *FD {
	t.Helper()
	n, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return NewFD(n)
}

func valid(n int) bool {
	_, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
	return err == nil
}

func TestFDHasOneOwner(t *testing.T) {
	f := openNull(t)
	n := f.Int()
	d, err := f.Dup()
	if err != nil || !valid(d.Int()) || d.Int() == n {
		t.Fatalf("Dup = %v, %v", d, err)
	}
	if got := d.Disown(); got < 0 || d.Int() != -1 || d.Close() != nil || !valid(got) {
		t.Error("a disowned descriptor was closed")
	} else {
		unix.Close(got)
	}
	for range 2 {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	}
	if valid(n) || f.Int() != -1 || f.Disown() != -1 {
		t.Error("descriptor open after Close")
	}
	var none *FD
	if none.Close() != nil || none.Int() != -1 {
		t.Error("nil FD")
	}
}

func TestCloseDoesNotCloseTwice(t *testing.T) {
	var f, g *FD
	for n := -1; g.Int() != n || n < 0; { // until no other goroutine takes the number in between
		g.Close()
		f = openNull(t)
		n = f.Int()
		f.Close()
		g = openNull(t)
	}
	defer g.Close()
	f.Close()
	if !valid(g.Int()) {
		t.Error("second Close closed somebody else's descriptor")
	}
}

func TestForgottenFDIsClosed(t *testing.T) {
	n := func() int { return openNull(t).Int() }()
	for range 50 {
		runtime.GC()
		if !valid(n) {
			return
		}
		time.Sleep(time.Millisecond)
	}
	t.Error("an unreachable FD stays open")
}

func TestSealedMemfd(t *testing.T) {
	f, err := SealedMemfd("test", []byte("content"), false)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	seals, err := unix.FcntlInt(uintptr(f.Int()), unix.F_GET_SEALS, 0)
	const want = unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if err != nil || seals&want != want {
		t.Errorf("seals %#x, %v", seals, err)
	}
	if _, err := unix.Pwrite(f.Int(), []byte("x"), 0); !errors.Is(err, unix.EPERM) {
		t.Errorf("write to a sealed memfd: %v", err)
	}
	d, err := f.Dup()
	if err != nil {
		t.Fatal(err)
	}
	file := d.File("memfd")
	defer file.Close()
	if b, err := io.ReadAll(io.NewSectionReader(file, 0, 100)); err != nil || string(b) != "content" {
		t.Errorf("content %q, %v", b, err)
	}
}

func TestMemfdExecutes(t *testing.T) {
	b, err := os.ReadFile("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	f, err := SealedMemfd("true", b, true)
	if err != nil {
		t.Fatal(err)
	}
	d, err := f.Dup()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command("/proc/self/fd/3")
	cmd.ExtraFiles = []*os.File{d.File("true")}
	defer cmd.ExtraFiles[0].Close()
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	if _, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(f.Int()), os.O_WRONLY, 0); err == nil {
		if _, err := unix.Pwrite(f.Int(), []byte("x"), 0); err == nil {
			t.Error("a sealed executable can be written")
		}
	}
}

func TestPidfd(t *testing.T) {
	cmd := exec.Command("sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	fd, err := PidfdOpen(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	defer fd.Close()
	stdin, err := PidfdGetfd(fd, 0)
	if errors.Is(err, unix.EPERM) {
		t.Log("no ptrace rights here: pidfd_getfd not tried")
	} else if err != nil {
		t.Error(err)
	}
	stdin.Close()
	if err := PidfdSignal(fd, unix.SIGKILL); err != nil {
		t.Error(err)
	}
	cmd.Wait()
	if err := PidfdSignal(fd, unix.SIGKILL); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("signal to a reaped process: %v", err)
	}
}

// TestOpenAt2IsRepeated: somebody who renames something else is no reason to fail.
func TestOpenAt2IsRepeated(t *testing.T) {
	dir := t.TempDir()
	if err := errors.Join(os.Mkdir(dir+"/d", 0o755), os.Mkdir(dir+"/a", 0o755), os.WriteFile(dir+"/f", nil, 0o644)); err != nil {
		t.Fatal(err)
	}
	root, err := OpenAt2(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	done := make(chan error)
	go func() { // ends with the loop below
		var err error
		for err == nil {
			err = errors.Join(os.Rename(dir+"/a", dir+"/b"), os.Rename(dir+"/b", dir+"/a"))
			select {
			case done <- err:
				return
			default:
			}
		}
		done <- err
	}()
	path := strings.Repeat("d/../", 800) + "f"
	for range 3000 {
		f, err := OpenAt2(root.Int(), path, unix.O_PATH, unix.RESOLVE_IN_ROOT)
		if err != nil {
			t.Error(err)
			break
		}
		f.Close()
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestOpenAt2StaysInside(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(filepath.Join(dir, "passwd"), []byte("inside"), 0o600)
	os.Mkdir(filepath.Join(dir, "etc"), 0o700)
	os.Symlink("/../../passwd", filepath.Join(dir, "etc", "passwd"))
	root, err := OpenAt2(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	f, err := OpenAt2(root.Int(), "etc/passwd", unix.O_RDONLY, unix.RESOLVE_IN_ROOT)
	if err != nil {
		t.Fatal(err)
	}
	file := f.File("passwd")
	defer file.Close()
	if b, _ := io.ReadAll(file); string(b) != "inside" {
		t.Errorf("read %q", b)
	}
	if _, err := OpenAt2(root.Int(), "etc/passwd", unix.O_RDONLY, unix.RESOLVE_BENEATH); !errors.Is(err, unix.EXDEV) {
		t.Errorf("RESOLVE_BENEATH: %v", err)
	}
	if _, err := OpenAt2(root.Int(), "missing", unix.O_RDONLY, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}
