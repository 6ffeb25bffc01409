package sandbox

import (
	"bytes"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// doubtful is a terminal's master whose reads come between the last words and the end, as they may in the kernel: see
// oci/crilog's TestTerminalsLastWords, which has them come so.
type doubtful struct {
	outletFile
	late int // reads that find nothing yet, and the other side closed
}

func (d *doubtful) Read(b []byte) (int, error) {
	if d.late--; d.late >= 0 {
		return 0, &os.PathError{Op: "read", Path: "terminal", Err: unix.EIO}
	}
	return d.outletFile.Read(b)
}

// TestOutletsLastWords: one EIO of a terminal is not its end, and the second is.
func TestOutletsLastWords(t *testing.T) {
	for late, want := range []string{"last words", "last words", ""} {
		master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer master.Close()
		raw, err := master.SyscallConn()
		if err != nil {
			t.Fatal(err)
		}
		var slave uintptr
		_ = raw.Control(func(fd uintptr) {
			if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
				slave, _, _ = unix.Syscall(unix.SYS_IOCTL, fd, unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Write(int(slave), []byte("last words")); err != nil {
			t.Fatalf("write to the terminal: %v", err)
		}
		unix.Close(int(slave))
		var got bytes.Buffer
		o := pump(&doubtful{master, late}, &got)
		select {
		case <-o.over:
		case <-time.After(10 * time.Second):
			t.Fatalf("%d reads too late: the outlet does not end", late)
		}
		if got.String() != want {
			t.Errorf("%d reads too late: %q, not %q", late, got.String(), want)
		}
	}
}
