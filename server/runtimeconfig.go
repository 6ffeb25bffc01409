package server

import (
	"context"
	"net/netip"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
)

// UpdateRuntimeConfig takes note of the addresses that a kubelet has for pods. Networks are made by what the CNI configuration
// says, so nothing else becomes of it: a verbose Status shows the last one. It does not survive the daemon; a kubelet
// tells it again.
func (s *Server) UpdateRuntimeConfig(_ context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	cidr := r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr()
	if err := first(shape(r), checkRuntimeConfig(r.GetRuntimeConfig()), at("runtime_config.network_config", checkPodCIDR(cidr))); err != nil {
		return nil, err
	}
	if old := s.podCIDR.Swap(&cidr); old == nil || *old != cidr {
		klog.InfoS("Pod addresses of the kubelet; the CNI configuration decides", "podCIDR", cidr)
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

// checkRuntimeConfig wants what there is to be told.
func checkRuntimeConfig(c *runtimeapi.RuntimeConfig) error {
	switch {
	case c == nil:
		return missing("runtime_config")
	case c.GetNetworkConfig() == nil:
		return missing("runtime_config.network_config")
	}
	return nil
}

// checkPodCIDR accepts prefixes of different families, separated by a comma. None at all is said where a node has none yet.
func checkPodCIDR(list string) error {
	if list == "" {
		return nil
	}
	var four, six int
	for one := range strings.SplitSeq(list, ",") {
		p, err := netip.ParsePrefix(strings.TrimSpace(one))
		switch {
		case err != nil:
			return bad("pod_cidr", list, "must be prefixes like 10.1.0.0/16, separated by commas")
		case p.Addr().Is4():
			four++
		default:
			six++
		}
	}
	if four > 1 || six > 1 {
		return bad("pod_cidr", list, "must have at most one prefix of each family")
	}
	return nil
}
