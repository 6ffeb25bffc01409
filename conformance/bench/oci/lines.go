package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// commandLine is an OCI runtime that is run once for each verb.
type commandLine struct {
	w      *worker
	name   string
	path   string
	global []string // before the verb
	dir    string   // bundles and state
	count  int
	target bool // the container for execs runs
}

// commandLines finds out who is installed and can run a container here.
func (w *worker) commandLines() error {
	w.lines = map[string]*commandLine{}
	for i, c := range []struct {
		name, path string
		global     []string
	}{
		{"vitrine-oci", w.OCI, nil},
		{"crun", w.Crun, []string{"--cgroup-manager=cgroupfs"}},
		{"crun, installed", look("crun"), []string{"--cgroup-manager=cgroupfs"}},
		{"runc, installed", look("runc"), nil},
	} {
		if c.path == "" {
			continue
		}
		l := &commandLine{w: w, name: c.name, path: c.path, dir: filepath.Join(w.dir, "line-"+strconv.Itoa(i))}
		l.global = append([]string{"--root", l.dir + "/state"}, c.global...)
		if err := l.open(); err != nil {
			return err
		}
		if _, err := l.run(caseE1); err != nil {
			fmt.Fprintf(os.Stderr, "bench-oci: %s is left out: %v\n", c.name, err)
			continue
		}
		if v := l.version(); v != "" {
			l.name += " " + v
		}
		w.lines[l.name] = l
		cases := []string{caseE1, caseE3, caseE4}
		if err := l.keep(); err != nil {
			fmt.Fprintf(os.Stderr, "bench-oci: %s is left out of exec: %v\n", c.name, err)
		} else {
			cases = append(cases, caseExec)
		}
		for _, c := range cases {
			w.who[c] = append(w.who[c], l.name)
		}
	}
	return nil
}

func look(name string) string {
	path, err := exec.LookPath(name)
	if err != nil {
		path, _ = exec.LookPath("/usr/sbin/" + name)
	}
	return path
}

// version is a number, or nothing for our own.
func (l *commandLine) version() string {
	out, _ := exec.Command(l.path, "--version").Output()
	first, _, _ := strings.Cut(string(out), "\n")
	f := strings.Fields(first)
	if len(f) == 0 || l.name == "vitrine-oci" {
		return ""
	}
	return f[len(f)-1]
}

// open writes a bundle for each case.
func (l *commandLine) open() error {
	for name, args := range map[string][]string{caseE1: {"true"}, caseE3: {"true"}, "target": {"sleep", "100000"}} {
		s, err := l.w.spec(name, args...)
		if err != nil {
			return err
		}
		s.Linux.CgroupsPath = "/" + l.w.name + "/" + filepath.Base(l.dir)
		if name == "target" {
			s.Linux.CgroupsPath += "-target"
		}
		text, err := json.Marshal(s)
		if err != nil {
			return err
		}
		dir := filepath.Join(l.dir, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, "config.json"), text, 0o644); err != nil {
			return err
		}
	}
	return os.Mkdir(l.dir+"/state", 0o700)
}

// command runs a verb and measures it; its CPU time is that of all that it waited for.
func (l *commandLine) command(args ...string) (sample, error) {
	cmd := exec.Command(l.path, append(l.global[:len(l.global):len(l.global)], args...)...)
	// A file and no pipe: a container keeps it open.
	said, err := os.Create(l.dir + "/said")
	if err != nil {
		return sample{}, err
	}
	defer said.Close()
	cmd.Stderr = said
	begin := time.Now()
	err = cmd.Run()
	s := sample{Wall: time.Since(begin)}
	if err != nil {
		text, _ := os.ReadFile(said.Name())
		return s, fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, strings.TrimSpace(string(text)))
	}
	s.CPU = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	return s, nil
}

func (l *commandLine) run(name string) (sample, error) {
	if name == caseE4 {
		name = caseE3
	}
	l.count++
	return l.command("run", "--bundle", filepath.Join(l.dir, name), "run"+strconv.Itoa(l.count))
}

// keep starts the container for execs.
func (l *commandLine) keep() error {
	_, err := l.command("run", "--detach", "--bundle", filepath.Join(l.dir, "target"), "target")
	l.target = err == nil
	if err == nil {
		_, err = l.exec()
	}
	return err
}

func (l *commandLine) exec() (sample, error) { return l.command("exec", "target", "true") }

func (l *commandLine) close() {
	if l.target {
		_, err := l.command("delete", "--force", "target")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			fmt.Fprintln(os.Stderr, "bench-oci:", err)
		}
	}
}
