package sandbox

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

func taken(l spec.Labels) bool {
	return errors.Is(selinux.CheckLabel(l.Process), selinux.ErrMCSAlreadyExists)
}

// TestLevelsAreHeld until the last who has one is gone.
func TestLevelsAreHeld(t *testing.T) {
	s := &selinuxLabels{held: map[string]int{}}
	l := spec.Labels{Process: "u:r:t:s0:c901,c902", Mount: "u:object_r:f:s0:c901,c902"}
	s.hold(l)
	s.hold(l)
	s.release(l)
	if !taken(l) {
		t.Error("not held any more while one has it")
	}
	s.release(l)
	if taken(l) || len(s.held) != 0 {
		t.Errorf("held by nobody: %v", s.held)
	}
	s.hold(spec.Labels{})
	s.release(spec.Labels{})
	if len(s.held) != 0 {
		t.Errorf("no label is held: %v", s.held)
	}
}

// TestLevelsAreExchanged without a moment in which another pod could be given the level, and nothing stays held for who is refused.
func TestLevelsAreExchanged(t *testing.T) {
	made := spec.Labels{Process: "u:r:t:s0:c921,c922", Mount: "u:object_r:f:s0:c921,c922"}
	same := spec.Labels{Process: "u:r:other:s0:c921,c922", Mount: made.Mount}
	other := spec.Labels{Process: "u:r:t:s0:c923,c924", Mount: "u:object_r:f:s0:c923,c924"}
	for _, l := range []spec.Labels{same, other} {
		for _, refusal := range []error{nil, ErrInvalid} {
			s := &selinuxLabels{held: map[string]int{}}
			s.hold(made)
			err := s.exchange(made, l, func(spec.Labels) error {
				if !taken(made) {
					t.Error("free while the other is looked at")
				}
				return refusal
			})
			if !errors.Is(err, refusal) || taken(made) != (refusal == nil && l == same) || taken(other) != (refusal == nil && l == other) {
				t.Errorf("%s, %v: %v, held %v", l.Process, refusal, err, s.held)
			}
			if refusal == nil {
				s.release(l)
			}
			if len(s.held) != 0 || taken(made) || taken(other) {
				t.Errorf("%s, %v: stays held: %v", l.Process, refusal, s.held)
			}
		}
	}
}

// TestLevelsAfterARestart: what a daemon before gave to a pod, and what a container of it asked for, is given to nobody else, until the
// pod is gone.
func TestLevelsAfterARestart(t *testing.T) {
	n := newNode(t, newFakes())
	pod := n.run(podRequest("web"))
	n.create(pod, containerRequest("c", "sleep"))
	if err := n.m.Close(); err != nil {
		t.Fatal(err)
	}
	of := spec.Labels{Process: "u:r:t:s0:c911,c912", Mount: "u:object_r:f:s0:c911,c912"}
	own := spec.Labels{Process: "u:r:t:s0:c913,c914", Mount: "u:object_r:f:s0:c913,c914"}
	edit := func(path string, change func(map[string]any)) {
		t.Helper()
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		r := map[string]any{}
		d := json.NewDecoder(bytes.NewReader(text))
		d.UseNumber()
		if err := d.Decode(&r); err != nil {
			t.Fatal(err)
		}
		change(r)
		if text, err = json.Marshal(r); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	dir := n.m.podDir(pod)
	edit(filepath.Join(dir, "pod.json"), func(r map[string]any) { r["selinux"] = of })
	files, err := filepath.Glob(filepath.Join(dir, "*", "container.json"))
	if err != nil || len(files) != 1 {
		t.Fatal(files, err)
	}
	edit(files[0], func(r map[string]any) {
		cfg, _ := r["config"].(map[string]any)
		cfg["linux"] = map[string]any{"security_context": map[string]any{"selinux_options": map[string]any{"level": "s0:c913,c914"}}}
	})
	n.open()
	if !taken(of) || !taken(own) {
		t.Errorf("held: the pod's %v, the container's %v", taken(of), taken(own))
	}
	if err := n.m.RemovePodSandbox(bg, pod); err != nil {
		t.Fatal(err)
	}
	if taken(of) || taken(own) {
		t.Errorf("held for a pod that is gone: its own %v, its container's %v", taken(of), taken(own))
	}
	n.wantClean()
}

// TestLabelsRefused: a node without labels refuses a pod that asks for some by the whole path of the field, and so does a policy.
func TestLabelsRefused(t *testing.T) {
	n := newNode(t, newFakes())
	n.m.host.SELinux = true
	cfg := podRequest("labelled")
	cfg.Linux.SecurityContext.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "t"}
	const field = "config.linux.security_context.selinux_options"
	if _, err := n.m.RunPodSandbox(bg, cfg, ""); !errors.Is(err, ErrUnimplemented) || !strings.HasPrefix(err.Error(), field+":") {
		t.Errorf("no labels: %v", err)
	}
	long := spec.Labels{Process: strings.Repeat("l", maxLabel+1)}
	if err := checkLabels(long); !errors.Is(err, ErrInvalid) || !strings.HasPrefix(err.Error(), field+" ") {
		t.Errorf("a long label: %v", err)
	}
}

// labelOf returns what a file has for a label, "" for none.
func labelOf(t *testing.T, path string) string {
	t.Helper()
	buf := make([]byte, 300)
	n, err := unix.Lgetxattr(path, labelAttribute, buf)
	if err != nil && !errors.Is(err, unix.ENODATA) {
		t.Fatalf("label of %s: %v", path, err)
	}
	return string(buf[:max(n, 0)])
}

// identified is what is at a path now.
func identified(t *testing.T, path string) identity {
	t.Helper()
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		t.Fatal(err)
	}
	is, err := identify(unix.AT_FDCWD, real)
	if err != nil {
		t.Fatal(err)
	}
	return is
}

// volumeTree makes a volume, and a directory of the host that it has a link to. It skips where files cannot have labels: that takes no SELinux, but
// root and a file system for it.
func volumeTree(t *testing.T) (volume, host string) {
	t.Helper()
	dir := t.TempDir()
	volume, host = filepath.Join(dir, "volume"), filepath.Join(dir, "host")
	for _, d := range []string{volume + "/a/b", volume + "/swapped", host} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range []string{volume + "/f", volume + "/a/b/f", volume + "/swapped/secret", host + "/secret"} {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"/link": host, "/a/link": host + "/secret", "/dangling": "/nowhere"} {
		if err := os.Symlink(to, volume+link); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(volume+"/fifo", 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Lsetxattr(host, labelAttribute, []byte("before"), 0); err != nil {
		t.Skip("needs root and a file system with labels: " + err.Error())
	}
	return volume, host
}

// TestRelabelledIsOnlyTheVolume: all of it, and nothing that a link in it leads to; also while somebody who can write to the volume exchanges a
// directory for a link to the host's all the time.
func TestRelabelledIsOnlyTheVolume(t *testing.T) {
	volume, host := volumeTree(t)
	v := newVolumeOpener(time.Minute)
	const label = "u:object_r:f:s0:c1,c2"
	if err := v.relabel(bg, volume, identified(t, volume), label); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{"", "/a", "/a/b", "/a/b/f", "/f", "/link", "/a/link", "/dangling", "/fifo", "/swapped", "/swapped/secret"} {
		if got := labelOf(t, volume+f); got != label {
			t.Errorf("%q has %q", f, got)
		}
	}
	untouched := func(when string) {
		t.Helper()
		if a, b := labelOf(t, host), labelOf(t, host+"/secret"); a != "before" || b != "" {
			t.Fatalf("%s: the host's files have %q and %q", when, a, b)
		}
	}
	untouched("links")
	if err := v.relabel(bg, volume+"/f", identified(t, volume+"/f"), "of a file"); err != nil || labelOf(t, volume+"/f") != "of a file" || labelOf(t, volume) != label {
		t.Errorf("a volume of one file: %v, %q", err, labelOf(t, volume+"/f"))
	}

	if err := os.Symlink(host, volume+"/other"); err != nil {
		t.Fatal(err)
	}
	stop, swapping := make(chan struct{}), make(chan int)
	go func() { // ends with stop
		n := 0
		for ; ; n++ {
			select {
			case <-stop:
				swapping <- n
				return
			default:
				_ = unix.Renameat2(unix.AT_FDCWD, volume+"/swapped", unix.AT_FDCWD, volume+"/other", unix.RENAME_EXCHANGE)
			}
		}
	}()
	for i := range 300 {
		if err := v.relabel(bg, volume, identified(t, volume), label+string(rune('0'+i%2))); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	if n := <-swapping; n < 300 {
		t.Errorf("only %d exchanges", n)
	}
	untouched("while it was exchanged")
}

// TestRelabelRefused: what the host lives from, and a tree without an end; and with its caller a walk ends.
func TestRelabelRefused(t *testing.T) {
	volume, _ := volumeTree(t)
	v := newVolumeOpener(time.Minute)
	link := filepath.Join(t.TempDir(), "srv")
	if err := os.Symlink("/srv", link); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"/srv", "/srv/", link} {
		if err := v.relabel(bg, path, identified(t, path), "x"); !errors.Is(err, spec.ErrInvalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
	if err := v.relabel(bg, volume+"/missing", identity{}, "x"); !errors.Is(err, spec.ErrInvalid) && !errors.Is(err, os.ErrNotExist) {
		t.Errorf("nothing there: %v", err)
	}
	ended, cancel := context.WithCancel(bg)
	cancel()
	if err := v.relabel(ended, volume, identified(t, volume), "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if labelOf(t, volume) != "" {
		t.Error("the volume itself has a label before its files")
	}
	fd, err := unix.Open(volume, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxRelabelDepth + 2 {
		if err := unix.Mkdirat(fd, "d", 0o755); err != nil {
			t.Fatal(i, err)
		}
		next, err := unix.Openat(fd, "d", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			t.Fatal(i, err)
		}
		unix.Close(fd)
		fd = next
	}
	unix.Close(fd)
	if err := v.relabel(bg, volume, identified(t, volume), "x"); !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "directories") {
		t.Errorf("deep: %v", err)
	}
	if len(v.stuck) != 0 {
		t.Errorf("still at work: %v", v.stuck)
	}
}

// TestRelabelKnowsTheHost under every name: by links, one of ours or one of the host's own, and by a mount elsewhere. It takes no labels: the caller
// is gone, so that nothing is written, whoever passes the guard.
func TestRelabelKnowsTheHost(t *testing.T) {
	ended, cancel := context.WithCancel(bg)
	cancel()
	dir := t.TempDir()
	legal, link, bound := dir+"/volume", dir+"/link", dir+"/bound"
	if err := errors.Join(os.MkdirAll(legal+"/sub", 0o755), os.Mkdir(bound, 0o755), os.Symlink("/usr", link)); err != nil {
		t.Fatal(err)
	}
	refused := func(what, path string) {
		t.Helper()
		err := labelVolume(ended, path, identified(t, path), "x")
		if !errors.Is(err, spec.ErrInvalid) || !strings.Contains(err.Error(), "config.mounts.host_path") {
			t.Errorf("%s %s: %v", what, path, err)
		}
	}
	for _, path := range append(slices.Clone(hostOwn), "/usr/../usr/", link, link+"/bin") {
		if _, err := os.Stat(path); err == nil {
			refused("the host's", path)
		}
	}
	if err := labelVolume(ended, legal, identified(t, legal), "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("a volume: %v", err)
	}

	own := hostOwn
	t.Cleanup(func() { hostOwn = own })
	hostOwn = []string{dir + "/missing", dir + "/own"}
	if err := errors.Join(os.MkdirAll(dir+"/real/home/sub", 0o755), os.Symlink("real/home", dir+"/own")); err != nil {
		t.Fatal(err)
	}
	refused("what a link of the host's own leads to,", dir+"/real/home")
	refused("that link,", dir+"/own")
	if err := labelVolume(ended, dir+"/real", identified(t, dir+"/real"), "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("what the host's own is in: %v", err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root: a bind mount")
	}
	// The surroundings' mounts are private, see TestMain's; a mount in them is not the host's.
	if err := errors.Join(unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""), unix.Mount(dir+"/real/home", bound, "", unix.MS_BIND, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(bound, unix.MNT_DETACH) })
	refused("its mount elsewhere,", bound)
}

// TestRelabelledIsMounted: nothing but what the container has. A plugin may take a volume away or put another in its place, and somebody on the host may
// exchange what is at the path after it was opened.
func TestRelabelledIsMounted(t *testing.T) {
	volume, host := volumeTree(t)
	const label = "u:object_r:f:s0:c1,c2"
	c := &Container{pod: &Sandbox{m: &Manager{volumes: newVolumeOpener(time.Minute)}}, labels: spec.Labels{Mount: label},
		config: &runtimeapi.ContainerConfig{Mounts: []*runtimeapi.Mount{
			{HostPath: volume + "/a", ContainerPath: "/gone", SelinuxRelabel: true}, {HostPath: volume + "/swapped", ContainerPath: "/another", SelinuxRelabel: true},
			{HostPath: volume + "/fifo", ContainerPath: "/as-it-is"}, {HostPath: volume + "//f", ContainerPath: "/f/", SelinuxRelabel: true}}}}
	mounts := []specs.Mount{{Type: "bind", Source: host, Destination: "/another"}, {Type: "bind", Source: volume + "/fifo", Destination: "/as-it-is"},
		{Type: "bind", Source: volume + "/f", Destination: "/f"}}
	relabel := func() error {
		t.Helper()
		opened := map[int]*sys.FD{}
		for i, m := range mounts {
			fd, err := sys.OpenAt2(unix.AT_FDCWD, m.Source, unix.O_PATH, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer fd.Close()
			opened[i] = fd
		}
		if err := os.Rename(volume+"/next", volume+"/f"); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return c.relabelVolumes(bg, &operation{}, mounts, opened)
	}
	if err := relabel(); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{volume: "", volume + "/a": "", volume + "/a/b/f": "", volume + "/swapped": "", volume + "/fifo": "", volume + "/f": label, host: "before"} {
		if got := labelOf(t, path); got != want {
			t.Errorf("%s has %q, want %q", path, got, want)
		}
	}
	if err := os.WriteFile(volume+"/next", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	err := relabel()
	if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "config.mounts[3].selinux_relabel") || labelOf(t, volume+"/f") != "" {
		t.Errorf("exchanged after it was opened: %v, %q", err, labelOf(t, volume+"/f"))
	}
}

// TestRelabelWhatGoes: a directory that was removed after it was opened is at its end, and the walk with it.
func TestRelabelWhatGoes(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "d")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- labelBelow(bg, f, "x", 0) }()
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(10 * time.Second):
		t.Error("it goes on for ever")
	}
}
