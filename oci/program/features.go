package program

import (
	"maps"
	"slices"
)

// Names are the words of the specification that programs know, for those who ask
// before they write a spec.
type Names struct {
	MountOptions []string
	Capabilities []string
	Namespaces   []string
	MemoryModes  []string
	MemoryFlags  []string
}

// Supported returns all names, sorted, but capabilities by their number. What of them a kernel has shows when a program
// runs.
func Supported() Names {
	n := Names{Capabilities: slices.Clone(capabilityNames[:])}
	n.MountOptions = append(n.MountOptions, "bind", "rbind", "remount", "idmap", "ridmap", "tmpcopyup")
	for name := range attributes {
		n.MountOptions = append(n.MountOptions, name, "r"+name)
	}
	for _, m := range []map[string]uint64{atimes, notAtimes} {
		for name := range m {
			n.MountOptions = append(n.MountOptions, name, "r"+name)
		}
	}
	n.MountOptions = slices.AppendSeq(n.MountOptions, maps.Keys(propagations))
	n.MountOptions = slices.AppendSeq(n.MountOptions, maps.Keys(superFlags))
	n.MountOptions = slices.AppendSeq(n.MountOptions, maps.Keys(impliedOptions))
	n.MountOptions = append(n.MountOptions, emptyOptions...)
	slices.Sort(n.MountOptions)
	n.MountOptions = slices.Compact(n.MountOptions)
	for t := range namespaceFlags {
		n.Namespaces = append(n.Namespaces, string(t))
	}
	for m := range memoryModes {
		n.MemoryModes = append(n.MemoryModes, string(m))
	}
	for f := range memoryFlags {
		n.MemoryFlags = append(n.MemoryFlags, string(f))
	}
	slices.Sort(n.Namespaces)
	slices.Sort(n.MemoryModes)
	slices.Sort(n.MemoryFlags)
	return n
}
