package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
	"github.com/vitrine-runtime/vitrine/internal/step"
	"github.com/vitrine-runtime/vitrine/oci/program"
)

// look shows what a person wants to see of a running pod.
func (v *visit) look(ctx context.Context, web, side string) error {
	v.screen.title("What can be seen")
	if err := v.lookAtNetwork(ctx, web); err != nil {
		return err
	}
	if err := v.lookAtLogs(); err != nil {
		return err
	}
	const script = `id; hostname; cat /etc/vitrine-image; ps | head -n 4`
	out, errOut, err := v.cri.ExecSync(ctx, side, []string{"/bin/sh", "-c", script}, 10*time.Second)
	if err != nil {
		return fmt.Errorf("exec in side: %w: %s", err, errOut)
	}
	v.screen.show("exec in side: "+script, lines(out)...)
	if err := v.lookAtProcess(web); err != nil {
		return err
	}
	return v.lookAtProgram(web)
}

// lookAtNetwork has the host ask the pod, and the pod the host.
func (v *visit) lookAtNetwork(ctx context.Context, web string) error {
	v.advice = "The network is the bridge " + stage.Bridge + " in the private network namespace; see that the kernel has bridge and veth."
	v.screen.doing("network")
	url := "http://" + v.ip + ":8080/"
	body, err := fetch(ctx, url)
	if err != nil {
		return fmt.Errorf("host to pod: %w", err)
	}
	host, stop, err := stage.ServeHost("hello from the host")
	if err != nil {
		return fmt.Errorf("serve on the gateway: %w", err)
	}
	out, errOut, err := v.cri.ExecSync(ctx, web, []string{"wget", "-q", "-O", "-", host}, 10*time.Second)
	if err = errors.Join(err, stop()); err != nil {
		return fmt.Errorf("pod to host: %w: %s", err, errOut)
	}
	v.advice = ""
	v.screen.show("network",
		fmt.Sprintf("host to pod   GET %s says: %s", url, bytes.TrimSpace(body)), fmt.Sprintf("pod to host   GET %s says: %s", host, bytes.TrimSpace(out)))
	return nil
}

// fetch gets a URL; the server may need a moment to listen.
func fetch(ctx context.Context, url string) (body []byte, err error) {
	client := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for range 25 {
		var req *http.Request
		if req, err = http.NewRequestWithContext(ctx, http.MethodGet, url, nil); err != nil {
			return nil, err
		}
		var resp *http.Response
		if resp, err = client.Do(req); err == nil {
			body, err = io.ReadAll(io.LimitReader(resp.Body, 4096))
			resp.Body.Close()
			return body, err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return nil, err
}

// lookAtLogs prints both logs as they are on disk. The side container says something once web has answered it.
func (v *visit) lookAtLogs() error {
	for _, name := range []string{"web", "side"} {
		path := filepath.Join(v.pod.LogDirectory, name+".log")
		want := map[string]string{"web": "serves port", "side": "hello from web"}[name]
		var text []byte
		for deadline := time.Now().Add(10 * time.Second); !bytes.Contains(text, []byte(want)); time.Sleep(50 * time.Millisecond) {
			var err error
			if text, err = os.ReadFile(path); err != nil {
				return err
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%s does not say %q:\n%s", path, want, text)
			}
		}
		v.screen.show("log of "+name+": "+path, lines(text)...)
	}
	return nil
}

// lookAtProcess prints the namespaces and the cgroup of a container's process beside the host's, and what the kernel
// says about its rights.
func (v *visit) lookAtProcess(id string) error {
	pid, cgroup, err := findProcess(v.pod.Linux.CgroupParent, id)
	if err != nil {
		return err
	}
	var rows []string
	for _, ns := range []string{"mnt", "pid", "net", "ipc", "uts", "cgroup", "user"} {
		theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, ns))
		if err != nil {
			return err
		}
		ours, err := os.Readlink("/proc/self/ns/" + ns)
		if err != nil {
			return err
		}
		word := "its own"
		if theirs == ours {
			word = "the host's"
		}
		rows = append(rows, fmt.Sprintf("%-7s %-20s %s", ns, theirs, word))
	}
	rows = append(rows, "cgroup  "+cgroup)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return err
	}
	for _, l := range lines(status) {
		if key, value, _ := strings.Cut(l, ":"); key == "CapEff" || key == "CapBnd" || key == "NoNewPrivs" || key == "Seccomp" {
			rows = append(rows, fmt.Sprintf("%-10s %s", key, strings.TrimSpace(value)))
		}
	}
	v.screen.show(fmt.Sprintf("process of web, pid %d in these surroundings", pid), rows...)
	return nil
}

// findProcess finds a container's first process by its cgroup below parent, in whose path its id stands.
func findProcess(parent, id string) (pid int, cgroup string, err error) {
	const root = "/sys/fs/cgroup"
	err = filepath.WalkDir(root+parent, func(path string, d os.DirEntry, err error) error {
		if err != nil || pid != 0 || d.Name() != "cgroup.procs" || !strings.Contains(path, id) {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if f := strings.Fields(string(text)); len(f) > 0 {
			cgroup = strings.TrimPrefix(filepath.Dir(path), root)
			pid, err = strconv.Atoi(f[0])
		}
		return err
	})
	if err == nil && pid == 0 {
		err = fmt.Errorf("no process of container %s in cgroup %s", short(id), parent)
	}
	return pid, cgroup, err
}

// lookAtProgram prints the first and last steps of the program that built a container.
func (v *visit) lookAtProgram(id string) error {
	const some = 6
	text, err := os.ReadFile(filepath.Join(v.RunDir, "pods", v.podID, id, "program"))
	if err != nil {
		return err
	}
	p, err := step.Decode(text)
	if err != nil {
		return fmt.Errorf("decode program: %w", err)
	}
	var first, last bytes.Buffer
	n := len(p.Steps)
	if err := program.ExplainSteps(&first, p, 0, min(some, n)); err != nil {
		return err
	}
	if err := program.ExplainSteps(&last, p, max(0, n-some), n); err != nil {
		return err
	}
	rows := append(lines(first.Bytes()), fmt.Sprintf("… %d more …", max(0, n-2*some)))
	v.screen.show(fmt.Sprintf("program of web: the %d system calls that built it", n), append(rows, lines(last.Bytes())...)...)
	return nil
}

// lines splits a text and drops the end of its last line.
func lines(text []byte) []string {
	return strings.Split(strings.TrimRight(string(text), "\n"), "\n")
}
