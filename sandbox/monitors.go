package sandbox

import (
	"context"
	"errors"
	"os"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci"
)

// monitors starts and finds the processes behind pods. There are two: package oci, and a test's that fails
// where the test wants it to.
type monitors interface {
	start(ctx context.Context, c oci.PodConfig) (monitor, error)
	dial(ctx context.Context, dir string) (monitor, error) // errNoMonitor if nobody answers
	kill(ctx context.Context, dir string) error            // one that does not answer; errNoMonitor if there is none
	readExit(dir string) (exit, error)                     // fs.ErrNotExist if there was none
}

// monitor is a pod's.
type monitor interface {
	pid() int
	netns() (*sys.FD, error)
	userns(ctx context.Context) (*sys.FD, error) // whose the pod's namespaces are
	create(ctx context.Context, c oci.ContainerConfig) (process, error)
	process(id string) process
	list(ctx context.Context) ([]processState, error)
	stop(ctx context.Context) error
	close() error
	events() <-chan podEvent
}

// process is a container's first one.
type process interface {
	pid() int
	note() string // what its creation could not do as asked; "" is the rule
	start(ctx context.Context) error
	signal(ctx context.Context, sig unix.Signal) error
	reopenLog(ctx context.Context) error
	remove(ctx context.Context) error // makes the monitor forget it; it must be dead
	exec(ctx context.Context, c oci.ExecConfig) (execution, error)
	attach(ctx context.Context, c oci.AttachConfig) (*oci.Attachment, error)
	endStdin(ctx context.Context) error // for good
}

// execution is a further process in a container.
type execution interface {
	pid() int
	wait(ctx context.Context) (exit, error)
	terminal() *os.File // nil without
	resize(width, height uint16) error
}

// exit is how a process ended.
type exit struct {
	code  int32 // 128 + signal for one that was killed
	oom   bool
	kills int   // processes that the OOM killer took, also those whose end was not the container's
	at    int64 // ns since 1970
}

// processState is what a monitor knows of a container.
type processState struct {
	id      string
	pid     int
	started int64 // 0: execve has not succeeded
	dead    bool
	exit    exit
}

// podEventKind says what a podEvent tells.
type podEventKind int

const (
	containerExited podEventKind = iota
	monitorDied                  // the last event of its channel
	disconnected                 // as well; the pod goes on, or was stopped
)

// podEvent is something that a monitor reports, or its end.
type podEvent struct {
	what podEventKind
	id   string // containerExited
	exit exit   // containerExited
}

var errNoMonitor = errors.New("no monitor answers")
