package cni

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The environment of a test binary that runs again in namespaces of its own, and
// of one that plays a daemon which is going to be killed, or a debugger.
const (
	surroundingsEnv = "VITRINE_TEST_SURROUNDINGS"
	daemonEnv       = "VITRINE_TEST_DAEMON"
	debuggerEnv     = "VITRINE_TEST_DEBUGGER"
)

// TestMain runs the tests in a network and mount namespace of their own if it is
// root: bridges, pinned namespaces and firewall rules end with them.
func TestMain(m *testing.M) {
	if dir := os.Getenv(daemonEnv); dir != "" {
		daemon(dir)
		return
	}
	if pid, err := strconv.Atoi(os.Getenv(debuggerEnv)); err == nil {
		debugger(pid)
		return
	}
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(surroundingsEnv) != "" {
		if err := settle(); err != nil {
			fmt.Fprintln(os.Stderr, "private namespaces:", err)
			os.Exit(1)
		}
		os.Exit(m.Run())
	}
	runtime.LockOSThread() // Pdeathsig means this thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), surroundingsEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "tests in private namespaces:", err)
		os.Exit(1)
	}
}

// settle hides the host's /run, where plugins and iptables keep locks.
func settle() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("none", "/run", "tmpfs", 0, ""); err != nil {
		return err
	}
	return setUp("lo")
}

// daemon connects a pod by a plugin that hangs, and is killed meanwhile.
func daemon(dir string) {
	n, err := New(config(dir))
	if err == nil {
		_, err = n.Add(context.Background(), pod("stray", os.Getenv("VITRINE_TEST_NETNS")))
	}
	fmt.Fprintln(os.Stderr, "daemon was not killed:", err)
	os.Exit(1)
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: network namespaces")
	}
}

// config is that of a network all of whose directories are in dir.
func config(dir string) Config {
	return Config{
		ConfDir: dir + "/conf", BinDirs: []string{dir + "/bin"}, CacheDir: dir + "/cache", StateDir: dir + "/state",
	}
}

func pod(id, netns string) Pod {
	return Pod{ID: id, Name: "name-" + id, Namespace: "default", UID: "uid-" + id, NetNS: netns}
}

// network is a Network under test and its directories.
type network struct {
	*Network
	t   *testing.T
	dir string
}

func newNetwork(t *testing.T) *network {
	t.Helper()
	n := &network{t: t, dir: t.TempDir()}
	must(t, os.MkdirAll(n.dir+"/conf", 0o755), os.MkdirAll(n.dir+"/bin", 0o755))
	n.restart()
	return n
}

// restart is what remains after the end of a daemon, however that came: a new
// Network over the same directories.
func (n *network) restart() {
	n.t.Helper()
	var err error
	n.Network, err = New(config(n.dir))
	must(n.t, err)
}

// conf writes a configuration file.
func (n *network) conf(name, text string) {
	n.t.Helper()
	must(n.t, os.MkdirAll(filepath.Dir(n.dir+"/conf/"+name), 0o755), os.WriteFile(n.dir+"/conf/"+name, []byte(text), 0o644))
}

// list writes a list of plugins, each named by its type or as an object.
func (n *network) list(version string, plugins ...string) {
	n.t.Helper()
	for i, p := range plugins {
		if !strings.HasPrefix(p, "{") {
			plugins[i] = fmt.Sprintf(`{"type":%q}`, p)
		}
	}
	n.conf("10-test.conflist", fmt.Sprintf(`{"cniVersion":%q,"name":"test","plugins":[%s]}`, version, strings.Join(plugins, ",")))
}

// script installs a plugin. It notes each call in the file "calls" as verb, id
// and namespace, and its input in "stdin.<verb>", and then runs body, where $DIR is the
// directory of the test, and answer prints a result with the given addresses.
func (n *network) script(name, body string) {
	n.t.Helper()
	text := `#!/bin/sh
DIR='` + n.dir + `'
cat > "$DIR/stdin.$CNI_COMMAND"
echo "$CNI_COMMAND $CNI_CONTAINERID ns=$CNI_NETNS" >> "$DIR/calls"
answer() { echo '{"cniVersion":"1.0.0","interfaces":[{"name":"veth7"},{"name":"eth0","sandbox":"/x"}],"ips":['"$1"']}'; }
ip() { printf '{"interface":1,"address":"%s"}' "$1"; }
` + body + "\n"
	must(n.t, os.WriteFile(n.dir+"/bin/"+name, []byte(text), 0o755))
}

// fake installs a plugin whose ADD and DEL run these, and configures it alone.
func (n *network) fake(add, del string) {
	n.t.Helper()
	n.script("fake", "case $CNI_COMMAND in\nADD) "+add+" ;;\nDEL) "+del+" ;;\nesac")
	n.list("1.0.0", "fake")
}

// calls are the notes of all scripts so far.
func (n *network) calls() string {
	b, _ := os.ReadFile(n.dir + "/calls")
	return string(b)
}

// pending fails the test unless these pods have intents.
func (n *network) pending(want ...string) {
	n.t.Helper()
	got, err := n.Pending()
	must(n.t, err)
	if strings.Join(got, " ") != strings.Join(want, " ") {
		n.t.Fatalf("pending: %q, want %q", got, want)
	}
}

// nothingLeft fails the test if a file of state or cache is left.
func (n *network) nothingLeft() {
	n.t.Helper()
	for _, d := range []string{"/state", "/cache"} {
		_ = filepath.WalkDir(n.dir+d, func(path string, e os.DirEntry, _ error) error {
			if e != nil && !e.IsDir() {
				n.t.Errorf("left: %s", path)
			}
			return nil
		})
	}
}

// newNetNS makes and pins a network namespace for a pod.
func newNetNS(t *testing.T) string {
	t.Helper()
	needRoot(t)
	path := t.TempDir() + "/ns"
	must(t, os.WriteFile(path, nil, 0o600))
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err == nil {
			defer home.Close()
			err = unix.Unshare(unix.CLONE_NEWNET)
		}
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		if home != nil && unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	must(t, <-done)
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

func must(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func within(t *testing.T, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// has fails the test unless text contains all of these.
func has(t *testing.T, text string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			t.Errorf("%q is not in %q", p, text)
		}
	}
}

// alive reads a pid from a file and reports whether that process runs.
func alive(t *testing.T, file string) bool {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	must(t, err)
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return state[0] != 'Z' && state[0] != 'X'
}

// resident is how much memory the process has whose pid is in a file, in bytes: 0 if there is none.
func resident(file string) int {
	pid, _ := os.ReadFile(file)
	statm, _ := os.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/statm")
	pages := 0
	_, _ = fmt.Sscanf(string(statm), "%d %d", new(int), &pages)
	return pages * os.Getpagesize()
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("waited too long: %s", what)
		}
	}
}
