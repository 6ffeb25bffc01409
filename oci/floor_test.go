package oci

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// floor tries a container under a limit and returns its exit code and the highest use of its cgroup in bytes; 0 where the
// kernel keeps no peak.
func (l *limited) floor(p *Pod, limit int, argv ...string) (code, peak int) {
	l.t.Helper()
	c := l.config(p, "floor", argv...)
	c.Cgroup.Close()
	c.Cgroup = l.scope("floor", "memory.max", strconv.Itoa(limit))
	fair := 0
	c.OOMScoreAdj = &fair
	pr, err := p.Create(l.t.Context(), c)
	if err == nil {
		if err = pr.Start(l.t.Context()); err == nil {
			code = exited(l.t, p, "floor").ExitCode()
		}
		eventually(l.t, "it can be removed", func() bool { return pr.Remove(l.t.Context()) == nil })
	}
	if err != nil {
		code = -1
	}
	f := l.leaf("pod/floor")
	peak, _ = strconv.Atoi(strings.TrimSpace(readAt(f, "memory.peak")))
	f.Close()
	l.sweep("floor")
	if err := os.RemoveAll(c.Dir); err != nil {
		l.t.Fatal(err)
	}
	return code, peak
}

// A limit of 2 MiB starts a static program of 2 MiB. What a container costs besides, with its namespaces, mounts and
// the kernel's part of its process, is small; the figure is printed.
func TestMemoryFloor(t *testing.T) {
	l := newLimited(t)
	p := l.pod(nil)
	for range 3 {
		code, peak := l.floor(p, 2<<20, "/bin/true")
		if code != 0 {
			t.Errorf("exit code %d under 2 MiB", code)
		}
		t.Logf("peak %d KiB", peak>>10)
	}
	low, high := 0, 2<<20
	for high-low > 4<<10 {
		limit := (low + high) / 2 &^ 4095
		if code, _ := l.floor(p, limit, "/bin/true"); code == 0 {
			high = limit
		} else {
			low = limit
		}
	}
	l.tooLittle(p, high/4) // with half of it the program may still be executed, and be killed then
	t.Logf("smallest memory.max: %d KiB", high>>10)
	if high > 512<<10 {
		t.Errorf("a container needs %d bytes", high)
	}
}

// tooLittle wants to hear why a container does not start that has too little memory for that.
func (l *limited) tooLittle(p *Pod, limit int) {
	l.t.Helper()
	c := l.config(p, "little", "/bin/true")
	c.Cgroup.Close()
	c.Cgroup = l.scope("little", "memory.max", strconv.Itoa(limit))
	fair := 0
	c.OOMScoreAdj = &fair
	pr, err := p.Create(l.t.Context(), c)
	if err == nil {
		err = pr.Start(l.t.Context())
	}
	if err == nil || !strings.Contains(err.Error(), "memory limit is too small") && !errors.Is(err, unix.ENOMEM) {
		l.t.Errorf("with %d KiB: %v", limit>>10, err)
	}
	l.t.Logf("with %d KiB: %v", limit>>10, err)
	l.sweep("little")
}
