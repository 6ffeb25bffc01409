package monitor

import (
	"fmt"
	"os"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// fakeScope is a plain directory with the files of a cgroup: the machines that
// build this have no memory controller.
type fakeScope struct {
	t    *testing.T
	path string
	dir  *sys.FD
}

func newScope(t *testing.T, kills int) *fakeScope {
	s := &fakeScope{t: t, path: t.TempDir()}
	s.write("cgroup.events", "populated 1\nfrozen 0\n")
	s.set(kills)
	s.dir = sys.NewFD(mustOpen(t, s.path))
	t.Cleanup(func() { s.dir.Close() })
	return s
}

func (s *fakeScope) write(name, text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path+"/"+name, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *fakeScope) set(kills int) {
	s.write("memory.events", fmt.Sprintf("low 0\nhigh 0\nmax 7\noom 1\noom_kill %d\noom_group_kill 3\n", kills))
}

// vanish is what systemd does with an empty scope.
func (s *fakeScope) vanish() {
	os.Remove(s.path + "/memory.events")
	os.Remove(s.path + "/cgroup.events")
}

var (
	shot   = wire.Status{Signal: int32(unix.SIGKILL), At: 1}
	passed = wire.Status{Code: 137, At: 2}
	failed = wire.Status{Code: 1, At: 3}
	fine   = wire.Status{At: 4}
)

// With a counter that can be read.
func TestOOMKilled(t *testing.T) {
	for _, c := range []struct {
		status wire.Status
		byUs   bool
		kills  int
		want   bool
	}{
		{shot, false, 1, true}, {passed, false, 1, true}, {shot, false, 5, true},
		{shot, false, 0, false}, {passed, false, 0, false},
		{failed, false, 1, false}, {fine, false, 1, false}, {wire.Status{Signal: 15}, false, 1, false},
		{shot, true, 1, false}, {passed, true, 1, false},
	} {
		var l ledger
		s := newScope(t, c.kills)
		got := l.settle(l.add(s.dir, nil), ending{status: c.status, byUs: c.byUs})
		if got.OOMKilled != c.want || got.OOMKills != uint32(c.kills) || got.Signal != c.status.Signal || got.Code != c.status.Code {
			t.Errorf("%+v: %+v", c, got)
		}
		if len(l.open) != 0 {
			t.Errorf("%+v: the account is open", c)
		}
	}
}

// Without a cgroup, or without the controller, nobody is OOM-killed, and nobody waits for neighbours.
func TestNoCounter(t *testing.T) {
	var l ledger
	pod := newScope(t, 3)
	bare := newScope(t, 0)
	os.Remove(bare.path + "/memory.events")
	neighbour, none, without := l.add(bare.dir, pod.dir), l.add(nil, nil), l.add(bare.dir, nil)
	began := time.Now()
	for _, a := range []*oomAccount{none, without, neighbour} {
		if got := l.settle(a, ending{status: shot}); got.OOMKilled || got.OOMKills != 0 {
			t.Errorf("%+v", got)
		}
	}
	if d := time.Since(began); d > reapTime/2 {
		t.Errorf("took %v", d)
	}
}

// corpse is a container whose cgroup went before it was read.
type corpse struct {
	status wire.Status
	byUs   bool
	want   int // kills
	oom    bool
}

// TestVanished gives the ledger what a monitor finds that was stopped while systemd swept: the cgroups of the dead are gone,
// those of the others are there, and the pod's counter knows of all.
func TestVanished(t *testing.T) {
	for name, c := range map[string]struct {
		before, live, dead int // kills: before the first container, of one that lives, of one that was settled in time
		gone               int // of the corpses together
		corpses            []corpse
	}{
		"one":                      {gone: 1, corpses: []corpse{{shot, false, 1, true}}},
		"one of many":              {2, 3, 4, 1, []corpse{{shot, false, 1, true}}},
		"nobody":                   {2, 3, 4, 0, []corpse{{shot, false, 0, false}}},
		"ended well":               {gone: 1, corpses: []corpse{{fine, false, 1, false}}},
		"a group":                  {gone: 7, corpses: []corpse{{shot, false, 7, true}}},
		"stopped, with a sibling":  {gone: 1, corpses: []corpse{{shot, true, 0, false}, {shot, false, 1, true}}},
		"the other way":            {gone: 1, corpses: []corpse{{shot, false, 1, true}, {shot, true, 0, false}}},
		"stopped, and a survivor":  {gone: 1, corpses: []corpse{{shot, true, 0, false}, {failed, false, 1, false}}},
		"stopped after a kill":     {gone: 2, corpses: []corpse{{shot, true, 2, false}}},
		"both stopped":             {gone: 0, corpses: []corpse{{shot, true, 0, false}, {shot, true, 0, false}}},
		"two of two":               {gone: 2, corpses: []corpse{{shot, false, 1, true}, {passed, false, 1, true}}},
		"one of two":               {gone: 1, corpses: []corpse{{passed, false, 0, false}, {shot, false, 1, true}}}, // who died first
		"a live one's are its own": {0, 2, 0, 0, []corpse{{shot, false, 0, false}}},
	} {
		var l ledger
		pod := newScope(t, c.before)
		live, dead := newScope(t, 0), newScope(t, 0)
		l.add(live.dir, pod.dir)
		if l.pod != pod.dir {
			t.Fatal("the pod's cgroup was not taken")
		}
		settled := l.add(dead.dir, nil)
		var accounts []*oomAccount
		var scopes []*fakeScope
		for range c.corpses {
			s := newScope(t, 0)
			scopes, accounts = append(scopes, s), append(accounts, l.add(s.dir, nil))
		}
		dead.set(c.dead)
		live.set(c.live)
		pod.set(c.before + c.dead + c.live + c.gone)
		l.settle(settled, ending{status: shot})
		dead.vanish()
		for _, s := range scopes {
			s.vanish()
		}
		results := make([]chan wire.Status, len(accounts))
		for i, a := range accounts {
			results[i] = make(chan wire.Status, 1)
			go func() { results[i] <- l.settle(a, ending{status: c.corpses[i].status, byUs: c.corpses[i].byUs}) }()
		}
		for i, want := range c.corpses {
			if got := <-results[i]; got.OOMKilled != want.oom || int(got.OOMKills) != want.want {
				t.Errorf("%s: corpse %d: %+v", name, i, got)
			}
		}
		if len(l.open) != 1 {
			t.Errorf("%s: %d accounts are open", name, len(l.open))
		}
	}
}

// What a container's leftovers meet after its death is not found with a neighbour, nor is what happened before a
// failed creation was taken back.
func TestLateKills(t *testing.T) {
	var l ledger
	pod, first, failed, second := newScope(t, 0), newScope(t, 0), newScope(t, 0), newScope(t, 0)
	a, b, c := l.add(first.dir, pod.dir), l.add(failed.dir, nil), l.add(second.dir, nil)
	if got := l.settle(a, ending{status: fine}); got.OOMKills != 0 {
		t.Errorf("%+v", got)
	}
	first.set(2)
	failed.set(3)
	pod.set(5)
	if n := l.again(a); n != 2 {
		t.Errorf("%d kills in the end", n)
	}
	if n := l.count(b); n != 3 {
		t.Errorf("%d kills so far", n)
	}
	l.drop(b)
	l.drop(b)
	second.vanish()
	if got := l.settle(c, ending{status: shot}); got.OOMKills != 0 || got.OOMKilled {
		t.Errorf("the neighbour's: %+v", got)
	}
}

// A neighbour whose cgroup is gone and who is never reaped holds nobody up for long.
func TestNeighbourHangs(t *testing.T) {
	var l ledger
	pod, s, other := newScope(t, 0), newScope(t, 0), newScope(t, 0)
	a := l.add(s.dir, pod.dir)
	l.add(other.dir, nil)
	pod.set(1)
	s.vanish()
	other.vanish()
	if got := l.settle(a, ending{status: shot}); !got.OOMKilled {
		t.Errorf("%+v", got)
	}
}

func TestApportion(t *testing.T) {
	of := func(byUs bool, s wire.Status) *oomAccount { return &oomAccount{how: ending{status: s, byUs: byUs}} }
	for _, c := range []struct {
		n     uint64
		group []*oomAccount
		want  []uint64
	}{
		{3, nil, []uint64{}},
		{0, []*oomAccount{of(false, shot)}, []uint64{0}},
		{5, []*oomAccount{of(true, shot), of(false, passed), of(false, shot)}, []uint64{0, 1, 4}},
		{2, []*oomAccount{of(true, shot), of(false, fine), of(false, failed)}, []uint64{0, 2, 0}},
		{2, []*oomAccount{of(true, shot), of(true, passed)}, []uint64{2, 0}},
	} {
		if got := apportion(c.n, c.group); !reflect.DeepEqual(got, c.want) {
			t.Errorf("%d over %d: %v instead of %v", c.n, len(c.group), got, c.want)
		}
	}
}
