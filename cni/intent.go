package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"
	"unicode"

	"github.com/containernetworking/cni/libcni"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
)

// undoTimeout bounds the DEL after a failed ADD, whose request may be over.
const undoTimeout = 30 * time.Second

// intentVersion is raised when the meaning of a field changes.
const intentVersion = 1

// intent is what is known of a connection before it is made. Its file is
// <StateDir>/<pod id>.json.
type intent struct {
	Version int       `json:"version"`
	Pod     Pod       `json:"pod"`
	Network string    `json:"network"`
	List    string    `json:"list"` // the configuration list, as it was read
	Since   time.Time `json:"since"`
}

func newIntent(p Pod, list *libcni.NetworkConfigList) *intent {
	return &intent{Version: intentVersion, Pod: p, Network: list.Name, List: string(list.Bytes), Since: time.Now()}
}

// validID is what plugins accept as CNI_CONTAINERID; it is also a file name.
var validID = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}$`)

// check refuses what could mean something else on its way through CNI_ARGS,
// which is a list of key=value pairs between semicolons, or in a path that a
// plugin makes of it.
func (p *Pod) check() error {
	if !validID.MatchString(p.ID) {
		return fmt.Errorf("connect pod: id %.300q", p.ID)
	}
	for _, f := range [][2]string{{"name", p.Name}, {"namespace", p.Namespace}, {"uid", p.UID}} {
		if v := f[1]; v == "" || v == "." || v == ".." || strings.ContainsAny(v, ";=/") || strings.ContainsFunc(v, unicode.IsControl) {
			return fmt.Errorf("connect pod: %s %.300q", f[0], v)
		}
	}
	if !filepath.IsAbs(p.NetNS) || filepath.Clean(p.NetNS) != p.NetNS || strings.ContainsFunc(p.NetNS, unicode.IsControl) {
		return fmt.Errorf("connect pod: network namespace %.300q", p.NetNS)
	}
	return nil
}

// runtimeConf is the same for ADD and DEL of a pod.
func (it *intent) runtimeConf() *libcni.RuntimeConf {
	p := &it.Pod
	c := &libcni.RuntimeConf{
		ContainerID: p.ID,
		NetNS:       p.NetNS,
		IfName:      ifName,
		Args: [][2]string{
			{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", p.Namespace}, {"K8S_POD_NAME", p.Name},
			{"K8S_POD_INFRA_CONTAINER_ID", p.ID}, {"K8S_POD_UID", p.UID},
		},
		CapabilityArgs: map[string]any{},
	}
	if len(p.PortMappings) > 0 {
		c.CapabilityArgs["portMappings"] = p.PortMappings
	}
	if p.Bandwidth != nil {
		c.CapabilityArgs["bandwidth"] = p.Bandwidth
	}
	return c
}

func (it *intent) list() (*libcni.NetworkConfigList, error) {
	list, err := libcni.NetworkConfFromBytes([]byte(it.List))
	if err != nil {
		return nil, fmt.Errorf("read intent of pod %s: %w", it.Pod.ID, err)
	}
	if len(list.Plugins) == 0 {
		return nil, fmt.Errorf("read intent of pod %s: no plugins", it.Pod.ID)
	}
	return list, nil
}

func (n *Network) path(podID string) string { return filepath.Join(n.cfg.StateDir, podID+".json") }

// write makes the intent durable. One that is already there belongs to a pod
// that is connected or not yet cleaned up.
func (n *Network) write(it *intent) error {
	if _, err := os.Lstat(n.path(it.Pod.ID)); err == nil {
		return fmt.Errorf("connect pod %s: it has a connection: %w", it.Pod.ID, fs.ErrExist)
	}
	b, err := json.Marshal(it)
	if err != nil {
		return err
	}
	if len(b) > maxIntent { // it could not be read again
		return fmt.Errorf("write intent: %d bytes are more than %d", len(b), maxIntent)
	}
	if err := atomicfile.Write(atomicfile.Disk, n.path(it.Pod.ID), b, 0o600); err != nil {
		return fmt.Errorf("write intent: %w", err)
	}
	return nil
}

// maxIntent bounds what is read back: a list, and some hundred port mappings.
const maxIntent = 2 * maxConf

// read returns the intent of a pod, or nil if there is none.
func (n *Network) read(podID string) (*intent, error) {
	if !validID.MatchString(podID) {
		return nil, nil // nothing was ever connected under such an id
	}
	b, err := atomicfile.Read(unix.AT_FDCWD, n.path(podID), maxIntent)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read intent: %w", err)
	}
	it := &intent{}
	if err := json.Unmarshal(b, it); err != nil {
		return nil, fmt.Errorf("read intent of pod %s: %w", podID, err)
	}
	if it.Version != intentVersion || it.Pod.ID != podID {
		return nil, fmt.Errorf("read intent of pod %s: version %d of pod %q", podID, it.Version, it.Pod.ID)
	}
	return it, nil
}

func (n *Network) remove(podID string) error {
	if err := atomicfile.Remove(atomicfile.Disk, n.path(podID)); err != nil {
		return fmt.Errorf("remove intent: %w", err)
	}
	return nil
}

// sweep removes intents that a daemon was killed over while it wrote them: nothing was
// asked of a plugin yet, and nobody else would take them away.
func (n *Network) sweep() error {
	entries, err := os.ReadDir(n.cfg.StateDir)
	if err != nil {
		return fmt.Errorf("list intents: %w", err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), ".json.tmp") {
			continue
		}
		if err := os.Remove(filepath.Join(n.cfg.StateDir, e.Name())); err != nil {
			return fmt.Errorf("remove half an intent: %w", err)
		}
	}
	return nil
}

// Pending returns the ids of all pods that have an intent: those connected,
// and those that a crash has left behind. The caller knows which is which.
func (n *Network) Pending() ([]string, error) {
	entries, err := os.ReadDir(n.cfg.StateDir)
	if err != nil {
		return nil, fmt.Errorf("list intents: %w", err)
	}
	var ids []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && validID.MatchString(id) {
			ids = append(ids, id)
		}
	}
	return ids, nil
}
