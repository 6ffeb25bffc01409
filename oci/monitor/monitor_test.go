package monitor

import (
	"bytes"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/pause"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/oci/executor"
	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// Only what lives in a namespace of the pod's own is ever written; a key must not
// climb out of its directory. Nothing here reaches a file.
func TestSysctlRefusals(t *testing.T) {
	p := &procfs{root: sys.NewFD(mustOpen(t, t.TempDir()))}
	defer p.root.Close()
	for _, c := range []struct {
		setup wire.Setup
		key   string
	}{
		{wire.Setup{}, "vm.overcommit_memory"},
		{wire.Setup{}, "kernel.core_pattern"},
		{wire.Setup{}, "kernel.hostname"},
		{wire.Setup{}, "kernel.semx"},
		{wire.Setup{}, "kernel.shmx"},
		{wire.Setup{}, "kernel.domainname"},
		{wire.Setup{}, "user.max_user_namespaces"},
		{wire.Setup{}, "net"},
		{wire.Setup{}, "/net/ipv4/ip_forward"},
		{wire.Setup{}, "net.//.kernel.core_pattern"},
		{wire.Setup{}, "net/../kernel/core_pattern"},
		{wire.Setup{}, "kernel/shm/../core_pattern"},
		{wire.Setup{HostNet: true}, "net.ipv4.ip_forward"},
		{wire.Setup{HostIPC: true}, "kernel.shmmax"},
		{wire.Setup{HostIPC: true}, "fs.mqueue.msg_max"},
	} {
		if err := p.sysctl(&c.setup, c.key, "1"); !errors.Is(err, unix.EPERM) {
			t.Errorf("%q with %+v: %v", c.key, c.setup, err)
		}
	}
}

func mustOpen(t *testing.T, dir string) int {
	t.Helper()
	n, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestValidID(t *testing.T) {
	for id, want := range map[string]bool{
		"c1": true, "A-b_c.9": true, strings.Repeat("f", 128): true,
		"": false, strings.Repeat("f", 129): false, `a"b`: false, "a/b": false, "a b": false, "a\x00": false, "é": false,
	} {
		if validID(id) != want {
			t.Errorf("%q: %v", id, !want)
		}
	}
}

// The record is written by hand.
func TestExitJSON(t *testing.T) {
	for _, id := range []string{"c1", strings.Repeat("f", maxID)} {
		s := wire.State{ID: id, Pid: 7, Created: 1, Started: 2, Status: wire.Status{Code: 3, Signal: 4, OOMKilled: true, OOMKills: 4294967295, At: 1700000000123456789}}
		var got struct {
			Version, Pid, Code, Signal int
			ID                         string
			CreatedAt                  int64 `json:"created_at"`
			StartedAt                  int64 `json:"started_at"`
			FinishedAt                 int64 `json:"finished_at"`
			OOMKilled                  bool  `json:"oom_killed"`
			OOMKills                   int64 `json:"oom_kills"`
		}
		if err := json.Unmarshal(exitJSON(&s), &got); err != nil {
			t.Errorf("%q: %v in %s", id, err, exitJSON(&s))
			continue
		}
		if got.ID != id || got.Version != 1 || got.Pid != 7 || got.Code != 3 || got.Signal != 4 ||
			got.CreatedAt != 1 || got.StartedAt != 2 || got.FinishedAt != s.At || !got.OOMKilled || got.OOMKills != 1<<32-1 {
			t.Errorf("%q: %+v", id, got)
		}
	}
}

// A record replaces the one before it as a whole, and leaves nothing beside it.
func TestWriteExit(t *testing.T) {
	path := t.TempDir()
	dir := sys.NewFD(mustOpen(t, path))
	defer dir.Close()
	for i, id := range []string{"a-very-long-name-of-a-container", "b", "a-record-that-was-opened-before", "d"} {
		var f *sys.FD
		if i >= 2 {
			var err error
			if f, err = openExit(dir); err != nil {
				t.Fatal(err)
			}
		}
		if err := writeExit(dir, f, &wire.State{ID: id}); err != nil {
			t.Fatal(err)
		}
		f.Close()
		b, err := os.ReadFile(path + "/" + wire.ExitName)
		if err != nil || !json.Valid(b) || !bytes.Contains(b, []byte(id)) {
			t.Errorf("%s, %v", b, err)
		}
	}
	if d, _ := os.ReadDir(path); len(d) != 1 {
		t.Errorf("in the directory: %v", d)
	}
	if err := os.Symlink("/dev/full", path+"/."+wire.ExitName); err != nil {
		t.Fatal(err)
	}
	if err := writeExit(dir, nil, &wire.State{ID: "c"}); !errors.Is(err, unix.ELOOP) {
		t.Errorf("through a symlink: %v", err)
	}
}

func TestPauseELF(t *testing.T) {
	b := pause.ELF()
	if len(b) > 300 {
		t.Errorf("%d bytes", len(b))
	}
	f, err := elf.NewFile(bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	if f.Type != elf.ET_EXEC || f.Machine != elf.EM_X86_64 || len(f.Progs) != 2 {
		t.Errorf("%+v", f.FileHeader)
	}
	load, stack := f.Progs[0], f.Progs[1]
	if load.Type != elf.PT_LOAD || load.Flags != elf.PF_R|elf.PF_X || load.Filesz != uint64(len(b)) || f.Entry < load.Vaddr || f.Entry >= load.Vaddr+load.Memsz {
		t.Errorf("segment %+v, entry %#x", load.ProgHeader, f.Entry)
	}
	if stack.Type != elf.PT_GNU_STACK || stack.Flags&elf.PF_X != 0 {
		t.Errorf("stack %+v", stack.ProgHeader)
	}
	for _, userns := range []bool{false, true} {
		if _, err := pauseProgram(userns).Encode(); err != nil {
			t.Errorf("with a user namespace %v: %v", userns, err)
		}
	}
}

// Whatever goes wrong arrives with its kind, its errno and its step.
func TestFailure(t *testing.T) {
	for _, c := range []struct {
		err  error
		want wire.Failure
	}{
		{fmt.Errorf("create: %w", &executor.StepError{Step: 7, Name: "mount /proc", Errno: unix.EPERM}),
			wire.Failure{Code: wire.CodeStep, Step: 7, Errno: uint32(unix.EPERM), Text: "mount /proc"}},
		{fmt.Errorf("start: %w", executor.ErrDied), wire.Failure{Code: wire.CodeDied, Text: "start: child died before execve"}},
		{fmt.Errorf("open: %w", unix.ENOSPC), wire.Failure{Errno: uint32(unix.ENOSPC), Text: "open: no space left on device"}},
		{refuse(wire.CodeState, "x"), wire.Failure{Code: wire.CodeState, Text: "x"}},
	} {
		if got := failure(c.err); *got != c.want {
			t.Errorf("%v: %+v", c.err, got)
		}
	}
}
