package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

// maxOutput bounds what a plugin may print. A result with ten thousand routes
// has less than a megabyte.
const maxOutput = 1 << 20

// maxSaid bounds how much of a plugin's complaint gets into an error.
const maxSaid = 4 << 10

// waitDelay is how long the pipes of a plugin that was killed are still read: a
// grandchild in another group may hold them open.
const waitDelay = time.Second

// pluginExec runs plugins for libcni. The library's own executor kills only
// the process that it started and keeps whatever is printed.
type pluginExec struct {
	version.PluginDecoder
}

func newPluginExec() invoke.Exec { return &pluginExec{} }

// FindInPath finds a plugin by its type, which may not be a path.
func (*pluginExec) FindInPath(plugin string, dirs []string) (string, error) {
	return invoke.FindInPath(plugin, dirs)
}

// ExecPlugin runs a plugin with its input and returns what it printed. When
// ctx ends, the plugin's whole process group is killed.
func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	out, errs := &bounded{limit: maxOutput}, &bounded{limit: maxSaid}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), out, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = waitDelay
	err := cmd.Run()
	if err != nil {
		return nil, pluginError(path, err, out.Bytes(), errs.String())
	}
	if out.cut {
		return nil, fmt.Errorf("plugin %s printed more than %d bytes", path, maxOutput)
	}
	return out.Bytes(), nil
}

// pluginError says what a failed plugin says: the error that the specification
// wants on its standard output, or whatever it printed instead. A *types.Error
// keeps its code for the library, which knows "try again later" by it.
func pluginError(path string, err error, stdout []byte, stderr string) error {
	e := &types.Error{}
	if json.Unmarshal(stdout, e) == nil && e.Msg != "" {
		return e
	}
	said := strings.TrimSpace(stderr)
	if said == "" {
		said = strings.TrimSpace(string(stdout[:min(len(stdout), maxSaid)]))
	}
	if errors.Is(err, exec.ErrWaitDelay) {
		err = errors.New("a process that it left keeps its output open")
	}
	if said == "" {
		return fmt.Errorf("plugin %s: %w", path, err)
	}
	return fmt.Errorf("plugin %s: %w: %q", path, err, said)
}

// bounded keeps the first limit bytes and remembers that there were more. It
// never fails, so that a talkative plugin is not stopped by a full pipe.
type bounded struct {
	bytes.Buffer
	limit int
	cut   bool
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	keep := min(len(p), b.limit-b.Len())
	b.cut = b.cut || keep < len(p)
	b.Buffer.Write(p[:keep])
	return len(p), nil
}
