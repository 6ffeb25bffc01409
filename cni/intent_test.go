package cni

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRefusedPods(t *testing.T) {
	n := newNetwork(t)
	n.fake(`answer "$(ip 10.0.0.1/8)"`, "")
	id := func(p *Pod) *string { return &p.ID }
	name := func(p *Pod) *string { return &p.Name }
	space := func(p *Pod) *string { return &p.Namespace }
	uid := func(p *Pod) *string { return &p.UID }
	netns := func(p *Pod) *string { return &p.NetNS }
	bad := map[string]func(*Pod) *string{}
	for _, v := range []string{"", "a;K8S_POD_NAME=b", "a\nb", "a\x00b", "a=b", "..", ".", "a/b", "../b", "a\x7f", "a\x1b[2J"} {
		for _, f := range []func(*Pod) *string{id, name, space, uid} {
			p := pod("p", "/nowhere")
			*f(&p) = v
			if err := p.check(); err == nil {
				t.Errorf("%+q is accepted in %+v", v, p)
			}
		}
	}
	for _, v := range []string{strings.Repeat("a", 129), "-a", ".a", "a b", "ä"} {
		bad[v] = id
	}
	for _, v := range []string{"", "relative", "/run/../x", "/run/netns/..", "/a//b", "/a\nb", "/a\x00"} {
		bad[v] = netns
	}
	for v, f := range bad {
		p := pod("p", "/nowhere")
		*f(&p) = v
		if _, err := n.Add(t.Context(), p); err == nil || !strings.Contains(err.Error(), "connect pod") {
			t.Errorf("%+q: %v", v, err)
		}
	}
	if n.calls() != "" {
		t.Errorf("calls %q", n.calls())
	}
	n.nothingLeft()
	p := pod(strings.Repeat("a", 64), "/run/netns/x")
	p.Name, p.UID = "coredns-565d847f94-abcde", "d4a3c2f0-4f4c-4a53-8c36-0c94c8d0f1ab"
	must(t, p.check())
}

// Without a namespace nothing is begun, so nothing has to be undone.
func TestAddWithoutNamespace(t *testing.T) {
	n := newNetwork(t)
	n.fake(`answer "$(ip 10.0.0.1/8)"`, "exit 1")
	must(t, os.WriteFile(n.dir+"/file", nil, 0o600), unix.Mkfifo(n.dir+"/fifo", 0o600))
	for _, path := range []string{"/nowhere", n.dir, n.dir + "/file", n.dir + "/fifo", "/proc/self/ns/mnt"} {
		if _, err := n.Add(within(t, 5*time.Second), pod("p", path)); err == nil {
			t.Errorf("%s is a network namespace", path)
		}
	}
	if n.calls() != "" {
		t.Errorf("calls %q", n.calls())
	}
	n.nothingLeft()
}

// Plugins are told that the namespace is gone by an empty CNI_NETNS.
func TestDelWithoutNamespace(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`answer "$(ip 10.0.0.1/8)"`, "")
	_, err := n.Add(t.Context(), pod("p", ns))
	must(t, err, unix.Unmount(ns, unix.MNT_DETACH), n.Del(t.Context(), "p"))
	if want := "ADD p ns=" + ns + "\nDEL p ns=\n"; n.calls() != want {
		t.Errorf("calls %q, want %q", n.calls(), want)
	}
	n.nothingLeft()
}

// A plugin that is not installed any more holds a pod for as long as there is
// something to take apart. When the namespace is gone, the others free what they
// have, the pod may go, and the intent waits for the plugin.
func TestDelWithoutPlugin(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`answer "$(ip 10.0.0.1/8)"`, "")
	n.script("vanishing", `cat $DIR/stdin.$CNI_COMMAND > /dev/null; test $CNI_COMMAND = ADD && answer "$(ip 10.0.0.1/8)"; exit 0`)
	n.list("1.0.0", "fake", "vanishing")
	_, err := n.Add(t.Context(), pod("p", ns))
	must(t, err, os.Rename(n.dir+"/bin/vanishing", n.dir+"/vanished"))
	if err := n.Del(t.Context(), "p"); !errors.Is(err, errNoPlugin) {
		t.Fatalf("Del: %v", err)
	}
	n.pending("p")
	must(t, unix.Unmount(ns, unix.MNT_DETACH), os.Remove(n.dir+"/calls"), n.Del(t.Context(), "p"))
	if want := "DEL p ns=\n"; n.calls() != want {
		t.Errorf("calls %q, want %q", n.calls(), want)
	}
	n.pending("p")
	must(t, os.Rename(n.dir+"/bin/fake", n.dir+"/faked"), n.Del(t.Context(), "p")) // none is left
	n.pending("p")
	must(t, os.Rename(n.dir+"/faked", n.dir+"/bin/fake"), os.Rename(n.dir+"/vanished", n.dir+"/bin/vanishing"))
	n.restart()
	must(t, n.Del(t.Context(), "p"))
	n.nothingLeft()
}

// The intent is on disk when the first plugin runs.
func TestIntentComesFirst(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`cp $DIR/state/p.json $DIR/copy || exit 1; answer "$(ip 10.0.0.1/8)"`, "")
	_, err := n.Add(t.Context(), pod("p", ns))
	must(t, err)
	b, err := os.ReadFile(n.dir + "/copy")
	must(t, err)
	has(t, string(b), `"version":1`, "name-p", `\"type\":\"fake\"`)
	st, err := os.Stat(n.dir + "/state/p.json")
	must(t, err)
	if st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", st.Mode())
	}
	must(t, n.Del(t.Context(), "p"))
}

// A daemon that was killed while it wrote an intent leaves half of it, which the next one removes, and nothing else.
func TestHalfAnIntent(t *testing.T) {
	dir := t.TempDir()
	half, whole, other := dir+"/.x1.json.tmp", dir+"/x1.json", dir+"/.note"
	for _, f := range []string{half, whole, other} {
		must(t, os.WriteFile(f, []byte("{"), 0o600))
	}
	_, err := New(Config{StateDir: dir, CacheDir: t.TempDir(), ConfDir: t.TempDir()})
	must(t, err)
	for f, want := range map[string]bool{half: false, whole: true, other: true} {
		if _, err := os.Stat(f); (err == nil) != want {
			t.Errorf("%s: %v", f, err)
		}
	}
}

// A list that fits into a file fits into an intent, or the pod is refused.
func TestBigIntent(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.script("fake", `test $CNI_COMMAND = ADD && answer "$(ip 10.0.0.1/8)"; exit 0`)
	for name, filler := range map[string]string{"plain": "x", "angles": "<"} { // six bytes each, in JSON
		n.conf("1.conflist", fmt.Sprintf(`{"cniVersion":"1.0.0","name":"test","plugins":[{"type":"fake"}],"filler":"%s"}`, strings.Repeat(filler, 900_000)))
		_, err := n.Add(t.Context(), pod(name, ns))
		if err == nil {
			n.restart()
			must(t, n.Del(t.Context(), name))
		}
		n.nothingLeft()
	}
}

// Whatever is in the state directory, Del says so and Pending goes on.
func TestDamagedIntents(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`answer "$(ip 10.0.0.1/8)"`, "")
	_, err := n.Add(t.Context(), pod("good", ns))
	must(t, err)
	good, err := os.ReadFile(n.dir + "/state/good.json")
	must(t, err)
	state := func(id string) string { return n.dir + "/state/" + id + ".json" }
	damaged := map[string]string{
		"empty": "", "zero": strings.Repeat("\x00", 100), "torn": string(good[:len(good)/2]), "other": string(good), "null": "null",
		"future": strings.Replace(strings.ReplaceAll(string(good), "good", "future"), `"version":1`, `"version":2`, 1),
		"nolist": strings.Replace(strings.ReplaceAll(string(good), "good", "nolist"), "plugins", "Xlugins", 1),
		"large":  strings.Repeat(" ", maxIntent+1),
	}
	ids := []string{"empty", "fifo", "future", "good", "large", "link", "nolist", "null", "other", "torn", "zero"}
	for id, text := range damaged {
		must(t, os.WriteFile(state(id), []byte(text), 0o600))
	}
	must(t, os.Symlink("good.json", state("link")), unix.Mkfifo(state("fifo"), 0o600))
	must(t, os.WriteFile(n.dir+"/state/.good.json.tmp", nil, 0o600), os.WriteFile(n.dir+"/state/..json", nil, 0o600))
	n.restart()
	n.pending(ids...)
	for _, id := range ids {
		err := n.Del(within(t, 5*time.Second), id)
		if (err == nil) != (id == "good") {
			t.Errorf("Del of %s: %v", id, err)
		}
		if _, err := os.Lstat(state(id)); (err != nil) != (id == "good") {
			t.Errorf("%s: %v", id, err)
		}
	}
}

// A daemon is killed while a plugin is at work for it. The next one kills the
// plugin, and its child, before it calls DEL: an address given away after that
// would be lost.
func TestPluginOutlivesItsDaemon(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	// With 50 MB, the end of the plugin takes so long that not waiting for it shows. dd has them and waits for a reader.
	const held = 50_000_000
	n.fake(fmt.Sprintf(`(sleep 1000; : > $DIR/late) & echo $! > $DIR/child; mkfifo $DIR/full; echo $$ > $DIR/self
exec dd if=/dev/zero bs=%d count=1 1<>$DIR/full`, held),
		`for f in self child; do grep -qs 'State:.[RSDT]' /proc/$(cat $DIR/$f)/status && echo $f runs >> $DIR/late; done; :`)
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), daemonEnv+"="+n.dir, "VITRINE_TEST_NETNS="+ns)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(t, cmd.Start())
	eventually(t, "the plugin hangs", func() bool { return resident(n.dir+"/self") > held })
	must(t, cmd.Process.Kill())
	_ = cmd.Wait()
	if !alive(t, n.dir+"/self") || !alive(t, n.dir+"/child") {
		t.Fatal("the plugin ended with its daemon: this tests nothing")
	}
	bystander := exec.Command("sleep", "1000") // of a pod that nobody knows
	bystander.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=another"}
	bystander.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	daemon := exec.Command("sleep", "1000") // which a plugin has started for good
	daemon.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=stray"}
	daemon.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	must(t, bystander.Start(), daemon.Start())
	defer func() {
		for _, c := range []*exec.Cmd{bystander, daemon} {
			_ = c.Process.Kill()
			_ = c.Wait()
		}
	}()

	n.restart()
	if alive(t, n.dir+"/self") || alive(t, n.dir+"/child") {
		t.Error("the plugin is still there")
	}
	n.pending("stray")
	must(t, n.Del(t.Context(), "stray"))
	if late, err := os.ReadFile(n.dir + "/late"); err == nil {
		t.Errorf("at DEL: %s", late)
	}
	n.nothingLeft()
	for _, c := range []*exec.Cmd{bystander, daemon} {
		if err := c.Process.Signal(syscall.Signal(0)); err != nil {
			t.Errorf("%v: %v", c.Env, err)
		}
		must(t, os.WriteFile(n.dir+"/pid", fmt.Append(nil, c.Process.Pid), 0o600))
		if !alive(t, n.dir+"/pid") {
			t.Errorf("%v was killed", c.Env)
		}
	}
}
