package sys

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Files are read to their end, whatever size they say they have.
func TestReadFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "file")
	for _, size := range []int{0, 1, 4095, 4096, 4097, 300000} {
		want := bytes.Repeat([]byte("x"), size)
		if err := os.WriteFile(name, want, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := ReadFile(name); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%d bytes of %d, %v", len(got), size, err)
		}
	}
	want, err := os.ReadFile("/proc/kallsyms") // says 0, and has some hundred kilobytes
	if err != nil {
		t.Fatal(err)
	}
	if got, err := ReadFile("/proc/kallsyms"); err != nil || len(got) < len(want)/2 {
		t.Errorf("%d bytes of %d, %v", len(got), len(want), err)
	}
	if _, err := ReadFile(name + "x"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := ReadFile(t.TempDir()); !errors.Is(err, unix.EISDIR) {
		t.Error(err)
	}
}

func TestOpenFile(t *testing.T) {
	f, err := OpenFile(t.TempDir(), unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if names, err := f.Readdirnames(-1); err != nil || len(names) > 0 {
		t.Error(names, err)
	}
	if flags, err := unix.FcntlInt(f.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Error(flags, err)
	}
	if _, err := OpenFile("/dev/null", unix.O_RDONLY|unix.O_DIRECTORY, 0); !errors.Is(err, unix.ENOTDIR) {
		t.Error(err)
	}
}
