package sandbox

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/image"
)

// TestUserNSRefused: where layers cannot be mapped a pod is refused at once, and nothing is left of it. Containers of
// one that is there already are refused for the same reason.
func TestUserNSRefused(t *testing.T) {
	n := newNode(t, newFakes())
	n.images.noMaps = true
	cfg := podRequest("mapped")
	line := []*runtimeapi.IDMapping{{HostId: 200000, Length: 65536}}
	cfg.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: &runtimeapi.UserNamespace{Uids: line, Gids: line}}
	_, err := n.m.RunPodSandbox(bg, cfg, "")
	if !errors.Is(err, ErrState) || !strings.Contains(err.Error(), "userns_options") {
		t.Errorf("where ids cannot be mapped: %v", err)
	}
	if got := n.m.ListPodSandbox(nil); len(got) != 0 {
		t.Errorf("left behind: %v", got)
	}
	if err := imageError(fmt.Errorf("mount: %w", image.ErrNoIDMaps)); !errors.Is(err, ErrState) {
		t.Errorf("a root that cannot be mapped: %v", err)
	}
	if err := ociError(fmt.Errorf("make user namespace: %w", unix.ENOSPC)); !errors.Is(err, ErrExhausted) {
		t.Errorf("too many user namespaces: %v", err)
	}
}
