package sandbox

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"unicode/utf8"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/vitrine-runtime/vitrine/internal/atomicfile"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// recordVersion is the version of the records' form. A record of a later version belongs to a newer daemon:
// its pod is reported and left alone.
const recordVersion = 1

// maxRecord bounds what is read back. A CRI message has at most 16 MiB; in JSON it grows.
const maxRecord = 64 << 20

// podRecord is pod.json.
type podRecord struct {
	Version int             `json:"version"`
	ID      string          `json:"id"`
	BootID  string          `json:"bootID"`
	Handler string          `json:"handler,omitempty"`
	Rules   *spec.Handler   `json:"rules,omitempty"` // of the handler, as they were; nil in records of before
	Config  json.RawMessage `json:"config"`          // PodSandboxConfig
	Cgroup  string          `json:"cgroup"`          // the pod's, relative to the root of the hierarchy
	OwnCG   bool            `json:"ownCgroup"`
	Labels  spec.Labels     `json:"selinux,omitzero"`
	Limits  *podLimits      `json:"limits,omitempty"` // of the pod as a whole
	Facts   podFacts        `json:"facts"`
}

// containerRecord is container.json.
type containerRecord struct {
	Version int             `json:"version"`
	ID      string          `json:"id"`
	Pod     string          `json:"pod"`
	Config  json.RawMessage `json:"config"` // ContainerConfig
	Image   imageRecord     `json:"image"`
	Volumes []volumeRecord  `json:"imageVolumes,omitempty"`
	User    userRecord      `json:"user"`
	Signal  int             `json:"stopSignal"`
	CRISig  int32           `json:"stopSignalCRI"`
	LogPath string          `json:"logPath,omitempty"`
	Cgroup  string          `json:"cgroup"`
	Notes   []string        `json:"notes,omitempty"` // what could not be done as asked, and was not fatal
	Limits  *limitsRecord   `json:"limits,omitempty"`
	Env     [][]byte        `json:"env,omitempty"` // the first process's whole environment, where config.json does not hold it: see beyondJSON
	Facts   facts           `json:"facts"`
}

// beyondJSON returns an environment that is not all UTF-8, nil for any other. A value is bytes (KeyValue.value), and JSON has strings
// only: whoever reads such a variable back from config.json would have U+FFFD in it.
func beyondJSON(env []string) (exact [][]byte) {
	if !slices.ContainsFunc(env, func(kv string) bool { return !utf8.ValidString(kv) }) {
		return nil
	}
	for _, kv := range env {
		exact = append(exact, []byte(kv))
	}
	return exact
}

// restoreEnv puts back into a spec that was read from config.json what beyondJSON has kept. Records of before have nothing.
func (r *containerRecord) restoreEnv(s *specs.Spec) {
	if len(r.Env) == 0 {
		return
	}
	s.Process.Env = nil
	for _, kv := range r.Env {
		s.Process.Env = append(s.Process.Env, string(kv))
	}
}

// imageRecord is what has to be shown of the image while the container exists, even if the image goes.
type imageRecord struct {
	ID   string `json:"id"`
	Ref  string `json:"ref"`  // repo@digest, or the id
	Name string `json:"name"` // repo:tag, or what the request said
}

// volumeRecord is an image that is mounted.
type volumeRecord struct {
	Mount int    `json:"mount"` // index in the request
	ID    string `json:"id"`
}

// userRecord is who the first process runs as.
type userRecord struct {
	UID    int64   `json:"uid"`
	GID    int64   `json:"gid"`
	Groups []int64 `json:"groups,omitempty"`
}

// recordDisk writes and reads records. Its zero value uses the real disk.
type recordDisk struct {
	fs atomicfile.FS
}

func (d recordDisk) disk() atomicfile.FS {
	if d.fs == nil {
		return atomicfile.Disk
	}
	return d.fs
}

// write replaces a record. Records may hold secrets (environments): 0600.
func (d recordDisk) write(dir, name string, v any) error {
	data, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("encode %s: %w", name, err)
	}
	return atomicfile.Write(d.disk(), filepath.Join(dir, name), data, 0o600)
}

// readRecord reads a record back.
func readRecord(dir, name string, v any) error {
	data, err := atomicfile.Read(unix.AT_FDCWD, filepath.Join(dir, name), maxRecord)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("decode %s: %w", filepath.Join(dir, name), err)
	}
	return nil
}

// encodeMessage renders a CRI message for a record.
func encodeMessage(m proto.Message) (json.RawMessage, error) {
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode request: %w", err)
	}
	return b, nil
}

// decodeMessage reads a CRI message back. Fields of a newer CRI are passed over.
func decodeMessage(b json.RawMessage, m proto.Message) error {
	if err := (protojson.UnmarshalOptions{DiscardUnknown: true}).Unmarshal(b, m); err != nil {
		return fmt.Errorf("decode request: %w", err)
	}
	return nil
}
