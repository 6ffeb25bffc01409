package bundle

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"

	"github.com/vitrine-runtime/vitrine/oci/program"
)

// guessed has something of all that a program needs of the outside.
const guessed = `{
  "ociVersion": "1.3.0", "root": {"path": "rootfs"},
  "process": {"terminal": true, "args": ["sh"], "cwd": "/", "user": {"uid": 0, "gid": 0}},
  "hooks": {"createRuntime": [{"path": "/bin/true"}]},
  "mounts": [
    {"destination": "/proc", "type": "proc"}, {"destination": "/dev", "type": "tmpfs"},
    {"destination": "/dev/pts", "type": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
    {"destination": "/sys", "type": "sysfs"}, {"destination": "/sys/fs/cgroup", "type": "cgroup"},
    {"destination": "/file", "source": "config.json", "options": ["bind"]}, {"destination": "/dir", "source": "rootfs", "options": ["rbind", "ro"]},
    {"destination": "/copy", "type": "tmpfs", "options": ["tmpcopyup"]}
  ],
  "linux": {
    "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "user"}, {"type": "network"}, {"type": "time"}, {"type": "ipc", "path": "/proc/self/ns/ipc"}],
    "uidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}], "gidMappings": [{"containerID": 0, "hostID": 100000, "size": 65536}],
    "timeOffsets": {"monotonic": {"secs": 5}}, "netDevices": {"eth9": {}},
    "seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_ERRNO"}]}
  }
}`

// A program that is made without opening anything is the one that create runs.
func TestGuessIsWhatCreateRuns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: opens mounts")
	}
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "rootfs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, configName), []byte(guessed), 0o600); err != nil {
		t.Fatal(err)
	}
	var text [2]bytes.Buffer
	for i, guess := range []bool{false, true} {
		p, err := (&maker{guess: guess}).explain(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := program.Explain(&text[i], p); err != nil {
			t.Fatal(err)
		}
	}
	if text[0].Len() == 0 || text[0].String() != text[1].String() {
		t.Errorf("opened:\n%s\nguessed:\n%s", &text[0], &text[1])
	}
}
