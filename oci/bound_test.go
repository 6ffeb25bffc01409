package oci

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/wire"
)

// boundPath is the C program that makes the same system calls as a container of ours and nothing else; `make bound`.
const boundPath = "../bin/dev/bound"

// bound runs a container's program by the C program, under a limit, and returns what floor does.
func (l *limited) bound(p *Pod, path string, limit int, argv ...string) (code, peak int) {
	l.t.Helper()
	c := l.config(p, "bound", argv...)
	c.Cgroup.Close()
	c.Cgroup = l.scope("bound", "memory.max", strconv.Itoa(limit))
	defer func() {
		c.Close()
		l.sweep("bound")
		if err := os.RemoveAll(c.Dir); err != nil {
			l.t.Fatal(err)
		}
	}()
	encoded, table, _, err := compile(&c, false, wire.Highest)
	if err != nil {
		l.t.Fatal(err)
	}
	code, err = runBound(path, filepath.Join(c.Dir, "program"), encoded.code, c.Cgroup.Int(), table)
	if err != nil {
		l.t.Fatal(err)
	}
	return code, peakOf(l.t, c.Cgroup)
}

// runBound gives the program its descriptors, with the start already told.
func runBound(path, file string, encoded []byte, cgroup int, table []int) (code int, err error) {
	if err := os.WriteFile(file, encoded, 0o600); err != nil {
		return 0, err
	}
	cmd := exec.Command(path, file, "/proc/self/fd/"+strconv.Itoa(5+len(table)))
	var pipes [4]*os.File // report's ends, start's ends
	for i := 0; i < 4; i += 2 {
		if pipes[i], pipes[i+1], err = os.Pipe(); err != nil {
			return 0, err
		}
		defer pipes[i].Close()
		defer pipes[i+1].Close()
	}
	if _, err := pipes[3].Write([]byte{1}); err != nil {
		return 0, err
	}
	cmd.ExtraFiles = []*os.File{pipes[1], pipes[2]}
	for _, fd := range append(table, cgroup) {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return 0, err
		}
		f := os.NewFile(uintptr(n), "table")
		defer f.Close()
		cmd.ExtraFiles = append(cmd.ExtraFiles, f)
	}
	cmd.Stderr = os.Stderr
	err = cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// findBound returns the absolute path of the C program.
func findBound(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs(boundPath)
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil && os.Getenv("VITRINE_VM") != "" {
		t.Fatal("a guest without the C program: ", err)
	}
	if err != nil {
		t.Skipf("needs the C program, see `make bound`: %v", err)
	}
	return path
}

// The C program makes a container of a program as the executor does, so that it may be measured against.
func TestBound(t *testing.T) {
	n := newNode(t)
	path := findBound(t)
	c := n.config(n.pod(nil), "bound", "sh", "-c", "test -c /dev/null && test -d /proc/1 && echo $$ > /tmp/pid && read p < /tmp/pid && exit $((p + 6))")
	defer c.Close()
	encoded, table, _, err := compile(&c, false, wire.Highest)
	if err != nil {
		t.Fatal(err)
	}
	if code, err := runBound(path, filepath.Join(c.Dir, "program"), encoded.code, c.Cgroup.Int(), table); code != 7 || err != nil {
		t.Errorf("exit code %d, %v; want 7, from the first process of a pid namespace", code, err)
	}
}

// What a container of ours holds in memory is at most what a bare C program with the same system calls does, and 64 KiB:
// by the smallest limit that it starts under, to the page, and by memory.peak, which is coarser.
func TestMemoryBound(t *testing.T) {
	l := newLimited(t)
	path := findBound(t)
	p := l.pod(nil)
	tries := [2]func(int) (int, int){
		func(limit int) (int, int) { return l.bound(p, path, limit, "/bin/true") },
		func(limit int) (int, int) {
			a := l.under(p, limit, "/bin/true")
			return a.code(), a.peak
		},
	}
	var least, peak [2]int
	for i, try := range tries {
		for range 8 {
			code, now := try(4 << 20)
			if code != 0 {
				t.Fatalf("%s under 4 MiB: exit code %d", [2]string{"bound", "ours"}[i], code)
			}
			if peak[i] == 0 || now < peak[i] {
				peak[i] = now
			}
		}
		least[i] = leastOf(try)
	}
	t.Logf("smallest memory.max: bound %d KiB, ours %d KiB; memory.peak: bound %d KiB, ours %d KiB", least[0]>>10, least[1]>>10, peak[0]>>10, peak[1]>>10)
	if least[1] > least[0]+64<<10 {
		t.Errorf("ours needs %d bytes, the bound %d", least[1], least[0])
	}
	if peak[1] > peak[0]+64<<10 {
		t.Errorf("our peak is %d bytes, the bound's %d", peak[1], peak[0])
	}
}

// leastOf returns the smallest limit under which a try succeeds, to the page. What the processors hold of a charge varies, so a
// limit is too small only if it was so four times.
func leastOf(try func(limit int) (code, peak int)) int {
	low, high := 0, 4<<20
	for high-low > 4<<10 {
		limit := (low + high) / 2 &^ 4095
		enough := false
		for i := 0; i < 4 && !enough; i++ {
			code, _ := try(limit)
			enough = code == 0
		}
		if enough {
			high = limit
		} else {
			low = limit
		}
	}
	return high
}
