package server

import (
	"context"
	"encoding/json"
	"fmt"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// What Version answers. apiVersion is the kubelet's own of this message and has
// been 0.1.0 in every release; a kubelet compares nothing but runtime_api_version.
const (
	runtimeName = "vitrine"
	apiVersion  = "0.1.0"
	criVersion  = "v1"
)

// Version says who answers. The version that the client sends is not looked at:
// the name of the gRPC service is the version of the protocol.
func (s *Server) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{
		Version:           apiVersion,
		RuntimeName:       runtimeName,
		RuntimeVersion:    s.cfg.Version,
		RuntimeApiVersion: criVersion,
	}, nil
}

// RuntimeConfig tells the kubelet which cgroup driver to use. It never changes
// while a kubelet runs.
func (s *Server) RuntimeConfig(context.Context, *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return &runtimeapi.RuntimeConfigResponse{
		Linux: &runtimeapi.LinuxRuntimeConfiguration{CgroupDriver: s.cfg.CgroupDriver},
	}, nil
}

// Status says whether pods can run here, and which features are true on this
// kernel. A verbose one adds the configuration and what is not enforced.
func (s *Server) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	resp := &runtimeapi.StatusResponse{
		Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
			// The daemon listens only after its recovery: whoever is answered
			// here can start containers.
			{Type: runtimeapi.RuntimeReady, Status: true},
			s.networkCondition(ctx),
		}},
		RuntimeHandlers: s.handlers(),
		Features: &runtimeapi.RuntimeFeatures{
			UserNamespacesHostNetwork: s.cfg.Features.UserNamespaces,
			SupplementalGroupsPolicy:  s.cfg.Features.SupplementalGroupsPolicy,
			MountOptions:              s.cfg.Features.MountOptions,
		},
	}
	if !r.GetVerbose() || s.cfg.Info == nil {
		return resp, nil
	}
	info := s.cfg.Info()
	if cidr := s.podCIDR.Load(); cidr != nil {
		info["podCIDR"] = *cidr
	}
	var err error
	resp.Info, err = documents(info)
	return resp, err
}

// handlers are the runtime handlers, the default one first.
func (s *Server) handlers() []*runtimeapi.RuntimeHandler {
	var all []*runtimeapi.RuntimeHandler
	for _, h := range append([]Handler{{}}, s.cfg.Handlers...) {
		all = append(all, &runtimeapi.RuntimeHandler{Name: h.Name, Features: &runtimeapi.RuntimeHandlerFeatures{
			RecursiveReadOnlyMounts: s.cfg.Features.RecursiveReadOnly,
			UserNamespaces:          s.cfg.Features.UserNamespaces && !h.NoUserNamespaces,
		}})
	}
	return all
}

// networkCondition asks the network, and not for long.
func (s *Server) networkCondition(ctx context.Context) *runtimeapi.RuntimeCondition {
	c := &runtimeapi.RuntimeCondition{Type: runtimeapi.NetworkReady, Status: true}
	if err := s.network.status(ctx); err != nil {
		c.Status, c.Reason, c.Message = false, "NetworkPluginNotReady", message(err)
	}
	return c
}

// documents makes a JSON document of each value, which is what info fields hold.
func documents(values map[string]any) (map[string]string, error) {
	info := make(map[string]string, len(values))
	for k, v := range values {
		doc, err := json.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("encode info %s: %w", k, err)
		}
		info[k] = string(doc)
	}
	return info, nil
}
