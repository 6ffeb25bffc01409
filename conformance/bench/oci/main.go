// Command oci measures what the executor costs, beside a C program that makes the same system calls and nothing else
// (the bound, conformance/bench/bound), and beside other OCI runtimes, for the same OCI spec:
//
//	E1    a container in namespaces of its own, with the default seccomp profile, masked paths and a cgroup
//	E3    the same in a pod's network, ipc and uts namespaces
//	E4    E3 where the host has 3,000 mounts
//	exec  a further process in a running container
//
// Each is measured from nothing to nothing: made, started, run to its end (busybox true), waited for and removed. In one
// interleaved run everybody has his turn, and then again, so that whatever else the machine does falls on all; only
// the ratios of one run mean something.
//
//	bench ──┬─ worker: 0 further mounts ─────┬─ pod's monitor   asked through package oci
//	        │    a private mount namespace   ├─ bound serve     told over a pipe
//	        │                                └─ crun, runc, vitrine-oci: command lines
//	        └─ worker: 3,000 further mounts ── the same
//
// CPU is that of everybody who worked for it: of the worker, of what it waited for, and of the cgroup that the
// monitor and its containers are in.
package main

import (
	"encoding/gob"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// The four cases.
const (
	caseE1   = "E1"
	caseE3   = "E3"
	caseE4   = "E4"
	caseExec = "exec"
)

// manyMounts is how many mounts the host has in E4.
const manyMounts = 3000

// workerEnv tells a second self that it is a worker.
const workerEnv = "VITRINE_BENCH_WORKER"

type options struct {
	Rounds int
	OCI    string // our binary, which is the monitor and the command line
	Bound  string // the C program
	Oracle string // oci/seccomp/testdata/oracle.c, built; "" without libseccomp
	Crun   string // a crun of one's own; "" without
	Mounts int    // further mounts of a worker
	Only   string // cases, separated by commas; "" for all
}

func main() {
	var o options
	flag.IntVar(&o.Rounds, "rounds", 120, "how often each is measured")
	flag.StringVar(&o.OCI, "oci", "bin/vitrine-oci", "our binary")
	flag.StringVar(&o.Bound, "bound", "bin/dev/bound", "the C program")
	flag.StringVar(&o.Oracle, "oracle", "", "a program that asks libseccomp for filters (oci/seccomp/testdata/oracle.c)")
	flag.StringVar(&o.Crun, "crun", os.Getenv("CRUN"), "a crun to be measured beside the installed one")
	flag.StringVar(&o.Only, "only", "", "cases, separated by commas")
	who := flag.String("who", "", "only those whose name contains one of these, separated by commas")
	flag.Parse()
	err := error(nil)
	if os.Getenv(workerEnv) != "" {
		err = work(os.Stdin, os.NewFile(3, "answers"))
	} else {
		err = run(o, *who)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-oci:", err)
		os.Exit(1)
	}
}

// remote is a worker.
type remote struct {
	cmd *exec.Cmd
	in  io.WriteCloser
	out *os.File
	enc *gob.Encoder
	dec *gob.Decoder
}

// question is one thing to do, answer what came of it.
type question struct {
	Case, Who string
}

type answer struct {
	Sample sample
	Text   string // of what is no measurement
	Err    string
}

// hello is a worker's first word: who can be measured there.
type hello struct {
	Who map[string][]string // by case
	Err string
}

// startWorker starts a worker in a mount namespace of its own.
func startWorker(o options) (*remote, *hello, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	read, write, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer write.Close()
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), workerEnv+"=1")
	cmd.Stderr = os.Stderr
	cmd.ExtraFiles = []*os.File{write}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, err
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start worker: %w", err)
	}
	r := &remote{cmd: cmd, in: in, out: read, enc: gob.NewEncoder(in), dec: gob.NewDecoder(read)}
	if err := r.enc.Encode(o); err != nil {
		return nil, nil, err
	}
	var h hello
	if err := r.dec.Decode(&h); err != nil {
		return nil, nil, fmt.Errorf("hear worker: %w", err)
	}
	if h.Err != "" {
		return nil, nil, fmt.Errorf("worker: %s", h.Err)
	}
	return r, &h, nil
}

func (r *remote) ask(q question) (answer, error) {
	var a answer
	if err := r.enc.Encode(q); err != nil {
		return a, err
	}
	if err := r.dec.Decode(&a); err != nil {
		return a, fmt.Errorf("%s %s: %w", q.Case, q.Who, err)
	}
	if a.Err != "" {
		return a, fmt.Errorf("%s %s: %s", q.Case, q.Who, a.Err)
	}
	return a, nil
}

// close lets the worker clean up.
func (r *remote) close() error {
	r.in.Close()
	err := r.cmd.Wait()
	r.out.Close()
	return err
}

// contest is one who is measured in one case, and where.
type contest struct {
	question
	at      *remote
	samples []sample
}

func (c *contest) key() string { return c.Case + " " + c.Who }

// run measures everything in turns and prints it.
func run(o options, who string) error {
	plain, can, err := startWorker(o)
	if err != nil {
		return err
	}
	defer func() { _ = plain.close() }() // the figures are printed by then
	list := contests(plain, can, o.Only, who, caseE1, caseE3, caseExec)
	if o.Only == "" || strings.Contains(o.Only, caseE4) {
		o.Mounts = manyMounts
		full, can, err := startWorker(o)
		if err != nil {
			return err
		}
		defer func() { _ = full.close() }()
		list = append(list, contests(full, can, o.Only, who, caseE4)...)
	}
	filters := contests(plain, can, o.Only, who, caseFilter)
	before := load()
	const warmUp = 5
	for round := range o.Rounds + warmUp {
		for i := range list {
			// Everybody comes behind everybody: no one always finds what the same one has left.
			c := list[(i+round)%len(list)]
			a, err := c.at.ask(c.question)
			if err != nil {
				return err
			}
			if round >= warmUp {
				c.samples = append(c.samples, a.Sample)
			}
		}
		for _, c := range filters {
			a, err := c.at.ask(c.question)
			if err != nil {
				return err
			}
			c.samples = append(c.samples, a.Sample)
		}
	}
	fmt.Printf("%s\nload before %s, after %s; %d rounds, interleaved\n", machine(), before, load(), o.Rounds)
	report(list, filters)
	if o.Only != "" {
		return nil
	}
	a, err := plain.ask(question{Who: whoMemory})
	fmt.Print(a.Text)
	return err
}

// contests lists who takes part, in the order of the cases.
func contests(at *remote, can *hello, only, who string, cases ...string) (list []*contest) {
	for _, name := range cases {
		if only != "" && !strings.Contains(","+only+",", ","+name+",") {
			continue
		}
		for _, w := range can.Who[name] {
			if wanted(w, who) {
				list = append(list, &contest{question: question{Case: name, Who: w}, at: at})
			}
		}
	}
	return list
}

func wanted(name, who string) bool {
	if who == "" {
		return true
	}
	for _, w := range strings.Split(who, ",") {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}
