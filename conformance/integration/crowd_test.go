package integration

import (
	"context"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// How many clients there are at the same time, for how many pods, with how many containers each.
const (
	crowdClients    = 64
	crowdPods       = 3
	crowdContainers = 3
)

// TestCrowd: 64 clients send random verbs for a few pods and containers, each at any moment. Whatever they are told must be a legal
// history (history.illegal); every request is answered; and in the end nothing is left.
//
// VITRINE_CROWD is for how many seconds; five without it. VITRINE_RACE is a daemon that was built with the race detector, for this
// test alone: the children that unpack layers may not start the threads of its runtime.
func TestCrowd(t *testing.T) {
	s := openFor(t, 20*time.Minute)
	s.daemonOf(os.Getenv("VITRINE_RACE"))
	seconds, _ := strconv.Atoi(os.Getenv("VITRINE_CROWD"))
	if seconds <= 0 {
		seconds = 5
	}
	seed := uint64(time.Now().UnixNano())
	c := newCrowd(s)
	from := s.logSize()
	over := time.Now().Add(s.Scale(time.Duration(seconds) * time.Second))
	var busy sync.WaitGroup
	for n := range crowdClients {
		busy.Go(func() {
			for dice := rand.New(rand.NewPCG(seed, uint64(n))); time.Now().Before(over) && c.ctx.Err() == nil; {
				c.verb(dice)
			}
		})
	}
	busy.Wait()
	c.end()
	s.nothingBroke(from)
	for _, bad := range c.illegal() {
		t.Error(bad)
	}
	sum := 0
	for _, verb := range slices.Sorted(maps.Keys(c.codes)) {
		for _, n := range c.codes[verb] {
			sum += n
		}
		t.Logf("%-18s %v", verb, c.codes[verb])
	}
	if sum < crowdClients {
		t.Errorf("only %d requests were answered", sum)
	}
	t.Logf("%d requests, %d facts about %d objects", sum, len(c.facts), len(byObject(c.facts)))
}

// daemonOf has the test's daemon be another program, "" for the usual one.
func (s *scene) daemonOf(program string) {
	s.Helper()
	if program == "" {
		return
	}
	s.Cleanup(func() {
		s.Daemons = ""
		if err := s.Configure(s.ctx, ""); err != nil {
			s.Error(err)
		}
		s.connect()
	})
	s.Daemons = program
	if err := s.Configure(s.ctx, ""); err != nil {
		s.Fatal(err)
	}
	s.connect()
}

// crowd is the clients' view of the objects.
type crowd struct {
	*scene
	history
	cri runtimeapi.RuntimeServiceClient
	cfg []*runtimeapi.PodSandboxConfig

	known      sync.Mutex // of podOf, too
	pods       []string   // ids, the newest last
	containers []string   // ids, the newest last
	dumped     bool
}

func newCrowd(s *scene) *crowd {
	s.Helper()
	c := &crowd{scene: s, cri: runtimeapi.NewRuntimeServiceClient(s.bareConn()), history: history{podOf: map[string]string{}}}
	for n := range crowdPods {
		cfg, err := s.PodConfig("crowd" + strconv.Itoa(n))
		if err != nil {
			s.Fatal(err)
		}
		c.cfg = append(c.cfg, cfg)
	}
	return c
}

// patience is how long any request may take. What takes longer hangs: then the daemon's log gets its goroutines.
const patience = time.Minute

// ask sends one request, and tells when.
func ask[Q, A any](c *crowd, verb string, rpc func(context.Context, Q, ...grpc.CallOption) (A, error), q Q, legal ...codes.Code) (A, fact, error) {
	ctx, cancel := context.WithTimeout(c.ctx, c.Scale(patience))
	defer cancel()
	begin := c.tick()
	a, err := rpc(ctx, q)
	end := c.tick()
	if ctx.Err() != nil {
		c.dump(verb)
	}
	c.answered(verb, err, legal...)
	return a, fact{begin: begin, end: end, what: verb}, err
}

// dump ends the daemon in such a way that its log has all its goroutines.
func (c *crowd) dump(verb string) {
	c.known.Lock()
	defer c.known.Unlock()
	if c.dumped {
		return
	}
	c.dumped = true
	c.Errorf("%s has no answer", verb)
	if err := syscall.Kill(c.Daemon().Pid(), syscall.SIGQUIT); err != nil {
		c.Error(err)
	}
	time.Sleep(time.Second)
	c.Log(c.Daemon().Tail(2000))
}

// note records what is known of an object at the time of an answer.
func (c *crowd) note(at fact, id string, stage int) {
	at.id, at.stage = id, stage
	c.fact(at)
}

// verb does one thing to one object, chosen by dice.
func (c *crowd) verb(dice *rand.Rand) {
	pod, container := c.pick(dice, &c.pods), c.pick(dice, &c.containers)
	switch n := dice.IntN(1000); {
	case n < 40 || pod == "":
		c.runPod(dice)
	case n < 42:
		c.stopPod(pod)
	case n < 46:
		c.removePod(pod)
	case n < 150:
		c.podStatus(pod)
	case n < 350:
		c.create(dice, pod)
	case container == "":
		c.list()
	case n < 500:
		c.start(container)
	case n < 515:
		c.stop(container)
	case n < 540:
		c.remove(container)
	case n < 750:
		c.status(container)
	case n < 830:
		c.list()
	case n < 920:
		c.exec(container)
	case n < 940:
		c.update(container)
	case n < 960:
		c.reopen(container)
	case n < 980:
		c.stats(container)
	default:
		c.execLater(container)
	}
}

// pick returns one of the newest ids mostly, any other sometimes, and "" where there is none.
func (c *crowd) pick(dice *rand.Rand, ids *[]string) string {
	c.known.Lock()
	defer c.known.Unlock()
	n := len(*ids)
	switch {
	case n == 0:
		return ""
	case dice.IntN(8) == 0:
		return (*ids)[dice.IntN(n)]
	default:
		return (*ids)[n-1-dice.IntN(min(n, crowdPods))]
	}
}

func (c *crowd) runPod(dice *rand.Rand) {
	q := &runtimeapi.RunPodSandboxRequest{Config: c.cfg[dice.IntN(len(c.cfg))]}
	r, at, err := ask(c, "RunPodSandbox", c.cri.RunPodSandbox, q, codes.AlreadyExists, codes.FailedPrecondition)
	if err != nil {
		return
	}
	c.known.Lock()
	if !slices.Contains(c.pods, r.PodSandboxId) {
		c.pods = append(c.pods, r.PodSandboxId)
	}
	c.known.Unlock()
	c.note(at, r.PodSandboxId, exists)
}

// inPod returns the containers of a pod that somebody knows.
func (c *crowd) inPod(pod string) []string {
	c.known.Lock()
	defer c.known.Unlock()
	return slices.DeleteFunc(slices.Clone(c.containers), func(id string) bool { return c.podOf[id] != pod })
}

func (c *crowd) stopPod(id string) {
	c.cause(id, ended)
	with := c.inPod(id)
	_, at, err := ask(c, "StopPodSandbox", c.cri.StopPodSandbox, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	if err != nil {
		return
	}
	at.least = true
	for _, id := range append(with, id) {
		c.note(at, id, ended)
	}
}

func (c *crowd) removePod(id string) {
	c.cause(id, gone)
	with := c.inPod(id)
	_, at, err := ask(c, "RemovePodSandbox", c.cri.RemovePodSandbox, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
	if err != nil {
		return
	}
	for _, id := range append(with, id) {
		c.note(at, id, gone)
	}
}

func (c *crowd) podStatus(id string) {
	r, at, err := ask(c, "PodSandboxStatus", c.cri.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id}, codes.NotFound)
	switch {
	case code(err) == codes.NotFound:
		c.note(at, id, gone)
	case err == nil && r.Status.State == runtimeapi.PodSandboxState_SANDBOX_READY:
		c.note(at, id, exists)
	case err == nil:
		c.note(at, id, ended)
	}
}

func (c *crowd) create(dice *rand.Rand, pod string) {
	st, _, err := ask(c, "PodSandboxStatus", c.cri.PodSandboxStatus, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: pod}, codes.NotFound)
	if err != nil {
		return
	}
	i := slices.IndexFunc(c.cfg, func(p *runtimeapi.PodSandboxConfig) bool { return p.Metadata.Name == st.Status.Metadata.Name })
	name := "c" + strconv.Itoa(dice.IntN(crowdContainers))
	q := &runtimeapi.CreateContainerRequest{PodSandboxId: pod, SandboxConfig: c.cfg[i], Config: stage.ContainerConfig(name, busybox, "sleep", "100000")}
	r, at, err := ask(c, "CreateContainer", c.cri.CreateContainer, q, codes.AlreadyExists, codes.FailedPrecondition, codes.NotFound)
	if err != nil {
		return
	}
	c.known.Lock()
	if !slices.Contains(c.containers, r.ContainerId) {
		c.containers, c.podOf[r.ContainerId] = append(c.containers, r.ContainerId), pod
	}
	c.known.Unlock()
	c.note(at, r.ContainerId, exists)
}

func (c *crowd) start(id string) {
	c.cause(id, running)
	_, at, err := ask(c, "StartContainer", c.cri.StartContainer, &runtimeapi.StartContainerRequest{ContainerId: id}, codes.FailedPrecondition, codes.NotFound)
	switch code(err) {
	case codes.OK:
		c.note(at, id, running)
	case codes.NotFound:
		c.note(at, id, gone)
	}
}

func (c *crowd) stop(id string) {
	c.cause(id, ended)
	if _, at, err := ask(c, "StopContainer", c.cri.StopContainer, &runtimeapi.StopContainerRequest{ContainerId: id}); err == nil {
		at.least = true
		c.note(at, id, ended)
	}
}

func (c *crowd) remove(id string) {
	c.cause(id, gone)
	if _, at, err := ask(c, "RemoveContainer", c.cri.RemoveContainer, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err == nil {
		c.note(at, id, gone)
	}
}

// containerStages are the stages by the states of CRI.
var containerStages = map[runtimeapi.ContainerState]int{
	runtimeapi.ContainerState_CONTAINER_CREATED: exists, runtimeapi.ContainerState_CONTAINER_RUNNING: running, runtimeapi.ContainerState_CONTAINER_EXITED: ended,
}

func (c *crowd) status(id string) {
	r, at, err := ask(c, "ContainerStatus", c.cri.ContainerStatus, &runtimeapi.ContainerStatusRequest{ContainerId: id}, codes.NotFound)
	switch {
	case code(err) == codes.NotFound:
		c.note(at, id, gone)
	case err == nil && r.Status.State == runtimeapi.ContainerState_CONTAINER_UNKNOWN:
		c.Errorf("%s is in an unknown state", id)
	case err == nil:
		c.note(at, id, containerStages[r.Status.State])
	}
}

// list is a status of all; what was known before and is not in it is gone.
func (c *crowd) list() {
	c.known.Lock()
	absent := map[string]bool{}
	for _, id := range c.containers {
		absent[id] = true
	}
	c.known.Unlock()
	r, at, err := ask(c, "ListContainers", c.cri.ListContainers, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return
	}
	for _, have := range r.Containers {
		delete(absent, have.Id)
		c.known.Lock()
		c.podOf[have.Id] = have.PodSandboxId
		c.known.Unlock()
		c.note(at, have.Id, containerStages[have.State])
	}
	for id := range absent {
		c.note(at, id, gone)
	}
}

func (c *crowd) exec(id string) {
	q := &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: int64(patience / time.Second)}
	r, at, err := ask(c, "ExecSync", c.cri.ExecSync, q, codes.FailedPrecondition, codes.NotFound)
	switch {
	case code(err) == codes.NotFound:
		c.note(at, id, gone)
	case err == nil && r.ExitCode == 0:
		c.note(at, id, running)
	}
}

// ran notes what an answer says that only a container which runs can give. The code of one that is about what is gone says so.
func (c *crowd) ran(at fact, id string, err error) {
	switch code(err) {
	case codes.OK:
		c.note(at, id, running)
	case codes.NotFound:
		c.note(at, id, gone)
	}
}

func (c *crowd) update(id string) {
	q := &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 512}}
	_, at, err := ask(c, "UpdateContainerResources", c.cri.UpdateContainerResources, q, codes.FailedPrecondition, codes.NotFound)
	if code(err) == codes.NotFound {
		c.note(at, id, gone)
	}
}

func (c *crowd) reopen(id string) {
	_, at, err := ask(c, "ReopenContainerLog", c.cri.ReopenContainerLog, &runtimeapi.ReopenContainerLogRequest{ContainerId: id}, codes.FailedPrecondition, codes.NotFound)
	c.ran(at, id, err)
}

func (c *crowd) stats(id string) {
	_, at, err := ask(c, "ContainerStats", c.cri.ContainerStats, &runtimeapi.ContainerStatsRequest{ContainerId: id}, codes.NotFound)
	if code(err) == codes.NotFound {
		c.note(at, id, gone)
	}
	_, _, _ = ask(c, "ListContainerStats", c.cri.ListContainerStats, &runtimeapi.ListContainerStatsRequest{})
	_, _, _ = ask(c, "ListPodSandboxStats", c.cri.ListPodSandboxStats, &runtimeapi.ListPodSandboxStatsRequest{})
}

// execLater asks for the address of a stream, which says that the container runs.
func (c *crowd) execLater(id string) {
	_, at, err := ask(c, "Exec", c.cri.Exec, &runtimeapi.ExecRequest{ContainerId: id, Cmd: []string{"true"}, Stdout: true}, codes.FailedPrecondition, codes.NotFound, codes.ResourceExhausted)
	c.ran(at, id, err)
}

// end removes everything, which must succeed, and looks that it is gone.
func (c *crowd) end() {
	c.Helper()
	list, err := c.cri.ListPodSandbox(c.ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		c.Fatal(err)
	}
	for _, p := range list.Items {
		c.stopPod(p.Id)
		c.removePod(p.Id)
	}
	for _, id := range c.pods {
		c.podStatus(id)
	}
	for _, id := range c.containers {
		c.status(id)
	}
	c.list()
	for _, cfg := range c.cfg {
		if err := c.Forget(cfg); err != nil {
			c.Error(err)
		}
	}
	if left, err := c.cri.ListContainers(c.ctx, &runtimeapi.ListContainersRequest{}); err != nil || len(left.Containers) != 0 {
		c.Errorf("left: %v (%v)", left, err)
	}
}
