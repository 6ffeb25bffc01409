package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
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

// maxSaid bounds how much of a plugin's complaint gets into an error, which
// travels in a header of the answer to the kubelet.
const maxSaid = 4 << 10

// waitDelay is how long the pipes of a plugin that has ended are still read: a
// process that it left may hold them open.
const waitDelay = time.Second

// A plugin whose file is being written (an add-on updates itself) is tried again,
// as often as this.
const (
	busyTries = 50
	busyWait  = 100 * time.Millisecond
)

// errNoPlugin says that a plugin's program is in none of the directories.
var errNoPlugin = errors.New("not installed")

// pluginExec runs plugins for libcni. The library's own executor kills only
// the process that it started and keeps whatever is printed.
type pluginExec struct {
	version.PluginDecoder
}

var _ invoke.Exec = (*pluginExec)(nil)

// FindInPath finds a plugin by its type, which may not be a path.
func (*pluginExec) FindInPath(plugin string, dirs []string) (string, error) {
	path, err := invoke.FindInPath(plugin, dirs)
	if err != nil {
		return "", fmt.Errorf("find plugin %.300q in %s: %w", plugin, strings.Join(dirs, ":"), errNoPlugin)
	}
	return path, nil
}

// ExecPlugin runs a plugin with its input and returns what it printed. When
// ctx ends, and when the plugin fails, its whole process group is killed.
func (*pluginExec) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	for try := 1; ; try++ {
		out, err := runPlugin(ctx, path, stdin, environ)
		if !errors.Is(err, syscall.ETXTBSY) || try == busyTries {
			return out, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(busyWait):
		}
	}
}

func runPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	out, errs := &bounded{limit: maxOutput}, &bounded{limit: maxSaid}
	cmd := exec.CommandContext(ctx, path)
	cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = environ, bytes.NewReader(stdin), out, errs
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd.Process.Pid) }
	cmd.WaitDelay = waitDelay
	if err := run(ctx, cmd); err != nil {
		if cmd.Process != nil {
			endGroup(ctx, cmd.Process.Pid)
		}
		return nil, pluginError(path, err, out.buf.Bytes(), errs.buf.String())
	}
	if out.cut {
		return nil, fmt.Errorf("plugin %s printed more than %d bytes", path, maxOutput)
	}
	if err := checkOutput(out.buf.Bytes()); err != nil {
		return nil, fmt.Errorf("plugin %s printed %w", path, err)
	}
	return out.buf.Bytes(), nil
}

// run starts a plugin and waits for it, for ever if need be: whoever has its turn is told by the note.
func run(ctx context.Context, cmd *exec.Cmd) error {
	defer note(ctx, "the start of plugin %s", cmd.Path)()
	readHead(cmd.Path)
	if err := cmd.Start(); err != nil {
		return err
	}
	note(ctx, "plugin %s, process %d", cmd.Path, cmd.Process.Pid)
	return cmd.Wait()
}

// readHead reads the first page of a program, which execve is about to. On a disk that does not answer this thread is the one to wait
// then. The parent of a process that is in execve cannot be stopped by Go's runtime, and so nobody else could go on for long.
func readHead(path string) {
	f, err := os.Open(path)
	if err != nil {
		return // execve says it better
	}
	defer f.Close()
	_, _ = f.Read(make([]byte, os.Getpagesize()))
}

// killGroup kills a plugin and its children. The number is the group's for as
// long as one of them lives; when none does, there is nothing to kill, and the
// kernel does not give a number away again within the instant since.
func killGroup(pid int) error {
	if err := syscall.Kill(-pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return os.ErrProcessDone
}

// checkOutput refuses a null where the library expects an object: it converts
// results between versions without looking, and panics. Keys are compared as
// encoding/json does, and all that could be meant are looked at.
func checkOutput(out []byte) error {
	var result map[string]json.RawMessage
	_ = json.Unmarshal(out, &result) // the library refuses it with better words
	for key, value := range result {
		if !slices.ContainsFunc([]string{"interfaces", "ips", "routes"}, func(k string) bool { return strings.EqualFold(k, key) }) {
			continue
		}
		var list []json.RawMessage
		_ = json.Unmarshal(value, &list)
		for i, e := range list {
			if string(e) == "null" {
				return fmt.Errorf("null as element %d of %s", i, strings.ToLower(key))
			}
		}
	}
	return nil
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
// never fails, so that a talkative plugin is not stopped by a full pipe. The
// buffer is not embedded: io.Copy would find its ReadFrom, which has no limit.
type bounded struct {
	buf   bytes.Buffer
	limit int
	cut   bool
}

// Write implements io.Writer.
func (b *bounded) Write(p []byte) (int, error) {
	keep := min(len(p), b.limit-b.buf.Len())
	b.cut = b.cut || keep < len(p)
	b.buf.Write(p[:keep])
	return len(p), nil
}

// brief cuts the text of an error that quotes a plugin or a file.
func brief(err error) error { return briefError{err} }

type briefError struct{ err error }

// Error implements error.
func (b briefError) Error() string {
	text := b.err.Error()
	if len(text) <= maxSaid {
		return text
	}
	return strings.ToValidUTF8(text[:maxSaid], "") + " ..."
}

// Unwrap keeps what errors.Is looks for.
func (b briefError) Unwrap() error { return b.err }
