package main

import (
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// numbers are the quantiles of one contest, in milliseconds.
type numbers struct {
	p50, p10, p95, cpu float64
}

func (c *contest) numbers() numbers {
	quantile := func(q float64, of func(sample) time.Duration) float64 {
		l := make([]time.Duration, len(c.samples))
		for i, s := range c.samples {
			l[i] = of(s)
		}
		slices.Sort(l)
		return float64(l[min(len(l)-1, int(q*float64(len(l))))].Nanoseconds()) / 1e6
	}
	wall := func(s sample) time.Duration { return s.Wall }
	return numbers{
		p50: quantile(0.5, wall), p10: quantile(0.1, wall), p95: quantile(0.95, wall),
		cpu: quantile(0.5, func(s sample) time.Duration { return s.CPU }),
	}
}

// report prints a table of the cases, one of the filters, and what is promised.
func report(list, filters []*contest) {
	all := map[string]numbers{}
	for _, c := range slices.Concat(list, filters) {
		all[c.key()] = c.numbers()
	}
	fmt.Printf("\n%-6s %-24s %9s %9s %9s %9s %9s %9s\n", "", "", "median", "p10", "p95", "cpu", "x bound", "cpu x")
	last := ""
	for _, c := range list {
		n, b := all[c.key()], all[c.Case+" "+whoBound]
		name := c.Case
		if name == last {
			name = ""
		}
		last = c.Case
		fmt.Printf("%-6s %-24s %9.3f %9.3f %9.3f %9.3f %9.2f %9.2f\n", name, c.Who, n.p50, n.p10, n.p95, n.cpu, n.p50/b.p50, n.cpu/b.cpu)
	}
	fmt.Printf("\nmilliseconds; cpu is the median of everybody's who took part\n")
	if len(filters) > 1 {
		fmt.Printf("\n%-31s %9s %9s %9s\n", "load of the default profile", "median", "p10", "p95")
		for _, c := range filters {
			n := all[c.key()]
			fmt.Printf("%-31s %9.3f %9.3f %9.3f\n", c.Who, n.p50, n.p10, n.p95)
		}
	}
	goals(all, list)
}

// goal is one promise: what of whom, at most this many times (or this much more than) what of whom else.
type goal struct {
	what, than  string
	times, plus float64
}

func goals(all map[string]numbers, list []*contest) {
	crun := ""
	for _, c := range list {
		if strings.HasPrefix(c.Who, "crun ") && !strings.Contains(c.Who, "installed") {
			crun = c.Who
		}
	}
	fmt.Println()
	for _, g := range []goal{
		{"E1 " + whoResident, "E1 " + whoBound, 1.3, 0},
		{"E1 " + whoFresh, "E1 " + whoBound, 1.3, 0},
		{"E1 " + whoResident, "E1 " + crun, 0.3, 0},
		{"E1 " + whoFresh, "E1 " + crun, 0.3, 0},
		{"E3 " + whoResident, "E3 " + whoBound, 1.3, 0},
		{"E3 " + whoFresh, "E3 " + whoBound, 1.3, 0},
		{"E4 " + whoResident, "E3 " + whoResident, 1.15, 0},
		{"exec " + whoResident, "exec " + whoBound, 2.5, 0},
		{"E1 vitrine-oci", "E1 " + whoBound, 1, 2.5},
		{"E1 vitrine-oci", "E1 " + crun, 0.6, 0},
		{caseFilter + " " + filterOurs, caseFilter + " " + filterTree, 1, 0},
	} {
		a, b := all[g.what], all[g.than]
		if a.p50 == 0 || b.p50 == 0 {
			fmt.Printf("%-24s    against %-24s not measured\n", g.what, g.than)
			continue
		}
		if g.plus > 0 {
			fmt.Printf("%-24s %+.2f ms %-24s goal %+.2f ms   %s\n", g.what, a.p50-b.p50, g.than, g.plus, verdict(a.p50 <= b.p50+g.plus))
			continue
		}
		fmt.Printf("%-24s %6.2f x %-24s goal %.2f x      %s\n", g.what, a.p50/b.p50, g.than, g.times, verdict(a.p50 <= g.times*b.p50))
	}
}

func verdict(met bool) string {
	if met {
		return "met"
	}
	return "MISSED"
}

func load() string {
	b, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(b), " ")
	return first
}

func machine() string {
	var u unix.Utsname
	_ = unix.Uname(&u)
	return fmt.Sprintf("%s, Linux %s, %d processors, %s", time.Now().UTC().Format("2006-01-02 15:04 UTC"), unix.ByteSliceToString(u.Release[:]), runtime.NumCPU(), runtime.Version())
}
