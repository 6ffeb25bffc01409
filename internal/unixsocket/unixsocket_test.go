package unixsocket

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestStale(t *testing.T) {
	dir := t.TempDir()
	file, link, left, live := filepath.Join(dir, "file"), filepath.Join(dir, "link"), filepath.Join(dir, "left"), filepath.Join(dir, "live")
	listen := func(path string) *net.UnixListener {
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		t.Cleanup(func() { l.Close() })
		return l
	}
	listen(left).Close()
	listen(live)
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(live, link); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]struct {
		stale bool
		text  string
	}{
		filepath.Join(dir, "none"): {}, left: {stale: true}, live: {text: "listens"},
		file: {text: "no socket"}, link: {text: "no socket"}, file + "/x": {text: "not a directory"},
		filepath.Join(dir, strings.Repeat("a", maxPath)): {text: "at most 107 bytes"},
	} {
		stale, err := Stale(path)
		if stale != want.stale || (err == nil) != (want.text == "") || err != nil && !strings.Contains(err.Error(), want.text) {
			t.Errorf("%s: %v, %v", filepath.Base(path), stale, err)
		}
	}
}
