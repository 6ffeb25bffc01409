package program

import (
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// What is said to be supported is accepted.
func TestSupported(t *testing.T) {
	n := Supported()
	for _, o := range n.MountOptions {
		m := &specs.Mount{Destination: "/x", Type: "tmpfs", Source: "tmpfs", Options: []string{o}}
		got, err := ParseMount("mounts[0]", m)
		if err != nil {
			t.Error(err)
		}
		for _, d := range got.Data {
			t.Errorf("%s is data of the filesystem: %s", o, d)
		}
	}
	for _, c := range n.Capabilities {
		if _, err := parseCapabilities(&specs.LinuxCapabilities{Bounding: []string{c}}); err != nil {
			t.Error(err)
		}
	}
	if len(n.MountOptions) < 60 || len(n.Namespaces) != 8 || len(n.Capabilities) < 41 || len(n.MemoryModes) < 7 || len(n.MemoryFlags) != 3 {
		t.Errorf("%d options, %d capabilities, %v %v %v", len(n.MountOptions), len(n.Capabilities), n.Namespaces, n.MemoryModes, n.MemoryFlags)
	}
}
