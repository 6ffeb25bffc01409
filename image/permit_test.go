package image

import (
	"strings"
	"testing"
	"time"
)

// IM-18: an image that is here is not beyond the policy.
func TestIM18PolicyAtCreate(t *testing.T) {
	e := newEnv(t)
	img := simple(t, "x")
	e.reg.push(t, "good/x", img)
	e.reg.push(t, "bad/x", img)
	id := e.pull("registry.example/good/x")
	e.pull("registry.example/bad/x")
	const good, bad = "registry.example/good/x", "registry.example/bad/x"
	for _, asked := range []string{good, bad, id, ""} {
		must(t, e.Permit(soon(t), "", id, asked))
	}
	policies := []struct {
		policy  string
		allowed []string
		denied  []string
	}{
		{`{"default":[{"type":"reject"}]}`, nil, []string{good, bad, id, "", "registry.example/bad/x@" + digestOf(t, img)}},
		{`{"default":[{"type":"reject"}],"transports":{"docker":{"registry.example/good":[{"type":"insecureAcceptAnything"}]}}}`, []string{good, id, ""}, []string{bad}},
		{`{"default":[{"type":"insecureAcceptAnything"}],"transports":{"docker":{"registry.example/bad":[{"type":"reject"}]}}}`, []string{good, id}, []string{bad}},
		{`{"default":[{"type":"insecureAcceptAnything"}]}`, []string{good, bad, id, ""}, nil},
	}
	for _, p := range policies {
		time.Sleep(2 * time.Millisecond) // another time of change
		e.write(e.conf.PolicyPath, p.policy)
		for range 2 { // asked, and remembered
			for _, asked := range p.allowed {
				if err := e.Permit(soon(t), "", id, asked); err != nil {
					t.Errorf("%s: %q: %v", p.policy, asked, err)
				}
			}
			for _, asked := range p.denied {
				wantErr(t, asked, e.Permit(soon(t), "", id, asked), ErrSignature)
			}
		}
	}
	e.write(e.conf.PolicyPath, `{"default":`)
	if err := e.Permit(soon(t), "", id, good); err == nil {
		t.Error("a broken policy accepts")
	}
	wantErr(t, "unknown", e.Permit(soon(t), "", "sha256:"+strings.Repeat("0", 64), ""), ErrNotFound)
}

func TestPinned(t *testing.T) {
	e := newEnv(t)
	e.conf.Pinned = []string{"registry.example/pause", "*/infra/*", "registry.example/base:*", "*:stable", "busybox"}
	e.restart()
	for ref, want := range map[string]bool{
		"registry.example/pause": true, "registry.example/pause:2": false, "registry.example/infra/x": true, "registry.example/base:7": true,
		"registry.example/other:stable": true, "registry.example/other:1": false, "docker.io/library/busybox": true,
	} {
		repo := strings.TrimPrefix(strings.TrimPrefix(ref, "registry.example/"), "docker.io/")
		e.reg.push(t, repo, simple(t, ref))
		id := e.pull(ref)
		equal(t, ref, e.status(id).Pinned, want)
	}
	e.restart()
	equal(t, "after a restart", e.status("registry.example/pause").Pinned, true)
}
