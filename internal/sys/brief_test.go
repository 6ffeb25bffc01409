package sys

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestBriefFiles writes, renames and reads a file by brief calls.
func TestBriefFiles(t *testing.T) {
	at := t.TempDir()
	dir, err := OpenAt2(unix.AT_FDCWD, at, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.BriefClose()
	fd, err := BriefOpen(dir.Int(), "a", unix.O_RDWR|unix.O_CREAT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("descriptor flags %d, %v", flags, err)
	}
	if n, err := BriefWrite(fd, []byte("text")); n != 4 || err != nil {
		t.Errorf("write: %d, %v", n, err)
	}
	BriefClose(fd)
	if _, err := BriefWrite(fd, []byte("x")); !errors.Is(err, unix.EBADF) {
		t.Errorf("write to what was closed: %v", err)
	}
	if err := BriefRename(dir.Int(), "a", "b"); err != nil {
		t.Error(err)
	}
	if err := BriefExists(dir.Int(), "a"); !errors.Is(err, unix.ENOENT) {
		t.Errorf("old name: %v", err)
	}
	if err := BriefExists(dir.Int(), "b"); err != nil {
		t.Errorf("new name: %v", err)
	}
	if b, err := os.ReadFile(filepath.Join(at, "b")); string(b) != "text" || err != nil {
		t.Errorf("%q, %v", b, err)
	}
	if _, err := BriefOpen(dir.Int(), "none", unix.O_RDONLY, 0); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("open what is not there: %v", err)
	}
	if _, err := BriefOpen(dir.Int(), "a\x00b", unix.O_RDONLY, 0); !errors.Is(err, unix.EINVAL) {
		t.Errorf("open a name with a zero: %v", err)
	}
}

// TestBriefMapping maps a memfd.
func TestBriefMapping(t *testing.T) {
	text := bytes.Repeat([]byte("0123456789"), 1000)
	mem, err := SealedMemfd("test", text, false)
	if err != nil {
		t.Fatal(err)
	}
	defer mem.Close()
	b, err := BriefMap(mem.Int(), len(text), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(b, text) {
		t.Error("other content")
	}
	if err := BriefAdvise(b, unix.MADV_DONTFORK); err != nil {
		t.Error(err)
	}
	if err := BriefUnmap(b); err != nil {
		t.Error(err)
	}
	if _, err := BriefMap(-1, 4096, unix.PROT_READ, unix.MAP_PRIVATE); !errors.Is(err, unix.EBADF) {
		t.Errorf("map nothing: %v", err)
	}
}

// TestMessages sends bytes with a descriptor and without.
func TestMessages(t *testing.T) {
	p, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(p[0])
	defer unix.Close(p[1])
	b, oob := make([]byte, 3), make([]byte, 64)
	if _, _, _, err := ReceiveMessage(p[1], b, oob, unix.MSG_DONTWAIT); err != unix.EAGAIN { //nolint:errorlint // a bare errno is what is promised
		t.Errorf("nothing there: %v", err)
	}
	if n, err := SendMessage(p[0], []byte("four"), unix.UnixRights(p[0]), unix.MSG_DONTWAIT); n != 4 || err != nil {
		t.Errorf("send: %d, %v", n, err)
	}
	n, oobn, flags, err := ReceiveMessage(p[1], b, oob, unix.MSG_CMSG_CLOEXEC)
	if n != 3 || oobn != unix.CmsgSpace(4) || flags&unix.MSG_TRUNC == 0 || err != nil {
		t.Errorf("receive: %d, %d, %#x, %v", n, oobn, flags, err)
	}
	msgs, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil {
		t.Fatal(err)
	}
	fds, err := unix.ParseUnixRights(&msgs[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("%v, %v", fds, err)
	}
	unix.Close(fds[0])
	if n, err := SendMessage(p[0], nil, nil, 0); n != 0 || err != nil {
		t.Errorf("send nothing: %d, %v", n, err)
	}
}
