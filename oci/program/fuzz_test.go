package program_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"reflect"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// judge is the oracle over whatever compiles: the rules hold, it arrives as it
// was sent, it can be explained, the same input gives the same program, and what
// it names before its pivot is held against a reading of rule R1 that shares
// nothing with Check.
func judge(t *testing.T, p *step.Program, again func() (*step.Program, error)) {
	t.Helper()
	if err := program.Check(p); err != nil {
		t.Fatalf("compiled, and breaks a rule: %v", err)
	}
	b, err := p.Encode()
	if err != nil {
		t.Fatalf("compiled, and does not encode: %v", err)
	}
	q, err := step.Decode(b)
	if err != nil {
		t.Fatalf("encoded, and does not decode: %v", err)
	}
	c, err := q.Encode()
	if err != nil || !bytes.Equal(b, c) {
		t.Fatalf("decoded, and encodes to something else: %v", err)
	}
	if err := program.Explain(io.Discard, p); err != nil {
		t.Fatal(err)
	}
	r, err := again()
	if err != nil || !reflect.DeepEqual(p, r) {
		t.Fatalf("compiled again, and differs: %v", err)
	}
	if bad := byName(p); bad != "" {
		t.Fatal(bad)
	}
}

// byName returns the first step before the pivot of a container's program that
// follows a path which somebody else may change, by what the kernel takes as a
// path: every string argument of a call that takes paths.
func byName(p *step.Program) string {
	ours := []string{"", "/", program.ScratchRoot, program.EmptyDir, program.NullFile}
	paths := map[uint32][]int{ // which arguments are paths, each behind its directory
		unix.SYS_OPEN_TREE: {1}, unix.SYS_MOUNT_SETATTR: {1}, unix.SYS_STATX: {1}, unix.SYS_MOVE_MOUNT: {1, 3},
		unix.SYS_MKDIRAT: {1}, unix.SYS_MKNODAT: {1}, unix.SYS_FCHOWNAT: {1}, unix.SYS_NEWFSTATAT: {1}, unix.SYS_SYMLINKAT: {2},
	}
	pivot := slices.IndexFunc(p.Steps, func(s step.Step) bool { return s.Nr == unix.SYS_PIVOT_ROOT })
	for i := range max(pivot, 0) {
		s := &p.Steps[i]
		for _, a := range paths[s.Nr] {
			name, dir := text(p, s.Args[a]), s.Args[a-1]
			atCWD := dir.Kind == step.Const && int32(dir.Val) == unix.AT_FDCWD
			if atCWD && !slices.Contains(ours, name) || !atCWD && strings.Contains(name, "/") || name == ".." {
				return fmt.Sprintf("step %d (%s) follows %q", i, s.Name, name)
			}
		}
		if s.Nr == unix.SYS_OPENAT2 {
			h := p.Data[s.Args[2].Val:]
			if resolve := h[16]; resolve&unix.RESOLVE_IN_ROOT == 0 && resolve&unix.RESOLVE_BENEATH == 0 || s.Args[0].Kind == step.Const && int32(s.Args[0].Val) == unix.AT_FDCWD {
				return fmt.Sprintf("step %d (%s) opens %q anywhere", i, s.Name, text(p, s.Args[1]))
			}
		}
	}
	return ""
}

// judged says that a refusal names its field and is of a kind that callers know.
func judged(t *testing.T, err error) {
	t.Helper()
	if !errors.Is(err, program.ErrInvalid) && !errors.Is(err, program.ErrUnsupported) {
		t.Fatalf("refused without a reason: %v", err)
	}
	if len(err.Error()) > 8<<10 {
		t.Fatalf("refusal of %d bytes", len(err.Error()))
	}
}

// fuzzInput is what belongs to a spec: each bind mount has a source.
func fuzzInput(s *specs.Spec, filter []byte) program.Input {
	in := program.Input{Spec: s, Seccomp: filter, Binds: map[int]program.Bind{}}
	for i, m := range s.Mounts {
		if m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind") {
			in.Binds[i] = program.Bind{File: len(in.Binds) + 1, Dir: path.Ext(m.Destination) == ""}
		}
	}
	return in
}

func seedSpecs(f *testing.F) {
	full := testSpec("sh", "-c", "true")
	full.Process.User = specs.User{UID: 1000, GID: 7, AdditionalGids: []uint32{1, 2}}
	full.Process.NoNewPrivileges, full.Root.Readonly = true, true
	full.Process.Cwd = "/work/dir"
	full.Mounts = append(full.Mounts, specs.Mount{Destination: "/v/a b/../c", Type: "bind", Source: "/srv", Options: []string{"rbind", "rro", "nosuid"}},
		specs.Mount{Destination: "/etc/hosts.txt", Type: "bind", Source: "/srv", Options: []string{"bind", "ro"}})
	gid := uint32(5)
	full.Linux.Devices = []specs.LinuxDevice{{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200, GID: &gid}}
	for _, s := range []*specs.Spec{testSpec("true"), testSpec("/bin/true", "x"), full, {}} {
		b, err := json.Marshal(s)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, []byte{6, 0, 0, 0, 0, 0, 0xff, 0x7f})
		f.Add(b, []byte(nil))
	}
	f.Add([]byte(`{"ociVersion":"1.3.0","process":{"cwd":"/","args":["a"],"rlimits":[{"type":"RLIMIT_NOFILE"}]},"linux":{"namespaces":[{"type":"mount"}]}}`), []byte(nil))
}

// FuzzCompile: any JSON is refused by name or becomes a program that keeps the
// rules; the same for an exec with its process.
func FuzzCompile(f *testing.F) {
	seedSpecs(f)
	f.Fuzz(func(t *testing.T, text, filter []byte) {
		var s specs.Spec
		if len(text) > 64<<10 || json.Unmarshal(text, &s) != nil {
			return
		}
		judgeSpec(t, &s, filter)
	})
}

func judgeSpec(t *testing.T, s *specs.Spec, filter []byte) {
	in := fuzzInput(s, filter)
	if p, err := program.Compile(in); err != nil {
		judged(t, err)
	} else {
		judge(t, p, func() (*step.Program, error) { return program.Compile(in) })
	}
	x := program.ExecInput{Process: s.Process, Seccomp: filter}
	if p, err := program.CompileExec(x); err != nil {
		judged(t, err)
	} else {
		judge(t, p, func() (*step.Program, error) { return program.CompileExec(x) })
	}
}

// FuzzSpec builds specs from bytes, so that most of them compile: places that
// are like each other, deep, dotted or long, options of all kinds in all orders.
func FuzzSpec(f *testing.F) {
	f.Add([]byte("a container of no particular kind, 0123456789"))
	f.Add(bytes.Repeat([]byte{0xff, 0, 7, 3}, 40))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		d := &dice{b: b}
		s := testSpec("true")
		s.Process.Cwd = d.path()
		s.Process.Args = []string{d.word(), d.word()}
		s.Process.NoNewPrivileges, s.Root.Readonly = d.n(2) == 0, d.n(2) == 0
		s.Process.User = specs.User{UID: uint32(d.n(256)) << d.n(25), GID: uint32(d.n(256))}
		for range d.n(12) {
			s.Mounts = append(s.Mounts, d.mount())
		}
		if d.n(3) == 0 {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(specs.LinuxNamespace) bool { return d.n(5) == 0 })
		}
		for range d.n(6) {
			s.Linux.MaskedPaths = append(s.Linux.MaskedPaths, d.path())
			s.Linux.ReadonlyPaths = append(s.Linux.ReadonlyPaths, d.path())
		}
		for range d.n(4) {
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: d.path(), Type: d.of("c", "b", "u", "p", "x"), Major: int64(d.n(256)), Minor: int64(d.n(256))})
		}
		caps := []string{"CAP_CHOWN", "CAP_KILL", "CAP_SETUID", "CAP_SYS_ADMIN"}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: caps[:d.n(5)], Permitted: caps[:d.n(5)], Effective: caps[:d.n(5)], Inheritable: caps[:d.n(3)], Ambient: caps[:d.n(3)]}
		var filter []byte
		if d.n(2) == 0 {
			filter = filterOf(d.n(400), 0x7fff0000)
		}
		judgeSpec(t, s, filter)
	})
}

// dice make decisions from bytes; behind their end they are zero.
type dice struct{ b []byte }

func (d *dice) n(n int) int {
	if len(d.b) == 0 {
		return 0
	}
	v := int(d.b[0])
	d.b = d.b[1:]
	return v % n
}

func (d *dice) of(s ...string) string { return s[d.n(len(s))] }

func (d *dice) word() string {
	return d.of("true", "sh", "a", "", ".", "..", "/bin/x", "a\x00b", strings.Repeat("w", 300), "ü", "./x", "$", "proc")
}

func (d *dice) path() string {
	p := ""
	for range 1 + d.n(6) {
		p += d.of("/", "//", "/./", "/../", "") + d.of("a", "b", "proc", "sys", "dev", "null", "self", "fd", "x.txt", strings.Repeat("l", 255), strings.Repeat("m", 256), "é", " ", "..", "")
	}
	return p
}

func (d *dice) mount() specs.Mount {
	m := specs.Mount{Destination: d.path(), Type: d.of("bind", "tmpfs", "proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2", "none", "", "overlay", "ext4"), Source: d.path()}
	for range d.n(6) {
		m.Options = append(m.Options, d.of("ro", "rw", "rro", "nosuid", "rnosuid", "suid", "noexec", "exec", "rexec", "nodev", "noatime", "relatime", "strictatime", "rbind", "bind", "private",
			"rshared", "rslave", "unbindable", "mode=755", "size=1m", "idmap", "ridmap", "tmpcopyup", "remount", "x=", "=y", "\x00", "nosymfollow", "defaults", "sync"))
	}
	return m
}
