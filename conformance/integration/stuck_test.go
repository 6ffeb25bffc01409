package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// deadServer mounts a filesystem whose server never answers, and returns where that is and what ends it. Whoever looks up a
// name there is in an uninterruptible wait until then.
func (s *scene) deadServer() (dir string, end func()) {
	s.Helper()
	fd, err := unix.Open("/dev/fuse", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		s.Skipf("needs /dev/fuse: %v", err)
	}
	dir = filepath.Join(s.Scratch, "dead")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		s.Fatal(err)
	}
	if err := unix.Mount("dead", dir, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", fd)); err != nil {
		s.Fatalf("mount: %v", err)
	}
	over := false
	end = func() {
		if over {
			return
		}
		over = true
		unix.Close(fd) // what waits for it has an error now
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			s.Error(err)
		}
		os.Remove(dir)
	}
	s.Cleanup(end)
	return dir, end
}

// TestListsBesideAStuckMount: while a container is created whose volume is on a server that does not answer, everything that
// only looks is answered as ever: lists within 100 ms at the median. The container's create ends with an error when the server is gone, and
// leaves nothing.
func TestListsBesideAStuckMount(t *testing.T) {
	s := open(t)
	p := s.runPod("stuck")
	p.run("beside", "sleep 1000")
	dir, end := s.deadServer()
	cfg := stage.ContainerConfig("stuck", busybox, "true")
	cfg.Mounts = []*runtimeapi.Mount{{HostPath: dir + "/volume", ContainerPath: "/data"}}
	failed := make(chan error, 1)
	go func() { // ends with the server
		_, err := s.cri.CreateContainer(s.ctx, p.id, cfg, p.cfg)
		failed <- err
	}()
	s.eventually("a thread of the daemon waits for the server", func() bool { return s.uninterruptible() > 0 })
	for what, look := range map[string]func() error{
		"ListPodSandbox":     func() error { _, err := s.cri.ListPodSandbox(s.ctx, nil); return err },
		"ListContainers":     func() error { _, err := s.cri.ListContainers(s.ctx, nil); return err },
		"ListContainerStats": func() error { _, err := s.cri.ListContainerStats(s.ctx, nil); return err },
		"PodSandboxStatus":   func() error { _, err := s.cri.PodSandboxStatus(s.ctx, p.id, true); return err },
		"ListImages":         func() error { _, err := s.cri.Images.ListImages(s.ctx, nil); return err },
	} {
		var took []time.Duration
		for range 100 {
			began := time.Now()
			if err := look(); err != nil {
				t.Errorf("%s: %v", what, err)
			}
			took = append(took, time.Since(began))
		}
		slices.Sort(took)
		t.Logf("%-18s median %v, worst %v", what, took[50], took[99])
		if took[50] > s.Scale(100*time.Millisecond) {
			t.Errorf("%s takes %v at the median", what, took[50])
		}
	}
	select {
	case err := <-failed:
		t.Fatalf("the container was not stuck: %v", err)
	default:
	}
	if s.uninterruptible() == 0 {
		t.Error("nobody waits for the server any more")
	}
	end()
	err := <-failed
	if c := code(err); c == codes.OK || c == codes.Unknown || c == codes.Internal || !strings.Contains(err.Error(), dir) {
		t.Errorf("the server is gone: %v", err)
	}
	if list, err := s.cri.ListContainers(s.ctx, nil); err != nil || len(list) != 1 {
		t.Errorf("containers: %v (%v), want one", list, err)
	}
}

// uninterruptible counts the daemon's threads in state D.
func (s *scene) uninterruptible() (n int) {
	stats, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", s.Daemon().Pid()))
	for _, f := range stats {
		text, _ := os.ReadFile(f)
		if _, rest, _ := strings.Cut(string(text), ") "); strings.HasPrefix(rest, "D") {
			n++
		}
	}
	return n
}
