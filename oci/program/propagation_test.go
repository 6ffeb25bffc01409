package program_test

import (
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// host is a thread in a mount namespace that stands for the host's, where the
// root filesystem is a shared mount.
type host struct {
	root *sys.FD
	do   chan func() // run on the thread
}

func newHost(t *testing.T, root string) *host {
	h := &host{do: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
			unix.Mount(root, root, "", unix.MS_BIND, ""), unix.Mount("", root, "", unix.MS_SHARED, ""))
		if err == nil {
			h.root, err = sys.OpenTree(unix.AT_FDCWD, root, unix.OPEN_TREE_CLONE)
		}
		ready <- err
		for f := range h.do {
			f()
		}
	}()
	if err := <-ready; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { close(h.do) })
	return h
}

// run calls f on the host's thread and waits for it.
func (h *host) run(f func()) {
	done := make(chan struct{})
	h.do <- func() { f(); close(done) }
	<-done
}

// TestRootPropagation: what each value lets through, in both directions, and
// what mountinfo calls it.
func TestRootPropagation(t *testing.T) {
	for _, tt := range []struct {
		value    string
		optional string // of the root
		below    string // of a mount in it
		inwards  bool   // whether a later mount of the host is seen
	}{
		{"", "", "", false}, {"private", "", "", false}, {"rprivate", "", "", false},
		{"slave", "master:", "", true}, {"rslave", "master:", "", true},
		{"shared", "shared:", "", false}, {"rshared", "shared:", "shared:", false},
		{"unbindable", "unbindable", "", false}, {"runbindable", "unbindable", "unbindable", false},
	} {
		t.Run(tt.value, func(t *testing.T) {
			root := rootTree(t)
			os.Mkdir(root+"/later", 0o755)
			h := newHost(t, root)
			s := newStage(root, "cat", "/proc/self/mountinfo")
			s.detached = h.root
			s.tmpfs("/inside")
			s.in.Spec.Linux.RootfsPropagation = tt.value
			var table string
			s.before = func(*executor.Child) {
				h.run(func() {
					if err := unix.Mount("tmpfs", root+"/later", "tmpfs", 0, ""); err != nil {
						t.Error(err)
					}
					b, _ := os.ReadFile("/proc/thread-self/mountinfo")
					table = string(b)
				})
			}
			res := s.run(t)
			if res.err != nil {
				t.Fatal(res.err)
			}
			if strings.Contains(table, "/inside") {
				t.Error("a mount of the container has come to the host")
			}
			for at, want := range map[string]string{"/": tt.optional, "/inside": tt.below} {
				if _, optional, _ := mountLine(res.out, at); !strings.HasPrefix(optional, want) || want == "" && optional != "" {
					t.Errorf("%s is %q, want %q", at, optional, want)
				}
			}
			if seen := strings.Contains(res.out, " /later "); seen != tt.inwards {
				t.Errorf("later mount of the host seen: %v", seen)
			}
		})
	}
	s := newStage("", "true")
	s.in.Spec.Linux.RootfsPropagation = "sideways"
	if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
		t.Error(err)
	}
}

// TestBindPropagation: a bind stays with its peers of the host only if the spec
// says so.
func TestBindPropagation(t *testing.T) {
	for _, tt := range []struct {
		options []string
		want    string // optional fields of the mount
	}{
		{nil, ""}, {[]string{"private"}, ""}, {[]string{"rprivate"}, ""},
		{[]string{"slave"}, "master:"}, {[]string{"rslave"}, "master:"},
		{[]string{"shared"}, "shared:"}, {[]string{"rshared"}, "shared:"},
		{[]string{"rslave", "rshared"}, "shared: master:"},
		{[]string{"unbindable"}, "unbindable"}, {[]string{"runbindable"}, "unbindable"},
	} {
		t.Run(strings.Join(tt.options, ","), func(t *testing.T) {
			vol := t.TempDir()
			h := newHost(t, vol)
			s := newStage(rootTree(t), "cat", "/proc/self/mountinfo")
			s.more = []*sys.FD{h.root}
			s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: "/v", Type: "bind", Options: tt.options})
			s.in.Binds = map[int]program.Bind{6: {File: 1, Dir: true}}
			res := s.run(t)
			_, optional, _ := mountLine(res.out, "/v")
			got := strings.Map(func(r rune) rune {
				if r >= '0' && r <= '9' {
					return -1
				}
				return r
			}, optional)
			if res.err != nil || got != tt.want {
				t.Errorf("%v: %q, want %q", res.err, got, tt.want)
			}
		})
	}
}
