package program

import (
	"bytes"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// TestRecycledBuilderKeepsNothing looks for what a spec has said in a builder that
// waits for the next one.
func TestRecycledBuilderKeepsNothing(t *testing.T) {
	b := newBuilder()
	in := Input{Spec: &specs.Spec{
		Version: specs.Version, Root: &specs.Root{Path: "rootfs"},
		Process: &specs.Process{Args: []string{"true"}, Env: []string{"PATH=/bin", "KEY=secret"}, Cwd: "/",
			Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 100, Hard: 200}}},
		Mounts: []specs.Mount{{Destination: "/proc", Type: "proc", Source: "proc"}},
		Linux:  &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.MountNamespace}, {Type: specs.PIDNamespace}}},
	}}
	if _, err := b.container(in); err != nil {
		t.Fatal(err)
	}
	b.recycle()
	if data := b.p.Data[:cap(b.p.Data)]; bytes.Contains(data, []byte("secret")) {
		t.Error("data")
	}
	for i, s := range b.p.Steps[:cap(b.p.Steps)] {
		if s.Name != "" || s.OnErr != nil {
			t.Fatalf("step %d: %+v", i, s)
		}
	}
	if len(b.intern) > 0 || b.skips != 0 || b.p.Files != nil || b.p.Clone != 0 || b.proc {
		t.Errorf("builder: %+v", b)
	}
}
