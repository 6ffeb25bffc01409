package sys

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const mapperEnv = "VITRINE_TEST_MAPPER"

// stranger starts a process in a user namespace that nobody has mapped.
func stranger(t *testing.T) int {
	t.Helper()
	if out, err := exec.Command("unshare", "--user", "true").CombinedOutput(); err != nil {
		t.Skipf("needs unshare(1) and a kernel that lets it make user namespaces: %v %s", err, out)
	}
	cmd := exec.Command("unshare", "--user", "sleep", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	dir := "/proc/" + strconv.Itoa(cmd.Process.Pid)
	for range 2000 {
		ours, _ := os.Readlink("/proc/self/ns/user")
		if theirs, _ := os.Readlink(dir + "/ns/user"); theirs != "" && theirs != ours {
			return cmd.Process.Pid
		}
		time.Sleep(time.Millisecond)
	}
	t.Fatal("unshare(1) has made no user namespace for two seconds")
	return 0
}

// TestIDMapsUnprivileged has a user without privileges map what is his, and ask the
// helpers for what is not.
func TestIDMapsUnprivileged(t *testing.T) {
	if os.Getenv(mapperEnv) != "" {
		unprivileged(t)
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: becomes somebody else")
	}
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestIDMapsUnprivileged$", "-test.v")
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), mapperEnv+"=1", "TMPDIR=/tmp")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1234, Gid: 1234}}
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "PASS") {
		t.Fatalf("%v\n%s", err, out)
	}
}

func unprivileged(t *testing.T) {
	own := []IDMap{{Outside: 1234, Count: 1}}
	pid := stranger(t)
	if err := (&IDMaps{UIDs: own, GIDs: own, DenySetgroups: true}).Write(-1, pid); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"uid_map": "0 1234 1", "gid_map": "0 1234 1", "setgroups": "deny"} {
		b, _ := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), file))
		if got := strings.Join(strings.Fields(string(b)), " "); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if err := (&IDMaps{UIDs: own, GIDs: own}).Write(-1, stranger(t)); !errors.Is(err, unix.EPERM) {
		t.Errorf("own group without a denial of setgroups: %v", err)
	}
	more := append(own, IDMap{Inside: 1, Outside: 100000, Count: 65536})
	m := &IDMaps{UIDs: more, GIDs: more, Helpers: true}
	pid = stranger(t)
	was := helperDirs
	defer func() { helperDirs = was }()
	helperDirs = []string{"/nonexistent"}
	if err := m.Write(-1, pid); !errors.Is(err, unix.ENOENT) {
		t.Errorf("without helpers: %v", err)
	}
	dir := t.TempDir()
	t.Setenv("PATH", dir+":"+os.Getenv("PATH")) // is not asked
	hostile := []byte("#!/bin/sh\necho hostile >>" + dir + "/said\n")
	os.WriteFile(filepath.Join(dir, "newuidmap"), hostile, 0o755)
	if err := m.Write(-1, pid); !errors.Is(err, unix.ENOENT) {
		t.Errorf("with helpers in $PATH only: %v", err)
	}
	helperDirs = []string{dir}
	said := filepath.Join(dir, "said")
	for _, name := range []string{"newuidmap", "newgidmap"} {
		os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho ${0##*/} $* >>"+said+"\n"), 0o755)
	}
	if err := m.Write(-1, pid); err != nil {
		t.Error(err)
	}
	b, _ := os.ReadFile(said)
	args := " " + strconv.Itoa(pid) + " 0 1234 1 1 100000 65536\n"
	if string(b) != "newuidmap"+args+"newgidmap"+args {
		t.Errorf("helpers were called with %q", b)
	}
	os.WriteFile(filepath.Join(dir, "newgidmap"), []byte("#!/bin/sh\necho not yours >&2; exit 1\n"), 0o755)
	if err := m.Write(-1, pid); err == nil || !strings.Contains(err.Error(), "newgidmap") || !strings.Contains(err.Error(), "not yours") {
		t.Errorf("refusing helper: %v", err)
	}
	os.WriteFile(filepath.Join(dir, "newgidmap"), []byte("#!/bin/sh\nenv >"+said+"; exec sleep 1000\n"), 0o755)
	limit := helperTime
	helperTime = 5 * time.Second // newuidmap is to be through with it, also in a slow guest
	defer func() { helperTime = limit }()
	if err := m.Write(-1, pid); err == nil || !strings.Contains(err.Error(), "newgidmap: signal: killed") {
		t.Errorf("helper that hangs: %v", err)
	}
	if b, _ := os.ReadFile(said); strings.Contains(string(b), mapperEnv) || strings.Contains(string(b), "PATH="+dir) {
		t.Errorf("a helper's environment is %s", b)
	}
}

// TestIDMapsBadInput: no process, no procfs, too many lines, lines that overlap.
func TestIDMapsBadInput(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: maps ids that are not its own")
	}
	one := []IDMap{{Outside: 1000, Count: 1}}
	if err := (&IDMaps{UIDs: one, GIDs: one}).Write(-1, 1<<22+1); !errors.Is(err, unix.ENOENT) {
		t.Errorf("no process: %v", err)
	}
	fake := t.TempDir()
	os.Mkdir(filepath.Join(fake, "7"), 0o755)
	os.WriteFile(filepath.Join(fake, "7/uid_map"), nil, 0o644)
	dir, err := OpenAt2(unix.AT_FDCWD, fake, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := (&IDMaps{UIDs: one, GIDs: one}).Write(dir.Int(), 7); !errors.Is(err, unix.EXDEV) {
		t.Errorf("directory that is no procfs: %v", err)
	}
	if b, _ := os.ReadFile(filepath.Join(fake, "7/uid_map")); len(b) > 0 {
		t.Errorf("written to a file that is no procfs's: %q", b)
	}
	pid := stranger(t)
	many := make([]IDMap, 1000)
	for i := range many {
		many[i] = IDMap{Inside: uint32(i), Outside: uint32(5000 + i), Count: 1}
	}
	for name, lines := range map[string][]IDMap{"a page": many, "overlap": {one[0], one[0]}} {
		if err := (&IDMaps{UIDs: lines, GIDs: one}).Write(-1, pid); !errors.Is(err, unix.EINVAL) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := (&IDMaps{UIDs: one, GIDs: one}).Write(-1, pid); err != nil {
		t.Error(err)
	}
}
