package profile

import (
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// allCaps are the capabilities that some condition names.
var allCaps = func() []string {
	var list []string
	for _, s := range seccomp.DefaultProfile().Syscalls {
		for _, f := range []*seccomp.Filter{s.Includes, s.Excludes} {
			if f == nil {
				continue
			}
			for _, c := range f.Caps {
				if !slices.Contains(list, c) {
					list = append(list, c)
				}
			}
		}
	}
	return list
}()

// TestResolveIsUpstreams compares our reading of the conditions with moby's own, which is for this machine only, for no capability, each, each missing, and all.
func TestResolveIsUpstreams(t *testing.T) {
	kernel, err := Kernel()
	if err != nil {
		t.Fatal(err)
	}
	sets := [][]string{nil, allCaps}
	for i, c := range allCaps {
		sets = append(sets, []string{c}, slices.Delete(slices.Clone(allCaps), i, i+1))
	}
	for _, caps := range sets {
		want, err := seccomp.GetDefaultProfile(&specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{Bounding: caps}}})
		if err != nil {
			t.Fatal(err)
		}
		got, err := resolve(seccomp.DefaultProfile(), Host{Arch: runtime.GOARCH, Kernel: kernel, Bounding: caps})
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%v: %v\n%+v\n%+v", caps, err, got, want)
		}
	}
	t.Logf("%d sets over %v", len(sets), allCaps)
}

func TestConditions(t *testing.T) {
	names := func(h Host) map[string]bool {
		p, err := For(h)
		if err != nil {
			t.Fatal(err)
		}
		m := map[string]bool{}
		for _, s := range p.Syscalls {
			for _, n := range s.Names {
				m[n] = m[n] || s.Action == specs.ActAllow
			}
		}
		return m
	}
	old := names(Host{Arch: "amd64", Kernel: Version{4, 7}})
	if old["ptrace"] || !old["arch_prctl"] || old["chroot"] || old["mount"] {
		t.Error("amd64, 4.7, no capabilities")
	}
	now := names(Host{Arch: "amd64", Kernel: Version{4, 8}, Bounding: []string{"CAP_SYS_CHROOT"}})
	if !now["ptrace"] || !now["chroot"] || now["mount"] {
		t.Error("amd64, 4.8, CAP_SYS_CHROOT")
	}
	arm := names(Host{Arch: "arm64", Kernel: Version{6, 1}, Bounding: []string{"CAP_SYS_ADMIN"}})
	if arm["arch_prctl"] || !arm["cacheflush"] || !arm["mount"] || !arm["socketcall"] {
		t.Error("arm64, CAP_SYS_ADMIN")
	}
	if s390 := names(Host{Arch: "s390x", Kernel: Version{6, 1}}); !s390["socketcall"] || !s390["s390_runtime_instr"] {
		t.Error("s390x")
	}
	if !names(Host{Arch: "amd64", Kernel: Version{6, 1}, Socketcall: true})["socketcall"] {
		t.Error("socketcall was asked for")
	}
	if _, err := For(Host{Arch: "pdp11"}); err == nil || !strings.Contains(err.Error(), "pdp11") {
		t.Error(err)
	}
}

// TestHardening holds the list of changes in the package comment: applied to upstream's data they are all that Default differs by.
func TestHardening(t *testing.T) {
	h := Host{Arch: "amd64", Kernel: Version{6, 12}}
	up, err := resolve(seccomp.DefaultProfile(), h)
	if err != nil {
		t.Fatal(err)
	}
	got, err := For(h)
	if err != nil {
		t.Fatal(err)
	}
	var want []specs.LinuxSyscall
	rxrpc := 0
	for _, s := range up.Syscalls {
		if len(s.Args) == 1 && s.Names[0] == "socket" && s.Args[0].Value == unix.AF_RXRPC {
			rxrpc++
			continue
		}
		s.Names = slices.DeleteFunc(slices.Clone(s.Names), func(n string) bool { return n == "socketcall" })
		want = append(want, s)
	}
	nosys := uint(unix.ENOSYS)
	want = append(want, specs.LinuxSyscall{Names: []string{"socketcall"}, Action: specs.ActErrno, ErrnoRet: &nosys})
	if !reflect.DeepEqual(got.Syscalls, want) || rxrpc != 1 {
		t.Errorf("got %+v\nwant %+v", got.Syscalls, want)
	}
	got.Syscalls, up.Syscalls = nil, nil
	if !reflect.DeepEqual(got, up) {
		t.Errorf("%+v, upstream %+v", got, up)
	}
}

// TestUnknownFormsAreErrors: if upstream ever opens a denied family in a way that we do not know, nobody gets that profile.
func TestUnknownFormsAreErrors(t *testing.T) {
	arg := func(op specs.LinuxSeccompOperator, v uint64) specs.LinuxSeccompArg {
		return specs.LinuxSeccompArg{Value: v, Op: op}
	}
	for name, s := range map[string]specs.LinuxSyscall{
		"unconditional":  {Names: []string{"socket"}, Action: specs.ActAllow},
		"with others":    {Names: []string{"connect", "socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(specs.OpEqualTo, 1)}},
		"above":          {Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(specs.OpGreaterThan, 40)}},
		"not equal":      {Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(specs.OpNotEqual, 40)}},
		"below too many": {Names: []string{"socket"}, Action: specs.ActAllow, Args: []specs.LinuxSeccompArg{arg(specs.OpLessThan, 39)}},
	} {
		p := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{s}}
		if err := harden(p, Host{Arch: "amd64"}); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDefaultIsTheCallers(t *testing.T) {
	a, err := Default([]string{"CAP_SYS_ADMIN"}, "")
	if err != nil {
		t.Fatal(err)
	}
	a.Syscalls[0].Names[0], a.Architectures[0] = "changed", "changed"
	b, err := Default([]string{"CAP_SYS_ADMIN"}, "")
	if err != nil || b.Syscalls[0].Names[0] == "changed" || b.Architectures[0] == "changed" {
		t.Error("shared with another caller")
	}
}

func TestVersions(t *testing.T) {
	for release, want := range map[string]Version{"6.18.44-fc-v669": {6, 18}, "5.10-rc1": {5, 10}, "4.8": {4, 8}} {
		if got, err := parseVersion(release); err != nil || got != want {
			t.Errorf("%s: %v, %v", release, got, err)
		}
	}
	for _, release := range []string{"", "x.1", "6", "6.x"} {
		if _, err := parseVersion(release); err == nil {
			t.Errorf("%q accepted", release)
		}
	}
}
