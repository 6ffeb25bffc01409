package program_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// The tests named TestRTnn belong to the table in docs/security.md. Where the
// protection is part of a program they take it out of the compiled program and
// must see the harm: the rows named "without".

// hostile is a container that is held against what is outside of it.
func hostile(root string, canary string, args ...string) *siege {
	return &siege{stage: *newStage(root, args...), canary: canary, gate: func(s *step.Step) bool { return s.Nr == unix.SYS_PIVOT_ROOT }}
}

// harm runs the container and says what happened outside of its root.
func (s *siege) harm(t *testing.T) (res result, harm string) {
	t.Helper()
	s.act = func(pl place) { harm += strings.Join(strays(pl.pid), "") }
	before := outside(t, s.canary)
	res = s.lay(t)
	if after := outside(t, s.canary); after != before {
		harm += before + "\n" + after
	}
	return res, harm
}

// TestRT04VolumeOverProc is CVE-2019-16884: a volume where /proc should be takes
// the writing of labels. It is refused by its name, and found by what is there
// where a link of the image leads to it.
func TestRT04VolumeOverProc(t *testing.T) {
	vol := t.TempDir()
	write(t, filepath.Join(vol, "self/attr/exec"), "")
	for _, dest := range []string{"/proc", "/proc/", "/x/../proc", "/proc/self", "/proc/self/attr", "/proc/sys", "/proc/1/attr"} {
		s := newStage("", "true")
		s.addBind(vol, dest, true)
		if _, err := program.Compile(s.in); !errors.Is(err, program.ErrInvalid) {
			t.Errorf("volume on %s: %v", dest, err)
		}
	}
	for link, to := range map[string]string{"x": "proc", "y": "/proc", "z": "etc/../proc/."} {
		root := rootTree(t)
		if err := os.Symlink(to, filepath.Join(root, link)); err != nil {
			t.Fatal(err)
		}
		s := hostile(root, newCanary(t), "stat", "-f", "-c", "%t", "/proc")
		s.addBind(vol, "/"+link, true)
		res, _ := s.harm(t)
		res.ends(t, "!find no file of a procfs behind /"+link)
		s.weaken = nullify(named("find no file of a procfs"))
		res, _ = s.harm(t)
		res.ends(t, "!find /proc uncovered")
		s.weaken = nullify(func(s *step.Step) bool {
			return named("find no file of a procfs")(s) || named("find /proc uncovered")(s)
		})
		if res, _ = s.harm(t); res.err != nil || strings.TrimSpace(res.out) == "9fa0" {
			t.Errorf("without either look: %v, /proc is a %s", res.err, res.out)
		}
	}
	file := write(t, filepath.Join(vol, "file"), "volume\n")
	for to, dir := range map[string]bool{"proc/self": true, "/proc/sys": true, "/proc/self/attr": true, "/proc/self/attr/exec": false, "proc/../proc/loadavg": false} {
		root := rootTree(t)
		if err := os.Symlink(to, filepath.Join(root, "x")); err != nil {
			t.Fatal(err)
		}
		s, source := hostile(root, newCanary(t), "sh", "-c", "ls /x; cat /x/file /x"), file
		if dir {
			source = vol
		}
		s.in.Spec.Linux.ReadonlyPaths = nil
		s.addBind(source, "/x", dir)
		res, _ := s.harm(t)
		res.ends(t, "!find no file of a procfs behind /x: operation not permitted")
		s.weaken = nullify(named("find no file of a procfs"))
		if res, _ = s.harm(t); res.err != nil || !strings.Contains(res.out, "volume\n") {
			t.Errorf("without the look: %v, behind %s is %q", res.err, to, res.out)
		}
	}
	s := newStage(rootTree(t), "cat", "/host/proc/loadavg") // and what is legal works
	s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: "/host/proc", Type: "proc", Source: "proc"})
	s.addBind(file, "/host/proc/loadavg", false)
	s.wants(t, "volume\n")
	s = newStage(rootTree(t), "stat", "-f", "-c", "%t", "/proc")
	s.addBind(write(t, filepath.Join(vol, "meminfo"), "x"), "/proc/meminfo", false)
	s.wants(t, "9fa0\n")
}

// TestRT05ProcIsALink is CVE-2019-19921: an image whose /proc or /sys is a link
// has the kernel's files mounted elsewhere, and the masks miss them.
func TestRT05ProcIsALink(t *testing.T) {
	for _, tt := range []struct{ link, to string }{
		{"proc", "/other"}, {"proc", "other"}, {"proc", "/canary"}, {"proc", "../../../canary"}, {"sys", "/other"}, {"sys", "/canary"}, {"proc", "proc"}, {"proc", "/"},
	} {
		t.Run(tt.link+" to "+tt.to, func(t *testing.T) {
			root := rootTree(t)
			if err := errors.Join(os.Mkdir(root+"/other", 0o755), os.Symlink(tt.to, filepath.Join(root, tt.link))); err != nil {
				t.Fatal(err)
			}
			s := hostile(root, newCanary(t), "true")
			res, harm := s.harm(t)
			res.ends(t, "!find /"+tt.link+": too many levels of symbolic links")
			if harm != "" {
				t.Error(harm)
			}
			if tt.to == "/proc" || tt.to == "proc" || tt.to == "/" {
				return
			}
			s.weaken = unconfined
			s.stage.root = root
			if res, harm = s.harm(t); harm == "" && res.err != nil && strings.Contains(res.err.Error(), "too many levels") {
				t.Errorf("without confinement: %v, no harm", res.err)
			}
		})
	}
	root := rootTree(t)
	s := newStage(root, "stat", "-f", "-c", "%t", "/x")
	s.in.Spec.Mounts = append(s.in.Spec.Mounts, specs.Mount{Destination: "/proc/../x", Type: "proc", Source: "proc"})
	s.wants(t, "9fa0\n")
}

// TestRT11MountOrders is CVE-2023-27561 and CVE-2023-28642: what RT-04 and RT-05
// close, opened again by mounts in an order that nobody thought of. In each order
// the start fails, or /proc is the kernel's and every procfs in sight is masked.
func TestRT11MountOrders(t *testing.T) {
	mounts := []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc"},
		{Destination: "/a", Type: "bind", Options: []string{"rbind"}}, // has "proc" -> "../proc"
		{Destination: "/a/proc", Type: "proc", Source: "proc"},
		{Destination: "/link", Type: "tmpfs", Source: "tmpfs"}, // -> /a
		{Destination: "/a", Type: "tmpfs", Source: "tmpfs"},
		{Destination: "/cover", Type: "tmpfs", Source: "tmpfs"}, // -> /proc
	}
	worked, failed := 0, 0
	seen := map[string]bool{}
	permute(len(mounts), func(order []int) {
		for _, n := range []int{2, 3, 6} {
			key := fmt.Sprint(order[:n])
			if seen[key] {
				continue
			}
			seen[key] = true
			root, vol := rootTree(t), t.TempDir()
			if err := errors.Join(os.Symlink("../proc", vol+"/proc"), os.Symlink("a", root+"/link"), os.Symlink("proc", root+"/cover"), os.Mkdir(root+"/a", 0o755)); err != nil {
				t.Fatal(err)
			}
			s := newStage(root, "sh", "-c", `echo kind $(stat -f -c %t /proc); for d in /proc /a/proc /link/proc; do test -e $d/self && stat -c '%n %t:%T' $d/timer_list; done; echo done`)
			s.in.Spec.Mounts = nil
			s.in.Spec.Linux.Devices = nil
			s.in.Spec.Linux.MaskedPaths = []string{"/proc/timer_list", "/a/proc/timer_list"}
			s.in.Spec.Linux.ReadonlyPaths = nil
			for _, i := range order[:n] {
				if mounts[i].Type == "bind" {
					s.addBind(vol, mounts[i].Destination, true)
				} else {
					s.in.Spec.Mounts = append(s.in.Spec.Mounts, mounts[i])
				}
			}
			res := s.run(t)
			if res.err != nil {
				failed++
				continue
			}
			worked++
			for line := range strings.Lines(res.out) {
				f := strings.Fields(line)
				if len(f) == 2 && f[0] == "kind" {
					if slices.Contains(order[:n], 0) && f[1] != "9fa0" {
						t.Errorf("mounts %v: /proc is a %s", order[:n], f[1])
					}
				} else if len(f) == 2 && f[1] != "1:3" {
					t.Errorf("mounts %v: %s is not masked", order[:n], f[0])
				}
			}
		}
	})
	t.Logf("%d orders work, %d are refused", worked, failed)
	if worked == 0 || failed == 0 {
		t.Error("one of the two ways is not tried")
	}
}

// permute calls f with some of the orders of n numbers: each rotation of a few
// random ones, or all of them if there are few.
func permute(n int, f func(order []int)) {
	r := rand.New(rand.NewPCG(1, 1))
	for range fewer(12) {
		order := r.Perm(n)
		for range n {
			f(order)
			order = append(order[1:], order[0])
		}
	}
}

// TestRT13DeepDirectories is CVE-2024-45310: the missing parents of a mount
// point and of a working directory are made while another container puts links
// where they are to be. TestRT06SwapsBetweenSteps does this at every step; here
// it is every component of one deep path, with a directory to be made outside.
func TestRT13DeepDirectories(t *testing.T) {
	const deep = "/v/1/2/3/4"
	run := func(weaken func(*step.Program), at string) (harm string) {
		root, vol, canary := rootTree(t), t.TempDir(), newCanary(t)
		s := &siege{stage: *newStage(root, "true"), canary: canary, weaken: weaken}
		s.addBind(vol, "/v", true)
		s.tmpfs(deep)
		s.in.Spec.Process.Cwd = "/v/1/work/dir"
		dir := filepath.Join(vol, strings.TrimPrefix(at, "/v/"))
		s.act = func(pl place) {
			if "/"+pl.path == at && pl.s.Nr == unix.SYS_OPENAT2 { // look, make, enter
				aside := make(chan struct{}) // the host's tree is another thread's
				go func() {
					_ = os.RemoveAll(dir)
					_ = os.Symlink("/canary", dir)
					close(aside)
				}()
				<-aside
			}
		}
		before := outside(t, canary)
		s.lay(t)
		if after := outside(t, canary); after != before {
			harm = after
		}
		return harm
	}
	seen := false
	for at := deep; at != "/v"; at = filepath.Dir(at) {
		if harm := run(nil, at); harm != "" {
			t.Errorf("link at %s: %s", at, harm)
		}
		seen = run(unconfined, at) != "" || seen
	}
	if run(nil, "/v/1/work") != "" {
		t.Error("link at the working directory")
	}
	if !seen {
		t.Error("without confinement no harm is seen")
	}
}

// TestRT17DevIsALink is CVE-2026-41579 and CVE-2026-47766: devices and links
// that every container has were made where the image's /dev led.
func TestRT17DevIsALink(t *testing.T) {
	for _, to := range []string{"/canary", "../../../canary", "/canary/sub", "/proc", "..", ".", "/"} {
		for _, mounted := range []bool{false, true} {
			t.Run(fmt.Sprint(to, mounted), func(t *testing.T) {
				root := rootTree(t)
				if err := os.Symlink(to, root+"/dev"); err != nil {
					t.Fatal(err)
				}
				s := hostile(root, newCanary(t), "true")
				if !mounted {
					s.without("/dev")
				}
				res, harm := s.harm(t)
				if harm != "" {
					t.Error(harm)
				}
				if !strings.HasPrefix(to, "/canary") && to != "../../../canary" || mounted {
					return
				}
				if res.err == nil {
					t.Error("made behind a link that dangles")
				}
				s.weaken = unconfined
				if _, harm = s.harm(t); harm == "" {
					t.Error("without confinement no harm is seen")
				}
			})
		}
	}
}

// TestRT19RandomRoots makes containers of trees that nobody would write:
// directories and links of all kinds where a pod's usual mounts, devices, masks
// and directory go.
func TestRT19RandomRoots(t *testing.T) {
	trees := sieges(fewer(100))
	worked := 0
	for seed := range trees {
		res, harm := randomRoot(t, uint64(seed), nil)
		if harm != "" {
			t.Fatalf("tree %d: %s", seed, harm)
		}
		if res.err == nil {
			worked++
		}
	}
	t.Logf("%d trees, %d containers", trees, worked)
	harmed := 0
	for seed := 59; seed >= 0 && (harmed == 0 || !testing.Short()); seed-- {
		if _, harm := randomRoot(t, uint64(seed), unconfined); harm != "" {
			harmed++
		}
	}
	if harmed == 0 || worked == 0 {
		t.Errorf("%d containers worked; without confinement %d did harm", worked, harmed)
	}
}

// randomRoot runs the usual pod in the tree that belongs to a seed.
func randomRoot(t *testing.T, seed uint64, weaken func(*step.Program)) (result, string) {
	r := rand.New(rand.NewPCG(seed, 19))
	root := rootTree(t)
	places := []string{"proc", "sys", "dev", "dev/pts", "dev/shm", "dev/null", "etc/resolv.conf", "etc/hosts", "var", "var/run", "var/run/secrets", "work", "work/dir", "run", "tmp/x"}
	leads := []string{"/canary", "../canary", "../../../../canary", "/canary/sub/file", "/proc/self/root", "/proc/self/fd/5", "/proc/1/root/canary", "/", ".", "..",
		"/none", "loop", "/etc", "../tmp", "/tmp/x", "/dev", "dev/..//../canary", "/var/run", "/sys/kernel"}
	for range 1 + r.IntN(8) {
		at := filepath.Join(root, places[r.IntN(len(places))])
		_ = os.MkdirAll(filepath.Dir(at), 0o755)
		switch r.IntN(5) {
		case 0:
			_ = os.MkdirAll(at, 0o755)
		case 1:
			_ = os.WriteFile(at, []byte("x"), 0o644)
		default:
			_ = os.Symlink(leads[r.IntN(len(leads))], at)
		}
	}
	s := hostile(root, newCanary(t), "true")
	s.weaken = weaken
	vol := t.TempDir()
	s.addBind(write(t, vol+"/hosts", "x"), "/etc/hosts", false)
	s.addBind(write(t, vol+"/resolv", "x"), "/etc/resolv.conf", false)
	s.addBind(vol, "/var/run/secrets/token", true)
	s.tmpfs("/dev/shm")
	s.in.Spec.Process.Cwd = "/work/dir"
	s.in.Spec.Linux.MaskedPaths = append(s.in.Spec.Linux.MaskedPaths, "/etc/shadow", "/tmp/x", "/run")
	return s.harm(t)
}
