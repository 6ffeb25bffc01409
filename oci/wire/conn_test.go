package wire

import (
	"errors"
	"io"
	"os"
	"reflect"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// pair returns a connection between a daemon's and a monitor's end, and the raw
// descriptor of the daemon's.
func pair(t *testing.T) (daemon, monitor *Conn, raw int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if daemon, err = NewConn(sys.NewFD(fds[0]), DecodeReply); err != nil {
		t.Fatal(err)
	}
	if monitor, err = NewConn(sys.NewFD(fds[1]), DecodeRequest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { daemon.Close(); monitor.Close() })
	return daemon, monitor, fds[0]
}

func openFDs(t *testing.T) int {
	t.Helper()
	d, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(d)
}

func TestConnPassesFiles(t *testing.T) {
	daemon, monitor, _ := pair(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	before := openFDs(t)
	want := &Exec{ID: "c", Stdio: 2}
	if err := daemon.Send(1, 5, want, []int{int(r.Fd()), int(w.Fd())}); err != nil {
		t.Fatal(err)
	}
	p, err := monitor.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p.Body, want) || p.ID != 5 || len(p.Files) != 2 {
		t.Fatalf("got %+v", p)
	}
	taken := p.Take(1)
	if flags, _ := unix.FcntlInt(uintptr(taken.Int()), unix.F_GETFD, 0); flags&unix.FD_CLOEXEC == 0 {
		t.Error("a received descriptor would survive an execve")
	}
	p.Close()
	if _, err := unix.Write(taken.Int(), []byte("x")); err != nil {
		t.Errorf("what was taken was closed: %v", err)
	}
	taken.Close()
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors instead of %d", n, before)
	}
	cred, err := monitor.PeerCred()
	if err != nil || cred.Pid != int32(os.Getpid()) || cred.Uid != uint32(os.Getuid()) {
		t.Errorf("peer %+v, %v", cred, err)
	}
}

func TestConnLargeBody(t *testing.T) {
	daemon, monitor, _ := pair(t)
	before := openFDs(t)
	want := &States{List: make([]State, 3000)}
	want.List[2999].ID = "last"
	if err := monitor.Send(1, 1, want, nil); err != nil {
		t.Fatal(err)
	}
	p, err := daemon.Recv()
	if err != nil {
		t.Fatal(err)
	}
	if !p.Memfd || !reflect.DeepEqual(p.Body, want) {
		t.Errorf("memfd %v, %d states", p.Memfd, len(p.Body.(*States).List))
	}
	if n := openFDs(t); n != before {
		t.Errorf("%d descriptors instead of %d", n, before)
	}
}

// Whatever is refused leaves no descriptor behind.
func TestConnRefusals(t *testing.T) {
	plain, err := unix.MemfdCreate("unsealed", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(plain)
	if _, err := unix.Write(plain, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	short, err := sys.SealedMemfd("short", make([]byte, 4), false)
	if err != nil {
		t.Fatal(err)
	}
	defer short.Close()
	hello, err := Encode(1, 1, &Hello{})
	if err != nil {
		t.Fatal(err)
	}
	inMemfd := Header{Version: 1, Type: TypeHello, ID: 1, Length: 100, Memfd: true}.append(nil)
	for name, c := range map[string]struct {
		b     []byte
		files []int
	}{
		"garbage":           {[]byte("GET / HTTP/1.1\r\n\r\n12345678"), nil},
		"files unasked for": {hello, []int{plain, plain}},
		"memfd missing":     {inMemfd, nil},
		"memfd not sealed":  {inMemfd, []int{plain}},
		"memfd too short":   {inMemfd, []int{short.Int()}},
		"cut short":         {make([]byte, HeaderSize+MaxInline+1), []int{plain}},
	} {
		_, monitor, raw := pair(t)
		before := openFDs(t)
		if err := unix.Sendmsg(raw, c.b, rights(c.files), nil, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := monitor.Recv(); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		if n := openFDs(t); n != before {
			t.Errorf("%s: %d descriptors instead of %d", name, n, before)
		}
	}
}

func rights(files []int) []byte {
	if len(files) == 0 {
		return nil
	}
	return unix.UnixRights(files...)
}

func TestConnEnds(t *testing.T) {
	daemon, monitor, _ := pair(t)
	done := make(chan error)
	go func() { _, err := monitor.Recv(); done <- err }()
	daemon.Close()
	if err := <-done; !errors.Is(err, io.EOF) {
		t.Errorf("after the peer's close: %v", err)
	}
	_, monitor, _ = pair(t) // whose peer lives, or the end that it is told of would be either's
	go func() { _, err := monitor.Recv(); done <- err }()
	monitor.Close()
	if err := <-done; !errors.Is(err, os.ErrClosed) {
		t.Errorf("after its own close: %v", err)
	}
}

// A peer that has stopped reading blocks nobody.
func TestConnNeverBlocks(t *testing.T) {
	daemon, monitor, _ := pair(t)
	sent := 0
	for ; sent < 100000; sent++ {
		if err := monitor.Send(1, 0, &Exited{ID: "c"}, nil); err != nil {
			if !errors.Is(err, ErrBlocked) {
				t.Fatal(err)
			}
			break
		}
	}
	if sent < 100 || sent == 100000 {
		t.Errorf("blocked after %d messages", sent)
	}
	if _, err := daemon.Recv(); err != nil {
		t.Fatal(err)
	}
	for range sent / 2 {
		if _, err := daemon.Recv(); err != nil {
			t.Fatal(err)
		}
	}
	if err := monitor.Send(1, 0, &Exited{ID: "c"}, nil); err != nil {
		t.Errorf("after the peer reads again: %v", err)
	}
}

func TestConnFileCount(t *testing.T) {
	daemon, _, _ := pair(t)
	if err := daemon.Send(1, 1, &Create{ID: "c"}, nil); !errors.Is(err, ErrMalformed) {
		t.Errorf("a create without its files: %v", err)
	}
}
