package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const rejectAll = `{"default":[{"type":"reject"}]}`

// IM-18: what a namespace's own policy says, when an image is pulled and when a
// container is made.
func TestNamespacePolicy(t *testing.T) {
	e := newEnv(t)
	e.conf.PolicyDir = filepath.Join(t.TempDir(), "policies") // not there yet
	e.restart()
	e.reg.push(t, "x", simple(t, "x"))
	const ref = "registry.example/x"
	pull := func(namespace string) error { return second(e.PullFor(soon(t), namespace, ref, nil)) }
	check := func(what, namespace, id string, want error) {
		t.Helper()
		for name, err := range map[string]error{
			"pull": pull(namespace), "create by id": e.Permit(soon(t), namespace, id, id), "create by tag": e.Permit(soon(t), namespace, id, ref),
			"create by both": e.Permit(soon(t), namespace, id, ref+":latest@"+digestOf(t, simple(t, "x"))),
		} {
			wantErr(t, what+": "+name, err, want)
		}
	}
	must(t, pull("strict"))
	id := e.status(ref).ID
	check("no directory", "strict", id, nil)

	must(t, mkdir(e.conf.PolicyDir))
	check("no file", "strict", id, nil)
	e.write(e.conf.PolicyDir+"/strict.json", rejectAll)
	e.write(e.conf.PolicyDir+"/free.json", acceptAll)
	check("stricter than the node", "strict", id, ErrSignature)
	check("its neighbour", "other", id, nil)
	check("no namespace", "", id, nil)
	e.write(e.conf.PolicyPath, rejectAll)
	check("freer than the node", "free", id, nil)
	check("its neighbour", "other", id, ErrSignature)
	check("no namespace", "", id, ErrSignature)

	// A name is never a path, and a file that is there counts.
	e.write(filepath.Dir(e.conf.PolicyDir)+"/outside.json", acceptAll)
	e.write(e.conf.PolicyDir+"/.json", acceptAll)
	e.write(e.conf.PolicyDir+"/..json", acceptAll)
	must(t, mkdir(e.conf.PolicyDir+"/sub"))
	e.write(e.conf.PolicyDir+"/sub/x.json", acceptAll)
	for _, name := range []string{"../outside", "./free", "sub/x", "", ".", "free\x00", "free/", "/etc/passwd", strings.Repeat("n", 300), "free\n", "*"} {
		check(name, name, id, ErrSignature)
	}
	for name, broken := range map[string]string{"broken": `{"default":`, "empty": ""} {
		e.write(e.conf.PolicyDir+"/"+name+".json", broken)
		if err := pull(name); err == nil {
			t.Errorf("%s: a broken policy accepts", name)
		}
		if err := e.Permit(soon(t), name, id, id); err == nil {
			t.Errorf("%s: a broken policy accepts", name)
		}
	}
	must(t, os.RemoveAll(e.conf.PolicyDir))
	e.write(e.conf.PolicyDir, "a file")
	e.write(e.conf.PolicyPath, acceptAll)
	if pull("free") == nil || e.Permit(soon(t), "free", id, id) == nil {
		t.Error("a directory that cannot be read is as good as none")
	}
}

// Pulls of one image at the same time, under different rules: blobs are shared,
// verdicts are not.
func TestConcurrentPolicies(t *testing.T) {
	e := newEnv(t)
	e.conf.PolicyDir = t.TempDir()
	e.restart()
	e.write(e.conf.PolicyDir+"/strict.json", rejectAll)
	e.write(e.conf.PolicyDir+"/free.json", acceptAll)
	img := simple(t, "x")
	e.reg.push(t, "x", img)
	layers, err := img.Layers()
	must(t, err)
	for range 10 {
		e.reg.setHook(func(http.ResponseWriter, *http.Request) bool { return false })
		var wg sync.WaitGroup
		for _, namespace := range []string{"strict", "free", "strict", "other", "free", "strict", ""} {
			wg.Go(func() {
				id, err := e.PullFor(soon(t), namespace, "registry.example/x", nil)
				if namespace != "strict" {
					if err != nil {
						t.Errorf("%q: %v", namespace, err)
					}
					return
				}
				if !errors.Is(err, ErrSignature) {
					t.Errorf("%q: pulled %s: %v", namespace, id, err)
				}
			})
		}
		wg.Wait()
		equal(t, "fetches of the layer", e.reg.requests("/blobs/"+digestOf(t, layers[0])), 1)
		e.remove("registry.example/x")
	}
}

// TestPolicyChangedTwiceAtOnce: two changes of a policy or of a key within one step of the kernel's clock, which the
// dates do not tell apart, and a look between them: the second one counts.
func TestPolicyChangedTwiceAtOnce(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	must(t, unix.Mount("ramfs", dir, "ramfs", 0, "")) // whose dates are coarse on any kernel
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	c, p := &Config{PolicyPath: dir + "/policy.json"}, &policies{}
	version := ""
	for i := range 200 {
		kind := []string{"reject", "insecureAcceptAnything"}[i%2]
		must(t, os.WriteFile(c.PolicyPath, fmt.Appendf(nil, `{"default":[{"type":%-26q}]}`, kind), 0o600))
		r, err := p.rules(c, "")
		must(t, err)
		text, err := json.Marshal(r.policy.Default)
		must(t, err)
		if !strings.Contains(string(text), kind) {
			t.Fatalf("after change %d the policy is %s, and not %s", i, text, kind)
		}
		if r.version == version {
			t.Fatalf("after change %d verdicts are what they were", i)
		}
		version = r.version
	}
	time.Sleep(2 * tick)
	r, err := p.rules(c, "")
	must(t, err)
	again, err := p.rules(c, "")
	must(t, err)
	if r.version != again.version || r.policy != again.policy {
		t.Error("a file that does not change is read each time")
	}
	if r.version != version {
		t.Errorf("the version changes as the file gets older: a pull of now does not join one of just then:\n%s\n%s", version, r.version)
	}
}
