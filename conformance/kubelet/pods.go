package main

import (
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
)

// image is what all containers run; the loopback registry has it.
const image = "walk/busybox"

// amounts are a container's resources as a manifest has them; zero is none. CPU is in thousandths, memory in MiB.
type amounts struct{ cpuRequest, cpuLimit, memRequest, memLimit int64 }

// wanted is a pod as it is asked for.
type wanted struct {
	name  string
	class string // QoS
	each  map[string]amounts
}

// podsWanted has one pod of each QoS class. In each: an init container, a sidecar and two ordinary ones, of which "main" has all
// three kinds of probes and "log" only writes.
func podsWanted() []*wanted {
	all := func(a amounts) map[string]amounts {
		return map[string]amounts{"first": a, "sidecar": a, "main": a, "log": a}
	}
	burst := all(amounts{cpuRequest: 20, memRequest: 16})
	burst["main"] = amounts{cpuRequest: 50, cpuLimit: 250, memRequest: 32, memLimit: 96}
	burst["log"] = amounts{}
	return []*wanted{
		{"guaranteed", "Guaranteed", all(amounts{150, 150, 48, 48})},
		{"burstable", "Burstable", burst},
		{"besteffort", "BestEffort", all(amounts{})},
	}
}

// resources is the line of a manifest.
func (a amounts) resources() string {
	line := func(cpu, mem int64) string {
		var has []string
		if cpu > 0 {
			has = append(has, fmt.Sprintf("cpu: %dm", cpu))
		}
		if mem > 0 {
			has = append(has, fmt.Sprintf("memory: %dMi", mem))
		}
		return "{" + strings.Join(has, ", ") + "}"
	}
	return fmt.Sprintf("{requests: %s, limits: %s}", line(a.cpuRequest, a.memRequest), line(a.cpuLimit, a.memLimit))
}

// manifest is a pod whose containers need each other: the first one's file is what main serves and what its probes look for, and the
// sidecar is started before main and ends after it. The waiting shells end at SIGTERM at once, so that no grace period is waited for.
const manifest = `apiVersion: v1
kind: Pod
metadata: {name: %[1]s, namespace: walk, labels: {trial: walk}}
spec:
  automountServiceAccountToken: false
  enableServiceLinks: false
  terminationGracePeriodSeconds: 5
  volumes: [{name: shared, emptyDir: {}}]
  initContainers:
  - name: first
    image: %[2]s
    command: [sh, -c, "echo $POD > /shared/first; printf unfinished"]
    env: [{name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    volumeMounts: [{name: shared, mountPath: /shared}]
    resources: %[3]s
  - name: sidecar
    image: %[2]s
    restartPolicy: Always
    command: [sh, -c, "trap 'exit 0' TERM; cp /shared/first /shared/second; sleep 100000 & wait"]
    startupProbe: {exec: {command: [test, -s, /shared/second]}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 60}
    volumeMounts: [{name: shared, mountPath: /shared}]
    resources: %[4]s
  containers:
  - name: main
    image: %[2]s
    command: [sh, -c, "trap 'exit 0' TERM; touch /shared/alive; httpd -p 8080 -h /shared; echo serving; sleep 100000 & wait"]
    startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, timeoutSeconds: 20, failureThreshold: 60}
    readinessProbe: {httpGet: {port: 8080, path: /second}, periodSeconds: 3, timeoutSeconds: 20}
    livenessProbe: {exec: {command: [test, -e, /shared/alive]}, periodSeconds: 3, timeoutSeconds: 20, failureThreshold: 2}
    volumeMounts: [{name: shared, mountPath: /shared}]
    resources: %[5]s
  - name: log
    image: %[2]s
    stdin: true
    command: [sh, -c, "trap 'exit 0' TERM; echo to stdout; echo to stderr >&2; while read x; do echo heard $x; done; sleep 100000 & wait"]
    resources: %[6]s
`

// place writes the manifest where the kubelet looks, in one step.
func (w *wanted) place(ref string) error {
	text := fmt.Sprintf(manifest, w.name, ref, w.each["first"].resources(), w.each["sidecar"].resources(),
		w.each["main"].resources(), w.each["log"].resources())
	tmp := filepath.Join(config, w.name+".yaml")
	if err := os.WriteFile(tmp, []byte(text), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, w.manifest())
}

func (w *wanted) manifest() string { return filepath.Join(static, w.name+".yaml") }

// expect returns the files of a container's cgroup as they must read, and its oom_score_adj. The formulas are those of the kubelet (1.37, with
// MemoryQoS and TieredReservation) and, for the weight, of all runtimes since 2025; capacity is the node's memory in bytes.
func (w *wanted) expect(container string, capacity int64) map[string]string {
	a := w.each[container]
	request, limit := a.memRequest<<20, a.memLimit<<20
	e := map[string]string{
		"cpu.weight": fmt.Sprint(weight(a.cpuRequest)), "cpu.max": "max 100000",
		"memory.max": "max", "memory.min": "0", "memory.low": "0", "memory.high": "max", "memory.swap.max": "0", "memory.oom.group": "1",
	}
	if a.cpuLimit > 0 {
		e["cpu.max"] = fmt.Sprintf("%d 100000", a.cpuLimit*100)
	}
	if limit > 0 {
		e["memory.max"] = fmt.Sprint(limit)
	}
	if w.class == "Guaranteed" {
		e["memory.min"] = fmt.Sprint(request)
	} else {
		e["memory.low"] = fmt.Sprint(request)
	}
	if request != limit || request == 0 {
		top := limit
		if top == 0 {
			top = capacity
		}
		e["memory.high"] = fmt.Sprint(int64((float64(request)+(float64(top)-float64(request))*0.9)/4096) * 4096)
	}
	e["oom_score_adj"] = fmt.Sprint(w.oomScore(container, capacity))
	return e
}

// weight maps a CPU request to cpu.weight: shares first, and then the curve through 2 -> 1, 1024 -> 100 and 262144 -> 10000.
func weight(milli int64) int64 {
	shares := max(2, milli*1024/1000)
	if shares <= 2 {
		return 1
	}
	l := math.Log2(float64(shares))
	return int64(math.Ceil(math.Pow(10, (l*l+125*l)/612-7.0/34)))
}

// oomScore is the kubelet's: the more a container asked for, the later it is killed. A sidecar goes no sooner than the least of those it serves.
func (w *wanted) oomScore(container string, capacity int64) int64 {
	switch w.class {
	case "Guaranteed":
		return -997
	case "BestEffort":
		return 1000
	}
	score := 1000 - 1000*(w.each[container].memRequest<<20)/capacity
	if container == "sidecar" {
		score = min(score, 1000-1000*(min(w.each["main"].memRequest, w.each["log"].memRequest)<<20)/capacity)
	}
	return min(max(score, 3), 999)
}
