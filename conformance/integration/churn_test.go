package integration

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// TestChurnUnderKills lets workers run pods through their whole life while the daemon is killed again and again at
// random moments. Each worker does what the kubelet does: it repeats the request that failed, with the same metadata.
// In the end every container was started exactly once, every pod is gone, and nothing is left.
func TestChurnUnderKills(t *testing.T) {
	s := open(t)
	const workers = 4
	pods := 8
	if s.IsMachine() { // each life is slow there, and what counts is where it is cut
		pods = 2
	}
	var busy sync.WaitGroup
	var answered atomic.Int64
	for w := range workers {
		busy.Add(1)
		go func() {
			defer busy.Done()
			for n := range pods {
				c := &churner{scene: s, name: fmt.Sprintf("churn-%d-%d", w, n), answered: &answered}
				if err := c.life(); err != nil {
					t.Errorf("%s: %v", c.name, err)
				}
			}
		}()
	}
	over := make(chan struct{})
	go func() { busy.Wait(); close(over) }()
	kills, slowest := 0, time.Duration(0)
	patience := 400 // milliseconds, longer while nothing gets done: a slow machine must have its chance between two kills
	for alive := true; alive; {
		before := answered.Load()
		select {
		case <-over:
			alive = false
		case <-time.After(s.Scale(time.Duration(20+rand.IntN(patience)) * time.Millisecond)):
			if patience = min(2*patience, 20_000); answered.Load() != before {
				patience = 400
			}
			s.killDaemon()
			kills++
			begun := time.Now()
			if err := s.EnsureDaemon(s.ctx); err != nil {
				t.Fatal(err)
			}
			slowest = max(slowest, time.Since(begun))
		}
	}
	t.Logf("%d pods under %d kills; the slowest start of a daemon took %s", workers*pods, kills, slowest.Round(time.Millisecond))
	s.restart()
}

// churner is one pod's life, seen from a client that does not give up. It speaks to the daemon by a plain connection:
// the kubelet's client library leaves one behind whenever the daemon dies while it connects.
type churner struct {
	*scene
	name string
	// answered counts requests that were served, of all pods.
	answered *atomic.Int64
	cri      runtimeapi.RuntimeServiceClient
	cfg      *runtimeapi.PodSandboxConfig
	pod      string
}

// dial makes the connection, which comes back by itself after each death of the daemon.
func (c *churner) dial() (*grpc.ClientConn, error) {
	eager := grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: 10 * time.Millisecond, Multiplier: 1.5, MaxDelay: 100 * time.Millisecond}, MinConnectTimeout: 5 * time.Second}
	conn, err := grpc.NewClient("unix://"+c.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithConnectParams(eager))
	if err == nil {
		c.cri = runtimeapi.NewRuntimeServiceClient(conn)
	}
	return conn, err
}

// again repeats f until it succeeds or fails for a reason that is not the daemon's death.
func (c *churner) again(what string, f func(context.Context) error) error {
	for deadline := time.Now().Add(c.Scale(30 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		err := f(c.ctx)
		if code := status.Code(err); code == codes.Unavailable && time.Now().Before(deadline) {
			continue
		}
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		c.answered.Add(1)
		return nil
	}
}

func (c *churner) life() (err error) {
	conn, err := c.dial()
	if err != nil {
		return err
	}
	defer conn.Close()
	if c.cfg, err = c.PodConfig(c.name); err != nil {
		return err
	}
	if err := c.again("run pod", c.run); err != nil {
		return err
	}
	counts := filepath.Join(c.Scratch, c.name)
	if err := os.MkdirAll(counts, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(counts)
	for i := range 2 {
		if err := c.container(fmt.Sprintf("c%d", i), counts); err != nil {
			return err
		}
	}
	if err := c.again("stop pod", func(ctx context.Context) error {
		_, err := c.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: c.pod})
		return err
	}); err != nil {
		return err
	}
	if err := c.again("remove pod", func(ctx context.Context) error {
		_, err := c.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: c.pod})
		return err
	}); err != nil {
		return err
	}
	return c.Forget(c.cfg)
}

// run runs the pod. An answer that was lost on the way shows as AlreadyExists, and the list has the id.
func (c *churner) run(ctx context.Context) (err error) {
	r, err := c.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c.cfg})
	if status.Code(err) != codes.AlreadyExists {
		c.pod = r.GetPodSandboxId()
		return err
	}
	own := &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": c.cfg.Metadata.Uid}}
	list, lerr := c.cri.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: own})
	if lerr != nil {
		return lerr
	}
	if pods := list.Items; len(pods) != 1 || pods[0].State != runtimeapi.PodSandboxState_SANDBOX_READY {
		return fmt.Errorf("%w, and the list has %v", err, pods)
	}
	c.pod = list.Items[0].Id
	return nil
}

// container creates and starts a container that notes its start, executes something in it, and removes it.
func (c *churner) container(name, counts string) error {
	cfg := stage.ContainerConfig(name, busybox, "/bin/sh", "-c", "echo started >> /counts/"+name+"; exec sleep 1000")
	cfg.Mounts = []*runtimeapi.Mount{{HostPath: counts, ContainerPath: "/counts"}}
	var id string
	if err := c.again("create", func(ctx context.Context) (err error) { id, err = c.create(ctx, cfg); return err }); err != nil {
		return err
	}
	if err := c.again("start", func(ctx context.Context) error { return c.start(ctx, id) }); err != nil {
		return err
	}
	if err := c.again("exec", func(ctx context.Context) error { return c.count(ctx, id, name) }); err != nil {
		return err
	}
	if err := c.again("stop", func(ctx context.Context) error {
		_, err := c.cri.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id})
		return err
	}); err != nil {
		return err
	}
	if err := c.again("remove", func(ctx context.Context) error {
		_, err := c.cri.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	}); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(counts, name))
	if err == nil && string(text) != "started\n" {
		err = fmt.Errorf("%s was not started exactly once: %q", name, text)
	}
	return err
}

func (c *churner) create(ctx context.Context, cfg *runtimeapi.ContainerConfig) (string, error) {
	r, err := c.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: c.pod, Config: cfg, SandboxConfig: c.cfg})
	if status.Code(err) != codes.AlreadyExists {
		return r.GetContainerId(), err
	}
	list, lerr := c.cri.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: c.pod}})
	if lerr != nil {
		return "", lerr
	}
	for _, have := range list.Containers {
		if have.Metadata.Name == cfg.Metadata.Name {
			return have.Id, nil
		}
	}
	return "", fmt.Errorf("%w, and the list has %v", err, list)
}

// start starts the container. If the answer to an earlier try was lost, the container runs.
func (c *churner) start(ctx context.Context, id string) error {
	_, err := c.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
	if status.Code(err) != codes.FailedPrecondition {
		return err
	}
	st, serr := c.cri.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if serr != nil {
		return serr
	}
	if st.Status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("%w, and it is %s: %s", err, st.Status.State, st.Status.Reason)
	}
	return nil
}

// count waits until the container has noted its start.
func (c *churner) count(ctx context.Context, id, name string) error {
	script := "until [ -s /counts/" + name + " ]; do sleep 0.01; done; cat /counts/" + name
	r, err := c.cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/sh", "-c", script}, Timeout: int64(c.Scale(20*time.Second) / time.Second)})
	if err == nil && strings.TrimSpace(string(r.Stdout)) != "started" {
		return fmt.Errorf("exec says %q", r.Stdout)
	}
	return err
}
