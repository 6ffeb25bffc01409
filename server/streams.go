package server

import (
	"context"
	"strconv"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Streams is what the Server needs of stream.Server.
type Streams interface {
	// Add returns the URL at which a request, which has been checked, is carried out, once and soon.
	Add(request proto.Message) (url string, err error)
}

// Exec answers with a URL where the command is run, once the client comes there. What
// can be refused is refused here: later there is only the client's error stream for it.
func (s *Server) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	var err error
	if len(r.GetCmd()) == 0 {
		err = missing("cmd")
	}
	if err := first(checkObjectID("container_id", r.GetContainerId()), err, shape(r), checkCommand("cmd", r.GetCmd()),
		checkStreams(r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty())); err != nil {
		return nil, err
	}
	id, err := s.cfg.Manager.CheckStream(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	q := &runtimeapi.ExecRequest{ContainerId: id, Cmd: r.GetCmd(), Tty: r.GetTty(), Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr()}
	url, err := s.cfg.Streams.Add(q)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecResponse{Url: url}, nil
}

// Attach answers with a URL where a client is attached to a container's main process.
func (s *Server) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	if err := first(checkObjectID("container_id", r.GetContainerId()), shape(r),
		checkStreams(r.GetStdin(), r.GetStdout(), r.GetStderr(), r.GetTty())); err != nil {
		return nil, err
	}
	id, err := s.cfg.Manager.CheckStream(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	q := &runtimeapi.AttachRequest{ContainerId: id, Tty: r.GetTty(), Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr()}
	url, err := s.cfg.Streams.Add(q)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.AttachResponse{Url: url}, nil
}

// PortForward answers with a URL where connections to ports of a pod are made: to those of the request, or to any if it
// names none, as the kubelet's do not.
func (s *Server) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if err := first(checkObjectID("pod_sandbox_id", r.GetPodSandboxId()), shape(r), checkForwarded(r.GetPort())); err != nil {
		return nil, err
	}
	id, err := s.cfg.Manager.CheckForward(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	url, err := s.cfg.Streams.Add(&runtimeapi.PortForwardRequest{PodSandboxId: id, Port: r.GetPort()})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PortForwardResponse{Url: url}, nil
}

// checkStreams: at least one stream, and no stderr beside a terminal, which has one output.
func checkStreams(stdin, stdout, stderr, tty bool) error {
	switch {
	case !stdin && !stdout && !stderr:
		return wrong("stdout", "must be set if neither stdin nor stderr is: one of stdin, stdout, or stderr must be set")
	case tty && stderr:
		return wrong("stderr", "must not be set with tty: tty and stderr cannot both be true")
	}
	return nil
}

func checkForwarded(ports []int32) error {
	for i, p := range ports {
		if p < 1 || p > 65535 {
			return bad("port["+strconv.Itoa(i)+"]", strconv.Itoa(int(p)), "must be between 1 and 65535")
		}
	}
	return nil
}
