package sandbox

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/oci"
	"github.com/vitrine-runtime/vitrine/oci/cgroup"
)

const (
	// maxOutput is how much of each stream ExecSync returns; the rest is read and dropped, so that the
	// command ends as it would (CVE-2022-1708).
	maxOutput = 16 << 20
	// drainTime is how long output is waited for once the command has ended: a child that it left behind
	// may hold the pipe for ever.
	drainTime = 2 * time.Second
)

// ExecSync runs a command in a running container and returns its output, each stream cut at exactly 16 MiB,
// and its exit code. It runs in a cgroup of its own: at the time-out (0: none), and when ctx ends, everything
// in it is killed, and the error is context.DeadlineExceeded or ctx's. Processes that a command leaves
// behind when it ends by itself live on in the container.
//
// A program that does not exist, or is not to be executed, is an answer and no error: exit code 127 or 126
// and a line on stderr, as a shell would. So a probe that names a missing program fails instead of being
// without result for ever.
func (m *Manager) ExecSync(ctx context.Context, id string, cmd []string, limit time.Duration) (*runtimeapi.ExecSyncResponse, error) {
	c, err := m.container(id)
	if err != nil {
		return nil, err
	}
	if err := checkCommand(cmd, limit); err != nil {
		return nil, err
	}
	if s := c.facts.Load().state(); s != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return nil, fmt.Errorf("container %s is %s: %w", c.id, stateName(s), ErrState)
	}
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, limit, fmt.Errorf("time-out of %v: %w", limit, context.DeadlineExceeded))
		defer cancel()
	}
	r, err := c.exec(ctx, cmd)
	if err != nil {
		return nil, fmt.Errorf("exec in container %s: %w", c.id, c.orEnded(err))
	}
	return r, nil
}

func checkCommand(cmd []string, limit time.Duration) error {
	if len(cmd) == 0 || cmd[0] == "" {
		return fmt.Errorf("cmd is empty: %w", ErrInvalid)
	}
	for _, a := range cmd {
		if strings.IndexByte(a, 0) >= 0 {
			return fmt.Errorf("cmd: an argument holds a NUL byte: %w", ErrInvalid)
		}
	}
	if limit < 0 {
		return fmt.Errorf("timeout %v is negative: %w", limit, ErrInvalid)
	}
	return nil
}

// exec runs the command. Whatever the way out, its cgroup is empty or holds only what the command chose to
// leave behind.
func (c *Container) exec(ctx context.Context, cmd []string) (*runtimeapi.ExecSyncResponse, error) {
	s, err := c.ociSpec()
	if err != nil {
		return nil, err
	}
	pr, err := c.process()
	if err != nil {
		return nil, err
	}
	leaf, err := c.pod.m.cfg.Cgroups.Load(c.record.Cgroup).Leaf("exec-" + newID()[:16])
	if err != nil {
		return nil, fmt.Errorf("make cgroup: %w", leafError(err))
	}
	var stdout, stderr collector
	defer stdout.close()
	defer stderr.close()
	ex, err := c.startExec(ctx, s, pr, leaf, cmd, &stdout, &stderr)
	var failed *startFailure
	if errors.As(err, &failed) {
		endLeaf(leaf, true)
		return &runtimeapi.ExecSyncResponse{ExitCode: startCode(err), Stderr: []byte(fmt.Sprintf("exec %s: %v\n", cmd[0], err))}, nil
	}
	if err != nil {
		endLeaf(leaf, true)
		return nil, whyEnded(ctx, err)
	}
	x, err := ex.wait(ctx)
	if err != nil {
		endLeaf(leaf, true)
		return nil, whyEnded(ctx, err)
	}
	until := time.Now().Add(drainTime)
	r := &runtimeapi.ExecSyncResponse{Stdout: stdout.take(until), Stderr: stderr.take(until), ExitCode: x.code}
	endLeaf(leaf, false)
	return r, nil
}

// whyEnded prefers the reason for which ctx ended to what came of it.
func whyEnded(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

// startExec starts the command with pipes that lead straight here.
func (c *Container) startExec(ctx context.Context, s *specs.Spec, pr process, leaf *cgroup.Scope, cmd []string, stdout, stderr *collector) (execution, error) {
	p := *s.Process
	p.Args, p.Terminal = cmd, false
	out, err := stdout.open(c.outside(p.User))
	if err != nil {
		return nil, err
	}
	defer out.Close()
	errs, err := stderr.open(c.outside(p.User))
	if err != nil {
		return nil, err
	}
	defer errs.Close()
	dir, err := leaf.OpenDir()
	if err != nil {
		return nil, leafError(err)
	}
	return c.execBy(ctx, pr, oci.ExecConfig{Process: &p, Seccomp: s.Linux.Seccomp, Cgroup: dir, Stdout: out, Stderr: errs, UserNS: c.pod.plan.UserNS != nil,
		Bundle: c.dir, Annotations: s.Annotations})
}

// endNews is how long the news of a container's end may be on their way while a command already feels it.
const endNews = 2 * time.Second

// execBy starts a command. One that is killed before its execve, finds no pid namespace to join, or one whose first process has been
// killed (ENOMEM, from clone3), is under a container that is just ending, which is nobody's fault: ErrState. Where memory is what lacks,
// the container does not end, and the error comes endNews later.
func (c *Container) execBy(ctx context.Context, pr process, config oci.ExecConfig) (execution, error) {
	e, err := pr.exec(ctx, config)
	if err == nil || !errors.Is(err, oci.ErrDied) && !errors.Is(err, syscall.ESRCH) && !errors.Is(err, syscall.ENOMEM) {
		return e, err
	}
	for until := time.Now().Add(endNews); c.facts.Load().Finished == 0; time.Sleep(5 * time.Millisecond) {
		if ctx.Err() != nil || time.Now().After(until) {
			return nil, err
		}
	}
	return nil, fmt.Errorf("the container has ended: %w: %v", ErrState, err) //nolint:errorlint // a failure to start is one no more
}

// outside is who a user of the container is on the host.
func (c *Container) outside(u specs.User) (uid, gid int) {
	return int(c.pod.plan.UserNS.Outside(u.UID)), int(c.pod.plan.UserNS.Outside(u.GID))
}

// leafError is cgroupError, but that a scope which is gone, or going (ENODEV), says that its container has just ended: a probe meets
// that whenever its container is stopped, and it is nobody's fault.
func leafError(err error) error {
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV) {
		return fmt.Errorf("the container has ended: %w: %w", ErrState, err)
	}
	return cgroupError(err)
}

// endLeaf removes the cgroup of a command, with everybody in it if kill is set. One that still holds
// somebody goes with the container.
func endLeaf(leaf *cgroup.Scope, kill bool) {
	ctx, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if kill {
		err := leaf.Kill()
		if err == nil {
			err = leaf.WaitEmpty(ctx)
		}
		if err != nil {
			klog.ErrorS(err, "Kill of a command", "cgroup", leaf.Path())
		}
	} else if busy, err := leaf.Populated(); err != nil || busy {
		return
	}
	if err := leaf.Remove(ctx); err != nil {
		klog.ErrorS(err, "Removal of a command's cgroup", "cgroup", leaf.Path())
	}
}

// ociSpec returns the container's spec, from disk after a restart.
func (c *Container) ociSpec() (*specs.Spec, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.spec != nil {
		return c.spec, nil
	}
	s := &specs.Spec{}
	if err := readRecord(c.dir, "config.json", s); err != nil {
		return nil, err
	}
	if s.Process == nil || s.Linux == nil {
		return nil, fmt.Errorf("decode %s: no process", filepath.Join(c.dir, "config.json"))
	}
	c.record.restoreEnv(s)
	c.spec = s
	return s, nil
}

// collector reads one stream of a command.
type collector struct {
	r    *os.File
	done chan struct{} // closed at the end of the stream
	buf  []byte        // not to be touched before done
}

// open makes the pipe, starts to read, and returns the write end, which the caller closes. It belongs to
// the command's user, who may open /dev/stdout again.
func (k *collector) open(uid, gid int) (*os.File, error) {
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	w := os.NewFile(uintptr(p[1]), "exec output")
	// Only our end is non-blocking; the flag belongs to the end, and the command expects its own to block.
	if err := errors.Join(unix.SetNonblock(p[0], true), unix.Fchown(p[1], uid, gid)); err != nil {
		return nil, errors.Join(err, unix.Close(p[0]), w.Close())
	}
	k.r, k.done = os.NewFile(uintptr(p[0]), "exec output"), make(chan struct{})
	go k.read() // ends at the end of the stream, and at the latest with close
	return w, nil
}

func (k *collector) read() {
	defer close(k.done)
	chunk := make([]byte, 32<<10)
	for {
		n, err := k.r.Read(chunk)
		k.keep(chunk[:min(n, maxOutput-len(k.buf))])
		if err != nil {
			return // EOF, the deadline, or closed: the stream is over for us
		}
	}
}

// keep keeps what was read. The room grows to four times what it was: append makes it a quarter larger, and all that it has left behind
// on the way to 16 MiB is several times as much.
func (k *collector) keep(b []byte) {
	if need := len(k.buf) + len(b); need > cap(k.buf) {
		k.buf = append(make([]byte, 0, min(max(4*cap(k.buf), need), maxOutput)), k.buf...)
	}
	k.buf = append(k.buf, b...)
}

// take returns what was read, waiting for the end of the stream until then.
func (k *collector) take(until time.Time) []byte {
	if err := k.r.SetReadDeadline(until); err != nil {
		k.r.Close()
	}
	<-k.done
	return k.buf
}

func (k *collector) close() {
	if k.r != nil {
		k.r.Close()
		<-k.done
	}
}
