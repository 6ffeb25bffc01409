package oci

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// attempt is what came of a container under a limit.
type attempt struct {
	err  error      // it was not started
	end  ExitStatus // it was
	peak int        // highest use of its cgroup in bytes
}

func (a attempt) succeeded() bool { return a.code() == 0 }

// code returns the exit code, -1 for what was not started.
func (a attempt) code() int {
	if a.err != nil {
		return -1
	}
	return a.end.ExitCode()
}

// under tries a container that may use so many bytes.
func (l *limited) under(p *Pod, limit int, argv ...string) (a attempt) {
	l.t.Helper()
	c := l.config(p, "floor", argv...)
	c.Cgroup.Close()
	c.Cgroup = l.scope("floor", "memory.max", strconv.Itoa(limit))
	fair := 0
	c.OOMScoreAdj = &fair
	pr, err := p.Create(l.t.Context(), c)
	if err == nil {
		if err = pr.Start(l.t.Context()); err == nil {
			a.end = exited(l.t, p, "floor")
		}
		eventually(l.t, "it can be removed", func() bool { return pr.Remove(l.t.Context()) == nil })
	}
	a.err = err
	f := l.leaf("pod/floor")
	a.peak = peakOf(l.t, f)
	f.Close()
	l.sweep("floor")
	if err := os.RemoveAll(c.Dir); err != nil {
		l.t.Fatal(err)
	}
	return a
}

// peakOf reads memory.peak, which kernels have since 5.19, and so all that are supported.
func peakOf(t testing.TB, cgroup *sys.FD) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(readAt(cgroup, "memory.peak")))
	if err != nil || n == 0 {
		t.Errorf("memory.peak: %d, %v", n, err)
	}
	return n
}

// A limit of 2 MiB starts a static program of 2 MiB. What a container costs besides, with its namespaces, mounts and
// the kernel's part of its process, is small; the figure is printed.
func TestMemoryFloor(t *testing.T) {
	l := newLimited(t)
	p := l.pod(nil)
	for range 3 {
		a := l.under(p, 2<<20, "/bin/true")
		if !a.succeeded() {
			t.Errorf("under 2 MiB: %+v", a)
		}
		t.Logf("peak %d KiB", a.peak>>10)
	}
	low, high := 0, 2<<20
	for high-low > 4<<10 {
		limit := (low + high) / 2 &^ 4095
		if l.under(p, limit, "/bin/true").succeeded() {
			high = limit
		} else {
			low = limit
		}
	}
	t.Logf("smallest memory.max: %d KiB", high>>10)
	if high > 512<<10 {
		t.Errorf("a container needs %d bytes", high)
	}
	l.tooLittle(p, high/4)
}

// tooLittle wants to hear why a container does not start that has too little memory for that, which is so at
// limit or further down. How far down differs: the kernel charges 64 pages in one go and leaves the rest of them to
// the processor that it was on, so of two containers the one under 384 KiB may be killed, for what another processor
// holds, and the one under 96 KiB succeed, since there is no room for 64 pages at all. And between those that
// succeed and those that are not started are some that are executed and die in their first instructions, or in the
// kernel's last ones of execve.
func (l *limited) tooLittle(p *Pod, limit int) {
	l.t.Helper()
	for ; limit >= 4<<10; limit /= 2 {
		a := l.under(p, limit, "/bin/true")
		l.t.Logf("with %d KiB: %v; %+v", limit>>10, a.err, a.end)
		if a.err == nil {
			continue
		}
		if !strings.Contains(a.err.Error(), "memory limit is too small") && !errors.Is(a.err, unix.ENOMEM) {
			l.t.Errorf("with %d KiB: %v", limit>>10, a.err)
		}
		return
	}
	l.t.Error("no limit is too small to start a container")
}
