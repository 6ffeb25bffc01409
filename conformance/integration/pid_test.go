package integration

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// pidOf puts a container into the pid namespace of another.
func pidOf(target string) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		o := c.Linux.SecurityContext.NamespaceOptions
		o.Pid, o.TargetId = runtimeapi.NamespaceMode_TARGET, target
	}
}

// pidMode gives a container a mode.
func pidMode(mode runtimeapi.NamespaceMode) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode }
}

// podPIDMode is the same for a pod.
func podPIDMode(mode runtimeapi.NamespaceMode) func(*runtimeapi.PodSandboxConfig) {
	return func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = mode }
}

// pidNS names the pid namespace of a shell in a container.
const pidNS = "readlink /proc/self/ns/pid"

// TestPIDNamespaceOfATarget: what `kubectl debug --target` asks for, in every sort of pod. The container is in the target's pid
// namespace, sees its processes and, through /proc, its files, and so does what is executed in it. When it ends, all of it is gone and the
// target lives on; when the target ends, whose namespace it is, it dies too.
func TestPIDNamespaceOfATarget(t *testing.T) {
	for name, sort := range map[string]struct {
		pod  []func(*runtimeapi.PodSandboxConfig)
		mode runtimeapi.NamespaceMode
		in   func(*runtimeapi.ContainerConfig)
	}{
		"own":            {mode: runtimeapi.NamespaceMode_CONTAINER, in: func(*runtimeapi.ContainerConfig) {}},
		"shared":         {pod: []func(*runtimeapi.PodSandboxConfig){podPIDMode(runtimeapi.NamespaceMode_POD)}, mode: runtimeapi.NamespaceMode_POD, in: func(*runtimeapi.ContainerConfig) {}},
		"own in shared":  {pod: []func(*runtimeapi.PodSandboxConfig){podPIDMode(runtimeapi.NamespaceMode_POD)}, mode: runtimeapi.NamespaceMode_CONTAINER, in: func(*runtimeapi.ContainerConfig) {}},
		"host":           {pod: []func(*runtimeapi.PodSandboxConfig){podPIDMode(runtimeapi.NamespaceMode_NODE)}, mode: runtimeapi.NamespaceMode_NODE, in: func(*runtimeapi.ContainerConfig) {}},
		"user namespace": {pod: []func(*runtimeapi.PodSandboxConfig){mapped}, mode: runtimeapi.NamespaceMode_CONTAINER, in: inMapped},
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t)
			p := s.runPod("target", sort.pod...)
			beside := p.run("beside", "sleep 1003", sort.in, pidMode(sort.mode))
			target := p.run("target", "echo here >/mark; sleep 1001; true", sort.in, pidMode(sort.mode))
			s.eventually("the target's sleep", func() bool { return len(s.sleeping(target, "1001")) == 1 })
			debug := p.run("debug", "(setsid sleep 1002 &) ; sleep 1002; true", sort.in, pidOf(target))
			if is, want := s.exec(debug, pidNS), s.exec(target, pidNS); is != want {
				t.Errorf("it is in %s, its target in %s", is, want)
			}
			s.eventually("its own processes", func() bool { return len(s.sleeping(debug, "1002")) == 2 })
			theirs, others := s.sleeping(debug, "1001"), s.sleeping(debug, "1003")
			if len(theirs) != 1 || len(others) != map[bool]int{true: 0, false: 1}[sort.mode == runtimeapi.NamespaceMode_CONTAINER] {
				t.Fatalf("it sees %v of its target and %v of the container beside", theirs, others)
			}
			if got := s.exec(debug, "cat /proc/"+theirs[0]+"/root/mark; cat /mark 2>&1; true"); !strings.HasPrefix(got, "here\n") || strings.Count(got, "here") != 1 {
				t.Errorf("of its target's files and its own it sees %q", got)
			}
			all := p.everybody(debug)
			if err := s.cri.StopContainer(s.ctx, debug, 0); err != nil {
				t.Fatal(err)
			}
			s.eventually("all of it are gone", func() bool { return !slices.ContainsFunc(all, isAlive) })
			if mine, its := s.sleeping(target, "1001"), s.sleeping(target, "1002"); len(mine) != 1 || len(its) != 0 {
				t.Errorf("the target is left with %v of its own and %v of the other", mine, its)
			}
			second := p.run("second", "sleep 1002; true", sort.in, pidOf(target))
			if err := s.cri.StopContainer(s.ctx, target, 0); err != nil {
				t.Fatal(err)
			}
			if sort.mode == runtimeapi.NamespaceMode_CONTAINER {
				if st := s.exited(second); st.ExitCode != 137 {
					t.Errorf("with its target it ended with %d", st.ExitCode)
				}
			} else if got := s.exec(second, "echo fine"); got != "fine" {
				t.Errorf("after its target's end: %q", got)
			}
			if got := s.exec(beside, "echo fine"); got != "fine" {
				t.Errorf("the container beside: %q", got)
			}
		})
	}
}

// TestPIDNamespaceOfATargetAfterARestart: a daemon that was started since knows the target, and executes in what has joined it.
func TestPIDNamespaceOfATargetAfterARestart(t *testing.T) {
	s := open(t)
	p := s.runPod("target-restart")
	target := p.run("target", "sleep 1001")
	old := p.run("old", "sleep 1002", pidOf(target))
	s.killDaemon()
	s.restart()
	want := s.exec(target, pidNS)
	for name, id := range map[string]string{"one from before": old, "a new one": p.run("new", "sleep 1003", pidOf(target[:20]))} {
		if is := s.exec(id, pidNS); is != want {
			t.Errorf("%s is in %s, the target in %s", name, is, want)
		}
	}
}

// TestPIDNamespaceOfATargetEnded: between the look at the target and the fork it may end. What is made then is refused, and nothing is left.
func TestPIDNamespaceOfATargetEnded(t *testing.T) {
	s := open(t)
	p := s.runPod("target-ended")
	for range 20 {
		target := p.run("target", "sleep 1001")
		done := make(chan error, 1)
		go func() { // ends with the answer
			done <- s.try(p, pidOf(target))
		}()
		if err := s.cri.StopContainer(s.ctx, target, 0); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil && code(err) != codes.FailedPrecondition {
			t.Errorf("%v, want FailedPrecondition", err)
		}
		if err := s.cri.RemoveContainer(s.ctx, target); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := s.cri.ListContainers(s.ctx, nil); err != nil || len(list) != 0 {
		t.Errorf("left: %v (%v)", list, err)
	}
}

// TestOwnPIDNamespaceInASharedPod: a container that asks for its own is alone in it, also where the pod shares one.
func TestOwnPIDNamespaceInASharedPod(t *testing.T) {
	s := open(t)
	p := s.runPod("own-in-shared", podPIDMode(runtimeapi.NamespaceMode_POD))
	shared := p.run("shared", "sleep 1001", pidMode(runtimeapi.NamespaceMode_POD))
	own := p.run("own", "exec sleep 1002", pidMode(runtimeapi.NamespaceMode_CONTAINER))
	s.eventually("it is the first there", func() bool { return s.exec(own, "tr '\\0' ' ' </proc/1/cmdline") == "sleep 1002 " })
	if got := s.exec(own, "ps"); len(s.sleeping(own, "1001")) != 0 || strings.Contains(got, "pause") {
		t.Errorf("it sees\n%s", got)
	}
	if got := s.exec(shared, "ps"); len(s.sleeping(shared, "1002")) != 0 || !strings.Contains(got, "pause") {
		t.Errorf("the pod sees\n%s", got)
	}
}

// sleeping returns the pids of the sleeps of so many seconds, as a container sees them.
func (s *scene) sleeping(id, seconds string) []string {
	s.Helper()
	return strings.Fields(s.exec(id, `ps -o pid,args | awk '$2 == "sleep" && $3 == "`+seconds+`" { print $1 }'`))
}
