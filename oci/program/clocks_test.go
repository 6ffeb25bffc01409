package program_test

import (
	"fmt"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// timed is a stage with a time namespace.
func timed(root string, offsets map[string]specs.LinuxTimeOffset, args ...string) *stage {
	s := newStage(root, args...)
	s.in.Spec.Linux.Namespaces = append(s.in.Spec.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	s.in.Spec.Linux.TimeOffsets = offsets
	return s
}

const showClocks = `cat /proc/self/timens_offsets; cut -d. -f1 /proc/uptime; [ $(readlink /proc/self/ns/time) = $(readlink /proc/self/ns/time_for_children) ] && echo inside`

// TestTimeOffsets: the clocks are set, the process goes by them, and so does an
// exec; the host's stand where they stood.
func TestTimeOffsets(t *testing.T) {
	root := rootTree(t)
	script := strings.ReplaceAll(showClocks, "cut", "busybox cut")
	offsets := map[string]specs.LinuxTimeOffset{"monotonic": {Secs: 1000, Nanosecs: 5}, "boottime": {Secs: 1000000}}
	s := timed(root, offsets, "sh", "-c", script)
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		t.Fatal(err)
	}
	want := func(out string) bool {
		f := strings.Fields(out)
		var up int64
		if len(f) == 8 {
			fmt.Sscan(f[6], &up)
		}
		return len(f) == 8 && strings.Join(f[:6], " ") == "monotonic 1000 5 boottime 1000000 0" && up >= now.Sec+1000000 && up < now.Sec+1000000+600 && f[7] == "inside"
	}
	if res := s.run(t); res.err != nil || !want(res.out) {
		t.Errorf("%v\n%s", res.err, res.out)
	}
	s = timed(root, offsets, "sleep", "60")
	s.after = func(c *executor.Child) {
		out, err := execWith(t, c, program.ExecInput{Process: testSpec("sh", "-c", script).Process, CgroupNS: true, Join: unix.CLONE_NEWTIME})
		if err != nil || !want(out) {
			t.Errorf("exec: %v\n%s", err, out)
		}
		unix.Kill(c.Pid(), unix.SIGKILL)
	}
	if res := s.run(t); res.err != nil {
		t.Error(res.err)
	}
	// Without offsets the namespace is made by the clone, and shows none.
	if res := timed(root, nil, "sh", "-c", script).run(t); res.err != nil || !strings.HasPrefix(res.out, "monotonic           0         0\n") || !strings.HasSuffix(res.out, "inside\n") {
		t.Errorf("no offsets: %v\n%s", res.err, res.out)
	}
	timed(root, map[string]specs.LinuxTimeOffset{"boottime": {Secs: -1 << 60}}, "true").wants(t, "!set its clocks: numerical result out of range")
}

// TestTimeOffsetsOfUserNamespace: there the parent sets them, with the maps.
func TestTimeOffsetsOfUserNamespace(t *testing.T) {
	s := userSpec("sh", "-c", strings.ReplaceAll(showClocks, "cut", "busybox cut"))
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.TimeNamespace})
	s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1000000}}
	st := userStage(t, mappedRoot(t), s)
	st.in.ClocksAtGate = true
	var err error
	if st.maps.Clocks, err = program.ClockText(s.Linux.TimeOffsets); err != nil {
		t.Fatal(err)
	}
	res := st.run(t)
	if f := strings.Fields(res.out); res.err != nil || len(f) != 8 || f[4] != "1000000" || len(f[6]) < 7 || f[7] != "inside" {
		t.Errorf("%v\n%s", res.err, res.out)
	}
}

func TestTimeOffsetRefusals(t *testing.T) {
	for want, change := range map[string]func(s *specs.Spec){
		"linux.timeOffsets: a clock that is neither": func(s *specs.Spec) { s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"realtime": {Secs: 1}} },
		`linux.timeOffsets["boottime"].nanosecs: 1000000000`: func(s *specs.Spec) {
			s.Linux.TimeOffsets = map[string]specs.LinuxTimeOffset{"boottime": {Nanosecs: 1e9}}
		},
		"linux.timeOffsets: without a new time namespace":                                   func(s *specs.Spec) { drop(s, specs.TimeNamespace) },
		"linux.timeOffsets: in a user namespace, and nobody sets the clocks: not supported": func(s *specs.Spec) { own(s) },
	} {
		s := timed("", map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}, "true")
		change(s.in.Spec)
		if _, err := program.Compile(s.in); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// own gives a spec a user namespace.
func own(s *specs.Spec) {
	u := userSpec("true")
	s.Linux.UIDMappings, s.Linux.GIDMappings = u.Linux.UIDMappings, u.Linux.GIDMappings
	s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
}

// TestCheckOfClocks: the link to the clocks of its own is the only one of its kind
// that a program follows.
func TestCheckOfClocks(t *testing.T) {
	s := timed("", map[string]specs.LinuxTimeOffset{"boottime": {Secs: 1}}, "true")
	good, err := program.Compile(s.in)
	if err != nil {
		t.Fatal(err)
	}
	at := 0
	for i := range good.Steps {
		if good.Steps[i].Name == "go by them" {
			at = i
		}
	}
	breaks(t, "clocks by", good, map[string]func(p *step.Program){
		"other link":      func(p *step.Program) { retarget(p, at-1, "self/ns/net") },
		"path":            func(p *step.Program) { retarget(p, at-1, "self/root") },
		"host's":          func(p *step.Program) { retarget(p, at-1, "1/ns/time_for_children") },
		"image's":         func(p *step.Program) { p.Steps[at-1].Args[0] = step.Arg{Val: step.FirstFD} },
		"other namespace": func(p *step.Program) { p.Steps[at].Args[1].Val = unix.CLONE_NEWNET },
		"other fd":        func(p *step.Program) { p.Steps[at-1].Result = 0 },
		"jump":            func(p *step.Program) { p.Steps[at-2].Then = 1 },
		"forgiven":        func(p *step.Program) { p.Steps[at].OnErr = []step.Branch{{Errno: uint16(unix.EPERM)}} },
	})
}
