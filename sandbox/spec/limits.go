package spec

import (
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// The limit on open files of every container: the soft one is what programs with select(2) survive, the
// hard one what servers raise themselves to. It is always written, so that it depends neither on how the
// daemon was started nor on Go, which raises the soft limit of its own process.
const (
	openFilesSoft = 1024
	openFilesHard = 524288
)

// applyLimits sets the resource limits and the OOM score.
func applyLimits(in *Input, s *specs.Spec) error {
	hard := uint64(openFilesHard)
	if m := in.Host.MaxOpenFiles; m != 0 && m < hard {
		hard = m
	}
	if m := in.Host.InheritedOpenFiles; in.Pod.UserNS != nil && m != 0 && m < hard {
		hard = m // who may raise limits on the host may not in a user namespace
	}
	soft := min(uint64(openFilesSoft), hard)
	s.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: hard, Soft: soft}}

	adj := in.Container.GetLinux().GetResources().GetOomScoreAdj()
	if adj < -1000 || adj > 1000 {
		return Invalid("linux.resources.oom_score_adj", itoa(adj), "outside -1000..1000")
	}
	if in.Container.GetLinux().GetResources() != nil {
		v := int(adj)
		s.Process.OOMScoreAdj = &v
	}
	return nil
}
