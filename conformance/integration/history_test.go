package integration

import (
	"fmt"
	"slices"
	"sort"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"google.golang.org/grpc/codes"
)

// The stages of an object's life. A pod that is ready is at running. Nothing ever goes back.
const (
	exists = iota
	running
	ended
	gone
)

var stages = []string{"there", "running", "ended", "gone"}

// A fact is what one answer says of one object: at some moment between begin and end it was at that stage. Moments are ticks of one
// counter, so that of two facts one is later only where its request was sent after the other's answer had come.
type fact struct {
	id         string
	stage      int
	least      bool // it was at that stage or farther, as after a Stop, which also succeeds for what is gone
	begin, end int64
	what       string // the request, for complaints
}

// A cause is a request that may bring an object to a stage, whether or not it succeeded.
type cause struct {
	id    string
	stage int
	begin int64
}

// history is what many clients did to a few objects, and what they were told.
type history struct {
	clock  atomic.Int64
	mu     sync.Mutex
	facts  []fact
	causes []cause
	starts []fact            // those that succeeded
	podOf  map[string]string // by container: what happens to the pod happens to it
	codes  map[string]map[codes.Code]int
	wrong  []string // answers that are wrong by themselves
}

func (h *history) tick() int64 { return h.clock.Add(1) }

func (h *history) cause(id string, stage int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.causes = append(h.causes, cause{id, stage, h.tick()})
}

func (h *history) fact(f fact) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.facts = append(h.facts, f)
	if f.what == "StartContainer" && f.stage == running {
		h.starts = append(h.starts, f)
	}
}

// answered counts an answer, and complains of a code that is not legal for the verb.
func (h *history) answered(verb string, err error, legal ...codes.Code) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.codes == nil {
		h.codes = map[string]map[codes.Code]int{}
	}
	if h.codes[verb] == nil {
		h.codes[verb] = map[codes.Code]int{}
	}
	h.codes[verb][code(err)]++
	if err != nil && !slices.Contains(legal, code(err)) {
		h.wrong = append(h.wrong, fmt.Sprintf("%s: %v", verb, err))
	}
}

// illegal returns what no order of the requests explains:
//
//   - an object is at an earlier stage than an answer that had come before the question says,
//   - it is at a stage to which nobody had begun to bring it,
//   - it was started twice, by requests of which one was sent after the other was answered.
func (h *history) illegal() []string {
	bad := slices.Clone(h.wrong)
	first := map[string][4]int64{} // when a request that leads to the stage was sent first; 0: never
	for _, c := range h.causes {
		if f := first[c.id]; f[c.stage] == 0 || c.begin < f[c.stage] {
			f[c.stage] = c.begin
			first[c.id] = f
		}
	}
	for _, f := range h.facts {
		if f.stage > exists && !led(first[f.id], f) && !led(first[h.podOf[f.id]], f) {
			bad = append(bad, fmt.Sprintf("%s: %s is %s, and nobody had asked for that", f.what, f.id, stages[f.stage]))
		}
	}
	for _, of := range byObject(h.facts) {
		bad = append(bad, backwards(of)...)
	}
	for _, of := range byObject(h.starts) {
		for i := range of {
			for _, later := range of[i+1:] {
				if later.begin > of[i].end {
					bad = append(bad, of[i].id+" was started twice")
				}
			}
		}
	}
	return bad
}

// led reports whether somebody had begun to bring the object to the stage before the answer came. Whoever removes it ends it, too.
func led(since [4]int64, f fact) bool {
	for s := f.stage; s <= gone; s++ {
		if f.stage == running && s != running {
			break
		}
		if since[s] != 0 && since[s] < f.end {
			return true
		}
	}
	return false
}

// byObject groups facts by their object, each in the order of their answers.
func byObject(facts []fact) map[string][]fact {
	of := map[string][]fact{}
	for _, f := range facts {
		of[f.id] = append(of[f.id], f)
	}
	for _, l := range of {
		sort.Slice(l, func(i, j int) bool { return l[i].end < l[j].end })
	}
	return of
}

// backwards complains of each fact about one object that is at an earlier stage than one whose answer had come before the question.
func backwards(facts []fact) (bad []string) {
	farthest := make([]fact, len(facts)) // of those up to each
	for i, f := range facts {
		if farthest[i] = f; i > 0 && farthest[i-1].stage > f.stage {
			farthest[i] = farthest[i-1]
		}
	}
	for _, f := range facts {
		if f.least {
			continue
		}
		before := sort.Search(len(facts), func(i int) bool { return facts[i].end >= f.begin })
		if before > 0 && farthest[before-1].stage > f.stage {
			was := farthest[before-1]
			bad = append(bad, fmt.Sprintf("%s at %d-%d: %s is %s; before, %s at %d-%d: it was %s", f.what, f.begin, f.end, f.id, stages[f.stage], was.what, was.begin, was.end, stages[was.stage]))
		}
	}
	return bad
}

// TestHistoriesComplain holds the judge against histories that are legal, and such that are not.
func TestHistoriesComplain(t *testing.T) {
	at := func(stage int, begin, end int64, what string) fact {
		return fact{id: "c", stage: stage, begin: begin, end: end, what: what, least: what == "StopContainer"}
	}
	created := at(exists, 1, 2, "CreateContainer")
	for _, h := range []struct {
		facts  []fact
		causes []cause
		bad    string
	}{
		{facts: []fact{created, at(exists, 3, 4, "ContainerStatus")}},
		{facts: []fact{created, at(running, 3, 6, "StartContainer"), at(exists, 4, 5, "ContainerStatus")}, causes: []cause{{"c", running, 3}}},
		{facts: []fact{created, at(running, 3, 5, "StartContainer"), at(exists, 4, 6, "ContainerStatus")}, causes: []cause{{"c", running, 3}}},
		{facts: []fact{created, at(gone, 3, 6, "RemoveContainer"), at(exists, 5, 8, "ListContainers")}, causes: []cause{{"c", gone, 3}}},
		{facts: []fact{created, at(gone, 3, 4, "RemoveContainer"), at(exists, 5, 6, "ListContainers")}, causes: []cause{{"c", gone, 3}}, bad: "before"},
		{facts: []fact{created, at(ended, 3, 4, "StopContainer"), at(running, 5, 6, "ExecSync")}, causes: []cause{{"c", ended, 3}, {"c", running, 1}}, bad: "before"},
		{facts: []fact{created, at(gone, 3, 4, "RemoveContainer"), at(ended, 5, 6, "StopContainer")}, causes: []cause{{"c", gone, 3}}},
		{facts: []fact{created, at(ended, 3, 4, "StopContainer"), at(exists, 5, 6, "ContainerStatus")}, causes: []cause{{"c", ended, 3}}, bad: "before"},
		{facts: []fact{created, at(running, 3, 4, "ContainerStatus")}, bad: "nobody"},
		{facts: []fact{created, at(running, 3, 4, "ContainerStatus")}, causes: []cause{{"c", gone, 1}}, bad: "nobody"},
		{facts: []fact{created, at(gone, 3, 4, "ContainerStatus")}, causes: []cause{{"c", gone, 5}}, bad: "nobody"},
		{facts: []fact{created, at(ended, 3, 6, "ContainerStatus")}, causes: []cause{{"c", gone, 5}}},
		{facts: []fact{created, at(ended, 3, 6, "ContainerStatus")}, causes: []cause{{"p", ended, 5}}},
		{facts: []fact{created, at(running, 3, 5, "StartContainer"), at(running, 4, 6, "StartContainer")}, causes: []cause{{"c", running, 3}}},
		{facts: []fact{created, at(running, 3, 4, "StartContainer"), at(running, 5, 6, "StartContainer")}, causes: []cause{{"c", running, 3}}, bad: "twice"},
	} {
		x := &history{causes: h.causes}
		for _, f := range h.facts {
			x.fact(f)
		}
		x.podOf = map[string]string{"c": "p"}
		got := strings.Join(x.illegal(), "; ")
		if (h.bad == "") != (got == "") || !strings.Contains(got, h.bad) {
			t.Errorf("%v: complains %q, want %q", h.facts, got, h.bad)
		}
	}
	x := &history{}
	x.answered("Version", fmt.Errorf("Unknown is no answer"), codes.NotFound)
	if len(x.illegal()) != 1 {
		t.Error("a code that is not legal passes")
	}
}
