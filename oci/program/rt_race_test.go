package program_test

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
)

// besieged is a container with everything that follows paths: volumes and
// mounts below them, missing mount points, devices, a terminal, parameters of the
// kernel, masks, a working directory that has to be made. The adversary owns its root and its volume.
type besieged struct {
	siege
	vol, evil string
	busybox   string
	pair      [2]int // what the terminal is sent over
}

func newBesieged(t *testing.T) *besieged {
	t.Helper()
	tree := rootTree(t)
	return &besieged{busybox: filepath.Join(tree, "bin/busybox"), siege: siege{canary: newCanary(t)}}
}

// renew makes the root and the volume anew, since an attack leaves them as it
// likes.
func (b *besieged) renew(t *testing.T) {
	t.Helper()
	top := filepath.Dir(filepath.Dir(filepath.Dir(b.busybox)))
	dir, err := os.MkdirTemp(top, "siege") //nolint:usetesting // it is renewed hundreds of times in a test
	if err != nil {
		t.Fatal(err)
	}
	old := filepath.Dir(b.stage.root)
	if b.stage.root != "" {
		if err := os.RemoveAll(old); err != nil {
			t.Fatal(err)
		}
	}
	root := filepath.Join(dir, "root")
	b.vol, b.evil = filepath.Join(dir, "vol"), filepath.Join(dir, "evil")
	for _, d := range []string{root + "/bin", root + "/etc/dir", root + "/dev", root + "/vol/old", b.vol + "/here", b.vol + "/secret", b.evil} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Link(b.busybox, root+"/bin/true"); err != nil {
		t.Fatal(err)
	}
	write(t, root+"/etc/secret", "x")
	write(t, b.vol+"/file", "x")
	s := newStage(root, "/bin/true")
	s.without("/dev/mqueue")
	s.addBind(b.vol, "/vol", true)
	s.addBind(filepath.Join(b.vol, "here"), "/vol/new/deep", true)
	s.addBind(filepath.Join(b.vol, "file"), "/vol/some/file", false)
	s.tmpfs("/vol/here/tmp")
	s.in.Spec.Process.Cwd = "/vol/work/dir"
	s.in.Spec.Linux.MaskedPaths = []string{"/etc/secret", "/etc/dir", "/vol/secret", "/proc/kcore"}
	s.in.Spec.Linux.ReadonlyPaths = []string{"/proc/sys", "/vol/here"}
	s.in.Spec.Linux.Devices = []specs.LinuxDevice{{Path: "/vol/devices/tun", Type: "c", Major: 10, Minor: 200}}
	s.in.Spec.Linux.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if b.pair != [2]int{} {
		_, _ = unix.Close(b.pair[0]), unix.Close(b.pair[1])
	}
	b.pair = pair
	s.in.Spec.Process.Terminal, s.in.ConsoleSocket, s.sockets = true, len(s.sources)+1, pair[1:]
	b.stage = *s
}

// point is a step that follows a path.
type point struct {
	i    int
	path string
}

// points runs the container once in peace and returns what it follows.
func (b *besieged) points(t *testing.T) (ps []point) {
	t.Helper()
	b.renew(t)
	b.act = func(pl place) {
		if pl.path != "" && pl.path != "." {
			ps = append(ps, point{pl.i, pl.path})
		}
	}
	if res := b.lay(t); res.err != nil {
		t.Fatalf("in peace: %v", res.err)
	}
	return ps
}

// targets of the links that the adversary puts in the way.
var lures = []string{"/canary", "../../../../../../../../canary", "/proc/self/root/canary", "/", "/proc/self/fd/5"}

// attack puts a link to lure in the place of prefix before step at, and takes it
// back before the next one if brief is set. What the step looks for is there
// too: a canary has directories of the same names.
func (b *besieged) attack(t *testing.T, at int, prefix, lure string, brief bool) (harm string, hit bool) {
	t.Helper()
	b.renew(t)
	evil, err := os.Open(b.evil)
	if err != nil {
		t.Fatal(err)
	}
	defer evil.Close()
	if err := os.Symlink(lure, filepath.Join(b.evil, "link")); err != nil {
		t.Fatal(err)
	}
	vol, err := os.Open(b.vol)
	if err != nil {
		t.Fatal(err)
	}
	defer vol.Close()
	dir := func() (int, string) {
		if in, ok := strings.CutPrefix(prefix, "vol/"); ok {
			return int(vol.Fd()), in
		}
		return int(b.root.Fd()), prefix
	}
	swapped, planted := false, false
	b.act = func(pl place) {
		fd, name := -1, ""
		if pl.i == at || swapped && brief {
			fd, name = dir()
		}
		switch {
		case fd >= 0 && pl.i == at:
			swapped = unix.Renameat2(int(evil.Fd()), "link", fd, name, unix.RENAME_EXCHANGE) == nil
			planted = !swapped && unix.Renameat2(int(evil.Fd()), "link", fd, name, unix.RENAME_NOREPLACE) == nil
			hit = swapped || planted
		case fd >= 0:
			swapped = unix.Renameat2(int(evil.Fd()), "link", fd, name, unix.RENAME_EXCHANGE) != nil
		}
		if pl.s.Nr == unix.SYS_PIVOT_ROOT {
			if s := strays(pl.pid); len(s) > 0 {
				harm = "mounted outside of the root:\n" + strings.Join(s, "")
			}
		}
	}
	before := outside(t, b.canary)
	b.lay(t)
	if after := outside(t, b.canary); after != before {
		harm += "outside has changed:\n" + before + "\n" + after
	}
	return harm, hit
}

// prefixes returns the path and all above it.
func prefixes(path string) (all []string) {
	for ; path != "." && path != "/"; path = filepath.Dir(path) {
		all = append(all, path)
	}
	return all
}

// fewer is for short runs: an emulated machine takes ten times as long for each.
func fewer(n int) int {
	if testing.Short() {
		return n / 4
	}
	return n
}

// sieges is how often attacks are tried that are many or random: n times, or
// as often as VITRINE_SIEGES says; 5000 is all of them.
func sieges(n int) int {
	if v := os.Getenv("VITRINE_SIEGES"); v != "" {
		_, _ = fmt.Sscan(v, &n)
	}
	return n
}

// TestRT06SwapsBetweenSteps is CVE-2021-30465 made certain: before each step
// that follows a path each part of that path becomes a link that leads out, for
// the one step or for good. Nothing outside may change. It is RT-13 as well
// (CVE-2024-45310), since directories are made by such steps.
func TestRT06SwapsBetweenSteps(t *testing.T) {
	type attack struct {
		point
		prefix, lure string
		brief        bool
	}
	var all []attack
	for _, p := range newBesieged(t).points(t) {
		for _, prefix := range prefixes(p.path) {
			for _, lure := range lures {
				all = append(all, attack{p, prefix, lure, true}, attack{p, prefix, lure, false})
			}
		}
	}
	rand.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	all = all[:min(len(all), sieges(fewer(300)))]
	// Most of a run is waiting for the kernel to take namespaces down.
	const armies = 6
	var hits atomic.Int64
	var wg sync.WaitGroup
	for n := range armies {
		b := newBesieged(t)
		wg.Go(func() {
			for i := n; i < len(all) && !t.Failed(); i += armies {
				a := all[i]
				harm, hit := b.attack(t, a.i, a.prefix, a.lure, a.brief)
				if hit {
					hits.Add(1)
				}
				if harm != "" {
					t.Errorf("/%s -> %s before step %d (%s): %s", a.prefix, a.lure, a.i, b.prog.Steps[a.i].Name, harm)
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d runs, %d with a link in the way", len(all), hits.Load())
	if int(hits.Load()) < len(all)*9/10 {
		t.Errorf("the adversary got its link in place in %d of %d runs only", hits.Load(), len(all))
	}
}

// TestRT06IsSeenWithout: the same attacks on the same programs, whose openat2
// follow links anywhere: the test has to see the harm.
func TestRT06IsSeenWithout(t *testing.T) {
	b := newBesieged(t)
	points := b.points(t)
	b.weaken = unconfined
	kinds := map[string]int{}
	for _, p := range points {
		for _, prefix := range prefixes(p.path) {
			harm, _ := b.attack(t, p.i, prefix, lures[0], false)
			switch {
			case strings.Contains(harm, "outside has changed"):
				kinds["changed"]++
				b.canary = newCanary(t)
			case harm != "":
				kinds["mounted"]++
			}
		}
		if kinds["changed"] > 2 && kinds["mounted"] > 2 {
			return
		}
	}
	t.Errorf("programs without RESOLVE_IN_ROOT do no harm that is seen: %v", kinds)
}

// TestRT06Exchange is the stochastic form: a volume in which links and
// directories change places all the time, mounts below it, and many starts.
func TestRT06Exchange(t *testing.T) {
	starts := sieges(fewer(200))
	b := newBesieged(t)
	b.renew(t)
	for i := range 20 {
		if err := os.MkdirAll(fmt.Sprintf("%s/m%d/x", b.vol, i), 0o755); err != nil {
			t.Fatal(err)
		}
		b.tmpfs(fmt.Sprintf("/vol/m%d/x/y", i))
		if err := os.Symlink(lures[i%len(lures)], fmt.Sprintf("%s/m%d.link", b.vol, i)); err != nil {
			t.Fatal(err)
		}
	}
	stop := make(chan struct{})
	var swapper, runs sync.WaitGroup
	swapper.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			m := fmt.Sprintf("%s/m%d", b.vol, i%20)
			_ = unix.Renameat2(unix.AT_FDCWD, m, unix.AT_FDCWD, m+".link", unix.RENAME_EXCHANGE)
		}
	})
	before := outside(t, b.canary)
	var worked atomic.Int64
	for range 5 { // containers that share the volume
		c := &besieged{vol: b.vol, siege: b.siege}
		c.gate = func(s *step.Step) bool { return s.Nr == unix.SYS_PIVOT_ROOT }
		c.act = func(pl place) {
			for _, s := range strays(pl.pid) {
				t.Errorf("mounted outside of the root: %s", s)
			}
		}
		runs.Go(func() {
			for range starts / 5 {
				if c.lay(t).err == nil {
					worked.Add(1)
				}
			}
		})
	}
	runs.Wait()
	close(stop)
	swapper.Wait()
	if after := outside(t, b.canary); after != before {
		t.Errorf("outside has changed:\n%s\n%s", before, after)
	}
	t.Logf("%d starts, %d worked inside", starts, worked.Load())
}
