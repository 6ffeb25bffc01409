package server

import runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

// subject says in log keys what a request is about: ids and names only. Requests as
// a whole are never logged: they carry environments and credentials.
func subject(req any) (kv []any) {
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		kv = append(kv, "pod", cut(r.GetPodSandboxId()))
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		kv = append(kv, "container", cut(r.GetContainerId()))
	}
	if r, ok := req.(interface{ GetImage() *runtimeapi.ImageSpec }); ok {
		kv = append(kv, "image", cut(r.GetImage().GetImage()))
	}
	switch r := req.(type) {
	case *runtimeapi.RunPodSandboxRequest:
		m := r.GetConfig().GetMetadata()
		kv = append(kv, "namespace", cut(m.GetNamespace()), "name", cut(m.GetName()), "uid", cut(m.GetUid()), "attempt", m.GetAttempt())
	case *runtimeapi.CreateContainerRequest:
		m := r.GetConfig().GetMetadata()
		kv = append(kv, "name", cut(m.GetName()), "attempt", m.GetAttempt(), "image", cut(r.GetConfig().GetImage().GetImage()))
	case *runtimeapi.StopContainerRequest:
		kv = append(kv, "timeout", r.GetTimeout())
	}
	return kv
}

// answer says what a request made.
func answer(resp any) []any {
	switch r := resp.(type) {
	case *runtimeapi.RunPodSandboxResponse:
		return []any{"pod", r.GetPodSandboxId()}
	case *runtimeapi.CreateContainerResponse:
		return []any{"container", r.GetContainerId()}
	case *runtimeapi.PullImageResponse:
		return []any{"id", r.GetImageRef()}
	case *runtimeapi.ExecSyncResponse:
		return []any{"exit", r.GetExitCode()}
	}
	return nil
}

// cut makes a value of a client fit for a log: one line, not long.
func cut(s string) string {
	if len(s) <= maxQuoted && singleLine(s) == "" {
		return s
	}
	return quote(s)
}
