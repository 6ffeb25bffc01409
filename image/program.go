package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"syscall"
	"time"

	programs "github.com/docker/docker-credential-helpers/client"
	answers "github.com/docker/docker-credential-helpers/credentials"
	"go.podman.io/image/v5/types"
)

const (
	// dockerHub is what Docker stores the credentials for docker.io under.
	dockerHub = "https://index.docker.io/v1/"
	// maxProgramOutput is far above the longest tokens.
	maxProgramOutput = 4 * maxAuth
	// programGrace is how long a killed program's children may keep its output open.
	programGrace = time.Second
)

// askProgram asks the program docker-credential-NAME for the credentials of a host:
// the name comes from the node's configuration and is looked up in PATH. No answer in time,
// or one without sense, is an error that holds nothing of it.
func askProgram(ctx context.Context, limit time.Duration, name, host string) (types.DockerAuthConfig, error) {
	if !plainName.MatchString(name) {
		return types.DockerAuthConfig{}, fmt.Errorf("credential program %.256q: not a name", name)
	}
	servers := []string{host}
	if host == "docker.io" {
		servers = []string{dockerHub, host}
	}
	for _, server := range servers {
		found, err := runProgram(ctx, limit, "docker-credential-"+name, server)
		if err != nil {
			return types.DockerAuthConfig{}, fmt.Errorf("credential program docker-credential-%s: %w", name, err)
		}
		if found != (types.DockerAuthConfig{}) {
			return found, nil
		}
	}
	return types.DockerAuthConfig{}, nil
}

func runProgram(ctx context.Context, limit time.Duration, path, server string) (types.DockerAuthConfig, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %v", limit))
	defer cancel()
	p := &program{ctx: ctx, path: path}
	answer, err := programs.Get(func(args ...string) programs.Program { p.args = args; return p }, server)
	switch {
	case answers.IsErrCredentialsNotFound(err):
		return types.DockerAuthConfig{}, nil
	case p.failed != nil:
		return types.DockerAuthConfig{}, p.failed
	case err != nil:
		return types.DockerAuthConfig{}, errors.New("answers in another language than JSON")
	}
	auth := Auth{Username: answer.Username, Password: answer.Secret}
	if answer.Username == "<token>" {
		auth = Auth{IdentityToken: answer.Secret}
	}
	creds, err := auth.decode()
	if err != nil {
		return types.DockerAuthConfig{}, err
	}
	if creds == nil {
		return types.DockerAuthConfig{}, nil
	}
	return creds.config, nil
}

// program is one run of a credential program, as its library wants it.
type program struct {
	ctx    context.Context //nolint:containedctx // the library's interface has no place for it
	path   string
	args   []string
	in     io.Reader
	failed error // without what it printed
}

// Input implements the library's Program.
func (p *program) Input(in io.Reader) { p.in = in }

// Output implements the library's Program. Whatever the program has started is killed
// with it.
func (p *program) Output() ([]byte, error) {
	out := &shortOutput{}
	cmd := exec.CommandContext(p.ctx, p.path, p.args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout = "/", p.in, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return killGroup(cmd.Process) }
	cmd.WaitDelay = programGrace
	err := cmd.Run()
	if cmd.Process != nil {
		_ = killGroup(cmd.Process)
	}
	switch {
	case p.ctx.Err() != nil:
		err = context.Cause(p.ctx)
	case out.cut:
		err = fmt.Errorf("printed more than %d bytes", maxProgramOutput)
	case errors.Is(err, exec.ErrWaitDelay):
		err = errors.New("a process that it left keeps its output open")
	}
	p.failed = err
	return out.data.Bytes(), err
}

// killGroup kills a program and its children. The number is the group's for as long
// as one of them lives, and is not given away again at once.
func killGroup(leader *os.Process) error {
	if err := syscall.Kill(-leader.Pid, syscall.SIGKILL); !errors.Is(err, syscall.ESRCH) {
		return err
	}
	return os.ErrProcessDone
}

// shortOutput closes the pipe on a program that prints more than maxProgramOutput bytes.
type shortOutput struct {
	data bytes.Buffer
	cut  bool
}

func (s *shortOutput) Write(b []byte) (int, error) {
	if s.cut = s.data.Len()+len(b) > maxProgramOutput; s.cut {
		return 0, io.ErrShortWrite
	}
	return s.data.Write(b)
}
