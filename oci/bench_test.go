package oci

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

// privateDirty returns what a process keeps in memory for itself, in KiB. The
// memfd that it was executed from is not counted: all monitors share it.
func privateDirty(tb testing.TB, pid int) (kib float64) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		tb.Fatal(err)
	}
	shared := false
	for line := range bytes.Lines(b) {
		f := bytes.Fields(line)
		switch {
		case len(f) >= 5 && bytes.Contains(f[0], []byte("-")):
			shared = bytes.Contains(line, []byte("r-xp")) || bytes.Contains(line, []byte("r--p"))
		case len(f) > 1 && string(f[0]) == "Private_Dirty:" && !shared:
			n, _ := strconv.ParseFloat(string(f[1]), 64)
			kib += n
		}
	}
	return kib
}

// BenchmarkStartPod measures a pod from nothing to an answering monitor, and
// away again.
func BenchmarkStartPod(b *testing.B) {
	n := newNode(b)
	for b.Loop() {
		p, err := n.rt.StartPod(b.Context(), n.podConfig(nil))
		if err != nil {
			b.Fatal(err)
		}
		if err := p.Stop(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkContainer measures a container that does nothing: compile, fork, start wait,
// execve, exit record, event.
func BenchmarkContainer(b *testing.B) {
	n := newNode(b)
	p := n.pod(nil)
	for i := 0; b.Loop(); i++ {
		id := fmt.Sprint("c", i)
		c := n.config(p, id, "true")
		pr, err := p.Create(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		if err := pr.Start(b.Context()); err != nil {
			b.Fatal(err)
		}
		exited(b, p, id)
		if err := pr.Remove(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(privateDirty(b, p.MonitorPid()), "KiB-dirty")
}

// BenchmarkExec measures an exec of true from request to exit.
func BenchmarkExec(b *testing.B) {
	n := newNode(b)
	p := n.pod(nil)
	pr := n.run(p, "c", "sleep", "1000")
	idle := privateDirty(b, p.MonitorPid())
	for b.Loop() {
		e, err := pr.Exec(b.Context(), ExecConfig{Process: n.spec("true").Process})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := e.Wait(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(idle, "KiB-dirty-before")
	b.ReportMetric(privateDirty(b, p.MonitorPid()), "KiB-dirty")
	if err := pr.Signal(b.Context(), unix.SIGKILL); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkList measures a request that does nothing: there and back.
func BenchmarkList(b *testing.B) {
	n := newNode(b)
	p := n.pod(nil)
	for b.Loop() {
		if _, err := p.List(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}
