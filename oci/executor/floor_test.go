package executor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// exitCode0 is the smallest program that there is:
//
//	mov edi, 0; mov eax, SYS_exit_group; syscall
var exitCode0 = []byte{0xbf, 0, 0, 0, 0, 0xb8, 0xe7, 0, 0, 0, 0x0f, 0x05}

// bareFork is the smallest program that starts another one in a cgroup, here without a compiler, a libc and its pages:
//
//	int fd = open(argv[1], O_DIRECTORY);
//	struct clone_args a = {.flags = CLONE_INTO_CGROUP, .exit_signal = SIGCHLD, .cgroup = fd};
//	int status, pid = clone3(&a, 88);
//	if (pid == 0) execve(argv[2], argv + 2, NULL);
//	if (pid <= 0) exit_group(127);
//	wait4(-1, &status, 0, NULL);
//	exit_group(status & 0x7f ? 128 + (status & 0x7f) : status >> 8 & 0xff);
var bareFork = []byte{
	0x48, 0x8b, 0x7c, 0x24, 0x10, // mov rdi, [rsp+16]
	0xbe, 0x00, 0x00, 0x01, 0x00, // mov esi, O_DIRECTORY
	0xb8, 0x02, 0x00, 0x00, 0x00, 0x0f, 0x05, // open
	0x4c, 0x8d, 0x64, 0x24, 0x18, // lea r12, [rsp+24]
	0x31, 0xc9, 0x51, 0xff, 0xc3, 0x83, 0xfb, 0x0b, 0x7c, 0xf8, // push eleven zeros: struct clone_args
	0xba, 0x02, 0x00, 0x00, 0x00, 0x48, 0xc1, 0xe2, 0x20, 0x48, 0x89, 0x14, 0x24, // flags
	0xc6, 0x44, 0x24, 0x20, 0x11, // exit_signal
	0x89, 0x44, 0x24, 0x50, // cgroup
	0x48, 0x89, 0xe7, 0xbe, 0x58, 0x00, 0x00, 0x00, 0xb8, 0xb3, 0x01, 0x00, 0x00, 0x0f, 0x05, // clone3
	0x85, 0xc0, 0x78, 0x12, 0x75, 0x1c, // js failed, jnz parent
	0x49, 0x8b, 0x3c, 0x24, 0x4c, 0x89, 0xe6, 0x31, 0xd2, 0xb8, 0x3b, 0x00, 0x00, 0x00, 0x0f, 0x05, // execve
	0xbf, 0x7f, 0x00, 0x00, 0x00, 0xb8, 0xe7, 0x00, 0x00, 0x00, 0x0f, 0x05, // failed: exit_group(127)
	0x48, 0x83, 0xcf, 0xff, 0x48, 0x89, 0xe6, 0x31, 0xd2, 0x45, 0x31, 0xd2, 0xb8, 0x3d, 0x00, 0x00, 0x00, 0x0f, 0x05, // parent: wait4
	0x0f, 0xb6, 0x7c, 0x24, 0x01, 0x8b, 0x04, 0x24, 0x83, 0xe0, 0x7f, 0x74, 0x06, // exit code, signal
	0x8d, 0xb8, 0x80, 0x00, 0x00, 0x00, 0xb8, 0xe7, 0x00, 0x00, 0x00, 0x0f, 0x05, // exit_group
}

// program writes an ELF of one segment that holds headers and code.
func program(t *testing.T, path string, code []byte) string {
	t.Helper()
	const base, headers = 0x400000, 64 + 56
	le := binary.LittleEndian
	b := []byte{0x7f, 'E', 'L', 'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0}
	b = le.AppendUint16(le.AppendUint16(b, 2), 62)
	b = le.AppendUint32(b, 1)
	b = le.AppendUint64(b, base+headers)
	b = le.AppendUint64(le.AppendUint64(b, 64), 0)
	b = le.AppendUint32(b, 0)
	for _, v := range []uint16{64, 56, 1, 0, 0, 0} {
		b = le.AppendUint16(b, v)
	}
	b = le.AppendUint32(le.AppendUint32(b, 1), 5)
	size := uint64(headers + len(code))
	for _, v := range []uint64{0, base, base, size, size, 0x1000} {
		b = le.AppendUint64(b, v)
	}
	if err := os.WriteFile(path, append(b, code...), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// counted is a cgroup that counts memory, and which is made anew for each try.
type counted struct {
	t    *testing.T
	path string
}

func newCounted(t *testing.T) *counted {
	t.Helper()
	const root = "/sys/fs/cgroup"
	b, err := os.ReadFile(root + "/cgroup.subtree_control")
	if err != nil || !strings.Contains(string(b), "memory") || os.Geteuid() != 0 {
		t.Skip("needs root and the memory controller in cgroup v2: counts what a fork is charged")
	}
	// A child inherits the score, and one that nobody may kill would meet no limit.
	was, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte("0"), 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.WriteFile("/proc/self/oom_score_adj", was, 0) })
	return &counted{t, fmt.Sprintf("%s/vitrine-test-floor-%d", root, os.Getpid())}
}

// try runs f, whose argument is the cgroup, with a limit, and returns what f does and the peak.
func (c *counted) try(limit int, f func(dir int) int) (code, peak int) {
	c.t.Helper()
	if err := os.Mkdir(c.path, 0o755); err != nil {
		c.t.Fatal(err)
	}
	defer func() {
		if err := os.Remove(c.path); err != nil {
			c.t.Fatal(err)
		}
	}()
	if err := os.WriteFile(c.path+"/memory.max", []byte(strconv.Itoa(limit)), 0); err != nil {
		c.t.Fatal(err)
	}
	dir, err := sys.OpenAt2(unix.AT_FDCWD, c.path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
	if err != nil {
		c.t.Fatal(err)
	}
	defer dir.Close()
	code = f(dir.Int())
	b, err := os.ReadFile(c.path + "/memory.peak")
	if err == nil {
		peak, err = strconv.Atoi(strings.TrimSpace(string(b)))
	}
	if err != nil || peak == 0 {
		c.t.Fatalf("memory.peak, which kernels have since 5.19: %d, %v", peak, err)
	}
	return code, peak
}

// least returns the smallest limit with which f still returns 0, to the page. memory.peak is coarse, since the kernel charges
// in batches of 64 pages for each CPU, but takes single pages where that does not fit.
func (c *counted) least(f func(dir int) int) int {
	c.t.Helper()
	low, high := 0, 4<<20
	for high-low > os.Getpagesize() {
		limit := (low + high) / 2 &^ (os.Getpagesize() - 1)
		if c.enough(limit, f) {
			high = limit
		} else {
			low = limit
		}
	}
	return high
}

// enough says whether f returns 0 with a limit in one of five tries: a charge may also be refused because of what the kernel has
// just then put aside for another CPU, and one such refusal would send the search far off.
func (c *counted) enough(limit int, f func(dir int) int) bool {
	c.t.Helper()
	for range 5 {
		if code, _ := c.try(limit, f); code == 0 {
			return true
		}
	}
	return false
}

// What a container costs before its own program runs is charged to it. A fork of ours that does nothing but execute may cost
// 64 KiB more than that of the smallest program that can do it.
func TestMemoryFloor(t *testing.T) {
	c := newCounted(t)
	dir := t.TempDir()
	target := program(t, filepath.Join(dir, "true"), exitCode0)
	fork := program(t, filepath.Join(dir, "fork"), bareFork)
	bare := func(int) int {
		err := exec.Command(fork, c.path, target).Run()
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			return exit.ExitCode()
		}
		if err != nil {
			t.Fatal(err)
		}
		return 0
	}
	p := newProg()
	p.exec(target)
	encoded, n := p.encode(t), null(t)
	ours := func(cgroup int) int {
		child, err := Start(Attr{Program: encoded, CgroupFD: cgroup, PIDNS: -1, ProcFD: -1, Stdio: [3]int{n, n, n}})
		if errors.Is(err, unix.ENOMEM) {
			return 1
		}
		if err != nil {
			t.Fatal(err)
		}
		defer child.Close()
		ready := child.Ready()
		code := (&run{child, nil}).exit(t)
		if code == 0 && ready != nil {
			t.Fatal(ready)
		}
		return code
	}
	for name, f := range map[string]func(int) int{"bare": bare, "ours": ours} {
		if code, _ := c.try(4<<20, f); code != 0 {
			t.Fatalf("%s: exit code %d", name, code)
		}
	}
	least, most := [2]int{}, [2]int{}
	for i, f := range []func(int) int{bare, ours} {
		least[i] = c.least(f)
		for range 10 {
			_, peak := c.try(4<<20, f)
			if most[i] == 0 || peak < most[i] {
				most[i] = peak
			}
		}
	}
	t.Logf("smallest memory.max: bare %d KiB, ours %d KiB; memory.peak: bare %d KiB, ours %d KiB", least[0]>>10, least[1]>>10, most[0]>>10, most[1]>>10)
	if least[1] > least[0]+64<<10 {
		t.Errorf("ours needs %d bytes, the bare program %d", least[1], least[0])
	}
	if most[1] > most[0]+64<<10 {
		t.Errorf("our peak is %d bytes, the bare program's %d", most[1], most[0])
	}
}
