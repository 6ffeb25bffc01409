package seccomp

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Names are the words of the specification that a profile may use here.
type Names struct {
	Actions, Operators, Archs, Flags []string
}

// Supported returns all of them, sorted. Archs are those whose calls the kernel of this
// machine takes; profiles may name others, which have no effect.
func Supported() Names {
	n := Names{Flags: []string{
		"SECCOMP_FILTER_FLAG_TSYNC", string(specs.LinuxSeccompFlagSpecAllow), string(specs.LinuxSeccompFlagLog), string(specs.LinuxSeccompFlagWaitKillableRecv),
	}}
	for a := range maps.Keys(actions) {
		n.Actions = append(n.Actions, string(a))
	}
	for o := range maps.Keys(operators) {
		n.Operators = append(n.Operators, string(o))
	}
	for _, a := range hostABIs {
		n.Archs = append(n.Archs, string(a.name))
	}
	for _, list := range [][]string{n.Actions, n.Operators, n.Archs, n.Flags} {
		slices.Sort(list)
	}
	return n
}
