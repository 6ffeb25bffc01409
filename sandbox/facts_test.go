package sandbox

import (
	"errors"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestEveryTransition walks every pair of a state and an event. The states include the two that differ only
// in history: exited with and without a start.
func TestEveryTransition(t *testing.T) {
	const bad = "impossible"
	states := []struct {
		name string
		f    facts
	}{
		{"none", facts{}},
		{"created", facts{Created: 1, Pid: 7}},
		{"running", facts{Created: 1, Started: 2, Pid: 7}},
		{"exited", facts{Created: 1, Started: 2, Finished: 3, Reason: reasonCompleted, Pid: 7}},
		{"exited unstarted", facts{Created: 1, Finished: 3, ExitCode: 137, Reason: reasonError, Pid: 7}},
	}
	want := map[string]map[happening]string{
		"none":             {created: "CONTAINER_CREATED", started: bad, startFailed: bad, exited: bad, lost: bad},
		"created":          {created: bad, started: "CONTAINER_RUNNING", startFailed: "StartError 127", exited: "OOMKilled 137", lost: "Unknown 255"},
		"running":          {created: bad, started: bad, startFailed: bad, exited: "OOMKilled 137", lost: "Unknown 255"},
		"exited":           {created: bad, started: bad, startFailed: bad, exited: "Completed 0", lost: "Completed 0"},
		"exited unstarted": {created: bad, started: "Error 137", startFailed: "StartError 127", exited: "Error 137", lost: "Error 137"},
	}
	for _, s := range states {
		for what, w := range want[s.name] {
			e := event{what: what, at: 9, pid: 7, code: 137, oom: true}
			if what == startFailed {
				e.code = 127
			}
			got, err := s.f.next(e)
			if w == bad {
				if !errors.Is(err, errTransition) || got != s.f {
					t.Errorf("%s + %d: want a refusal that changes nothing, got %+v, %v", s.name, what, got, err)
				}
				continue
			}
			desc := got.state().String()
			if got.Finished != 0 {
				desc = got.Reason + " " + itoa(int(got.ExitCode))
			}
			if err != nil || desc != w {
				t.Errorf("%s + %d: want %s, got %s (%+v, %v)", s.name, what, w, desc, got, err)
			}
			if got.Finished != 0 && got.state() != runtimeapi.ContainerState_CONTAINER_EXITED {
				t.Errorf("%s + %d: finished but %s", s.name, what, got.state())
			}
			if got.Started > got.Finished && got.Finished != 0 {
				t.Errorf("%s + %d: finished at %d before its start at %d", s.name, what, got.Finished, got.Started)
			}
		}
		if len(want[s.name]) != int(lost)+1 {
			t.Errorf("%s: not every event is tried", s.name)
		}
	}
	ok := event{what: exited, at: 9}
	if f, _ := (facts{Created: 1}).next(ok); f.Reason != reasonCompleted {
		t.Errorf("exit code 0: %+v", f)
	}
}

func TestPodState(t *testing.T) {
	for _, c := range []struct {
		f     podFacts
		ready bool
	}{
		{podFacts{}, false}, {podFacts{Created: 1}, true}, {podFacts{Created: 1, NotReady: 2}, false},
		{podFacts{NotReady: 2}, false}, {podFacts{Created: 1, NotReady: 2, Stopped: 3}, false},
	} {
		if got := c.f.state() == runtimeapi.PodSandboxState_SANDBOX_READY; got != c.ready {
			t.Errorf("%+v: ready %v", c.f, got)
		}
	}
}
