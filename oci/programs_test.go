package oci

import (
	"bytes"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"

	"github.com/vitrine-runtime/vitrine/oci/program"
)

// TestCacheAcrossReplicas: what differs between replicas is not in their programs, and what is
// in a program makes another.
func TestCacheAcrossReplicas(t *testing.T) {
	base := func() program.Input {
		s := fieldBase()
		s.Linux.Seccomp = nil
		s.Root = &specs.Root{Path: "/a"}
		s.Linux.CgroupsPath, s.Annotations = "/a", map[string]string{"a": "b"}
		s.Mounts = append(s.Mounts, specs.Mount{Destination: "/data", Type: "bind", Source: "/pods/a"})
		i := slices.IndexFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
		s.Linux.Namespaces[i].Path = "/run/netns/a"
		return program.Input{Spec: s, Binds: map[int]program.Bind{len(s.Mounts) - 1: {File: 1, Dir: true}}, Inherit: []specs.LinuxNamespaceType{specs.NetworkNamespace}}
	}
	key := func(change func(in *program.Input)) string {
		in := base()
		change(&in)
		in.Spec = essence(in.Spec, &in)
		k := keyOf(in)
		if k == nil {
			t.Fatal("no key")
		}
		return string(k)
	}
	first := base()
	c, err := encodeContainer(first)
	if err != nil {
		t.Fatal(err)
	}
	code := bytes.Clone(c.code)
	c.done()
	replica := base()
	s := replica.Spec
	s.Root.Path, s.Linux.CgroupsPath, s.Annotations = "/b", "/b", nil
	s.Mounts[len(s.Mounts)-1].Source = "/pods/b"
	for i := range s.Linux.Namespaces {
		if s.Linux.Namespaces[i].Type == specs.NetworkNamespace {
			s.Linux.Namespaces[i].Path = "/run/netns/b"
		}
	}
	if c, err = encodeContainer(replica); err != nil || c.own || !bytes.Equal(c.code, code) {
		t.Errorf("a replica: compiled anew: %v, %v", c.own, err)
	}
	if b, err := program.Encode(replica, nil); err != nil || !bytes.Equal(b, code) {
		t.Errorf("a replica's program is another's: %v", err)
	}
	same := key(func(*program.Input) {})
	for name, change := range map[string]func(in *program.Input){
		"environment":   func(in *program.Input) { in.Spec.Process.Env = append(in.Spec.Process.Env, "A=B") },
		"words":         func(in *program.Input) { in.Spec.Process.Args = []string{"a b"} },
		"other words":   func(in *program.Input) { in.Spec.Process.Args = []string{"a", "b"} },
		"no words":      func(in *program.Input) { in.Spec.Process.Args = []string{} },
		"nil words":     func(in *program.Input) { in.Spec.Process.Args = nil },
		"filter":        func(in *program.Input) { in.Seccomp = []byte{1} },
		"profile":       func(in *program.Input) { in.Spec.Linux.Seccomp = &specs.LinuxSeccomp{DefaultAction: specs.ActAllow} },
		"flags":         func(in *program.Input) { in.SeccompFlags = 1 },
		"kind of bind":  func(in *program.Input) { in.Binds[len(in.Spec.Mounts)-1] = program.Bind{File: 1} },
		"another bind":  func(in *program.Input) { in.Binds[0] = program.Bind{File: 2, Dir: true} },
		"destination":   func(in *program.Input) { in.Spec.Mounts[len(in.Spec.Mounts)-1].Destination = "/datb" },
		"read-only":     func(in *program.Input) { in.Spec.Root.Readonly = true },
		"inheritance":   func(in *program.Input) { in.Inherit = nil },
		"a file's name": func(in *program.Input) { in.Devices = map[string]int{"/dev/x": 2} },
	} {
		if k := key(change); k == same {
			t.Errorf("%s: the same key", name)
		}
	}
}

// TestCacheKeepsKindsApart: no container looks like an exec, whatever is in either. Empty ones would, but for their length.
func TestCacheKeepsKindsApart(t *testing.T) {
	a, b := keyOf(program.Input{}), keyOf(program.ExecInput{})
	if n := min(len(a), len(b)); n == 0 || bytes.Equal(a[:n], b[:n]) {
		t.Errorf("keys %x and %x begin with the same %d bytes", a, b, n)
	}
}

// TestCacheIsBounded: by bytes, and by time.
func TestCacheIsBounded(t *testing.T) {
	var p programCache
	for i := range 100 {
		p.keep([]byte(fmt.Sprint(i)), make([]byte, 60<<10))
	}
	if p.bytes > programsMost || len(p.entries) < 5 || p.find([]byte("99")) == nil || p.find([]byte("0")) != nil {
		t.Errorf("%d entries of %d bytes", len(p.entries), p.bytes)
	}
	p.keep([]byte("large"), make([]byte, programsMost/4))
	p.keep([]byte("99"), []byte("other"))
	if p.find([]byte("large")) != nil || len(p.find([]byte("99"))) == len("other") {
		t.Error("something was kept that should not have been")
	}
	for i := range p.entries {
		p.entries[i].used = time.Now().Add(-2 * programsKept)
	}
	p.entries[0].used = time.Now()
	if p.forget(); len(p.entries) != 1 || p.bytes != len(p.entries[0].code)+len(p.entries[0].key) {
		t.Errorf("after a while: %d entries, %d bytes", len(p.entries), p.bytes)
	}
}

func BenchmarkKey(b *testing.B) {
	s := fieldBase()
	s.Process.Env = strings.Split(strings.Repeat("SOME_VARIABLE=value ", 30), " ")
	in := program.Input{Spec: s, Seccomp: make([]byte, 2000)}
	room := make([]byte, 0, 16<<10)
	for b.Loop() {
		in.Spec = essence(s, &in)
		appendValue(room, reflect.ValueOf(in))
	}
}

func BenchmarkCompile(b *testing.B) {
	s := fieldBase()
	s.Linux.Seccomp = nil
	in := program.Input{Spec: s}
	var room []byte
	for b.Loop() {
		room, _ = program.Encode(in, room[:0])
	}
}
