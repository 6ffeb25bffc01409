package sandbox

import (
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// TestDescribeIsText: what plugins are told of a container can be sent whatever its environment and the host's devices are called, with
// the spec in memory and with that from disk; and the container has all of it.
func TestDescribeIsText(t *testing.T) {
	n := newNode(t, newFakes())
	n.m.host.Devices = []spec.HostDevice{{Path: "/dev/bad\xff", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/good", Type: "c", Major: 1, Minor: 3}}
	web := podRequest("web")
	web.Linux.SecurityContext.Privileged = true
	pod := n.run(web)
	cfg := containerRequest("raw", "sleep")
	cfg.Linux.SecurityContext.Privileged = true
	cfg.Envs = []*runtimeapi.KeyValue{{Key: "RAW", Value: []byte("\xff")}, {Key: "PLAIN", Value: []byte("é")}}
	id := n.create(pod, cfg)
	for _, when := range []string{"at first", "after a restart"} {
		c := n.m.index.Load().containers[id]
		told := c.forPlugins()
		if _, err := proto.Marshal(told); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		has := func(name string) bool {
			return slices.ContainsFunc(told.GetEnv(), func(kv string) bool { return strings.HasPrefix(kv, name) })
		}
		if has("RAW") || !has("PLAIN=é") || len(told.GetLinux().GetDevices()) == 0 {
			t.Errorf("%s: told %q, %v", when, told.GetEnv(), told.GetLinux().GetDevices())
		}
		if s, err := c.ociSpec(); err != nil || !slices.Contains(s.Process.Env, "RAW=\xff") || len(s.Linux.Devices) != 2 {
			t.Errorf("%s: the container has %v, %v", when, s, err)
		}
		n.restart()
	}
}
