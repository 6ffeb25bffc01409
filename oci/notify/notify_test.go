package notify

import (
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/notify/notifytest"
)

// listen listens at a path, however long.
func listen(t *testing.T, path string) *net.UnixListener {
	t.Helper()
	l, err := notifytest.Listen(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// TestSend: a path that is longer than an address, and a message that does not
// fit into the socket at once.
func TestSend(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("d", 90), "sock")
	os.Mkdir(filepath.Dir(path), 0o700)
	l := listen(t, path)
	state := specs.State{Version: specs.Version, ID: "x", Status: specs.StateCreated, Pid: Unknown,
		Annotations: map[string]string{"long": strings.Repeat("a", 1<<20), `"pid":-1`: `,"pid":-1,`}}
	message, err := Message(state, `"pid":-1`)
	if err != nil {
		t.Fatal(err)
	}
	sock, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	sent := make(chan error)
	go func() { // ends when all is sent
		file, err := sys.SealedMemfd("listener", []byte("hello"), false)
		if err == nil {
			err = Send(sock.Int(), message, 4242, file)
			file.Close()
		}
		sock.Close()
		sent <- err
	}()
	got, fd, err := notifytest.Receive(c)
	if err := errors.Join(err, <-sent); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	var s specs.ContainerProcessState
	if err := json.Unmarshal(got, &s); err != nil {
		t.Fatal(err)
	}
	if s.Pid != 4242 || s.State.Pid != 4242 || s.Metadata != `"pid":-1` || s.State.Annotations[`"pid":-1`] != `,"pid":-1,` {
		t.Errorf("%d, %d, %q", s.Pid, s.State.Pid, s.Metadata)
	}
	text := make([]byte, 8)
	if n, _ := unix.Pread(fd, text, 0); string(text[:n]) != "hello" {
		t.Errorf("descriptor of %q", text)
	}
}

func TestDial(t *testing.T) {
	dir := t.TempDir()
	os.WriteFile(dir+"/file", nil, 0o600)
	for path, want := range map[string]error{
		"": unix.EINVAL, "relative": unix.EINVAL, "/a\x00b": unix.EINVAL, dir + "/none": unix.ENOENT, dir + "/file": unix.ECONNREFUSED, dir: unix.ECONNREFUSED,
		dir + "/" + strings.Repeat("x", 200): unix.EINVAL, dir + "/" + strings.Repeat("x", 108) + "/sock": unix.ENOENT,
	} {
		if _, err := Dial(path); !errors.Is(err, want) {
			t.Errorf("%.50q: %v, want %v", path, err, want)
		}
	}
	// Nobody reads any more.
	path := dir + "/sock"
	l := listen(t, path)
	sock, err := Dial(path)
	if err != nil {
		t.Fatal(err)
	}
	defer sock.Close()
	c, err := l.AcceptUnix()
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := Send(sock.Int(), []byte("x"), 1, sock); !errors.Is(err, unix.EPIPE) {
		t.Errorf("Send = %v", err)
	}
}
