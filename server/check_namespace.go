package server

import (
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Namespace modes, short.
const (
	modePod       = runtimeapi.NamespaceMode_POD
	modeContainer = runtimeapi.NamespaceMode_CONTAINER
	modeNode      = runtimeapi.NamespaceMode_NODE
	modeTarget    = runtimeapi.NamespaceMode_TARGET
)

func mode(field string, v runtimeapi.NamespaceMode, allowed ...runtimeapi.NamespaceMode) error {
	if slices.Contains(allowed, v) {
		return nil
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = a.String()
	}
	return bad(field, v.String(), "must be one of "+strings.Join(names, ", "))
}

// checkPodNamespaces: networks and IPC are shared in a pod by definition.
func (s *Server) checkPodNamespaces(o *runtimeapi.NamespaceOption) error {
	err := first(
		mode("network", o.GetNetwork(), modePod, modeNode),
		mode("pid", o.GetPid(), modePod, modeContainer, modeNode),
		mode("ipc", o.GetIpc(), modePod, modeNode),
	)
	if err == nil && o.GetTargetId() != "" {
		err = bad("target_id", o.GetTargetId(), "must be empty for a sandbox")
	}
	return first(err, s.checkUserns(o))
}

// checkContainerNamespaces: a container may have its own or another container's
// PID namespace; its user namespace must be the sandbox's.
func (s *Server) checkContainerNamespaces(o, pod *runtimeapi.NamespaceOption) error {
	if o == nil {
		return nil
	}
	err := first(
		mode("network", o.GetNetwork(), modePod, modeNode),
		mode("pid", o.GetPid(), modePod, modeContainer, modeNode, modeTarget),
		mode("ipc", o.GetIpc(), modePod, modeNode),
	)
	target := o.GetPid() == modeTarget
	switch {
	case err != nil:
	case target && o.GetTargetId() == "":
		err = missing("target_id")
	case !target && o.GetTargetId() != "":
		err = bad("target_id", o.GetTargetId(), "must be empty unless pid is TARGET")
	default:
		err = at("userns_options", sameUserns(o.GetUsernsOptions(), pod.GetUsernsOptions()))
	}
	return first(err, s.checkUserns(o))
}

// sameUserns: nil and NODE are the same, the host's user namespace.
func sameUserns(a, b *runtimeapi.UserNamespace) error {
	own := func(u *runtimeapi.UserNamespace) bool { return u != nil && u.GetMode() != modeNode }
	const must = "must be that of the sandbox"
	switch {
	case !own(a) && !own(b):
		return nil
	case own(b) && a == nil:
		return missing("mode")
	case own(a) != own(b) || a.GetMode() != b.GetMode():
		return bad("mode", a.GetMode().String(), must)
	case !slices.EqualFunc(a.GetUids(), b.GetUids(), sameMapping):
		return wrong("uids", must)
	case !slices.EqualFunc(a.GetGids(), b.GetGids(), sameMapping):
		return wrong("gids", must)
	}
	return nil
}

func sameMapping(a, b *runtimeapi.IDMapping) bool { return proto.Equal(a, b) }

// checkUserns checks the mapping of a pod's user namespace before it says that
// there are none yet, so that a client sees its own mistakes first.
func (s *Server) checkUserns(o *runtimeapi.NamespaceOption) error {
	u := o.GetUsernsOptions()
	if u == nil {
		return nil
	}
	if err := mode("userns_options.mode", u.GetMode(), modePod, modeNode); err != nil {
		return err
	}
	if u.GetMode() == modeNode {
		return at("userns_options", first(noMapping("uids", u.GetUids()), noMapping("gids", u.GetGids())))
	}
	err := first(
		checkMapping("uids", u.GetUids()),
		checkMapping("gids", u.GetGids()),
	)
	switch {
	case err != nil:
	case !proto.Equal(u.GetUids()[0], u.GetGids()[0]):
		err = wrong("gids", "must be the same mapping as uids: container_id, host_id and length")
	case o.GetPid() == modeNode || o.GetIpc() == modeNode:
		err = wrong("mode", "must not be POD with the host's PID or IPC namespace")
	case !s.cfg.Features.UserNamespaces:
		err = unsupported("mode", "user namespaces are")
	}
	return at("userns_options", err)
}

func noMapping(field string, lines []*runtimeapi.IDMapping) error {
	if len(lines) > 0 {
		return wrong(field, "must be empty in the host's user namespace")
	}
	return nil
}

// checkMapping: one line that maps root and stays in the range of ids.
func checkMapping(field string, lines []*runtimeapi.IDMapping) error {
	if len(lines) != 1 {
		return badInt(field, int64(len(lines)), "must have exactly one line")
	}
	m := lines[0]
	switch {
	case m.GetLength() == 0:
		return badInt(field+"[0].length", 0, "must be above 0")
	case m.GetContainerId() != 0:
		return badInt(field+"[0].container_id", int64(m.GetContainerId()), "must be 0: root has to be mapped")
	case uint64(m.GetHostId())+uint64(m.GetLength()) > 1<<32-1:
		return badInt(field+"[0].length", int64(m.GetLength()), "must end below id 4294967295")
	}
	return nil
}
