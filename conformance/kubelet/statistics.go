package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"
)

// summary is the part of the kubelet's /stats/summary that we look at.
type summary struct {
	Pods []struct {
		Ref struct {
			Name string `json:"name"`
		} `json:"podRef"`
		CPU        usage `json:"cpu"`
		Memory     usage `json:"memory"`
		Network    usage `json:"network"`
		Processes  usage `json:"process_stats"`
		Containers []struct {
			Name   string `json:"name"`
			CPU    usage  `json:"cpu"`
			Memory usage  `json:"memory"`
			Rootfs usage  `json:"rootfs"`
			Logs   usage  `json:"logs"`
		} `json:"containers"`
	} `json:"pods"`
}

// usage has the amounts of all kinds; those that a kind does not have are absent.
type usage struct {
	CPU        *uint64 `json:"usageCoreNanoSeconds"`
	WorkingSet *uint64 `json:"workingSetBytes"`
	Used       *uint64 `json:"usedBytes"`
	Count      *uint64 `json:"process_count"`
	Received   *uint64 `json:"rxBytes"`
}

// statistics wants of each container what the kubelet decides evictions by: CPU, memory, the writable layer and the logs. The network and the
// processes of a pod come from the runtime only with the gate; without it they are cAdvisor's, which does not know our containers.
func (v *visit) statistics(ctx context.Context) (string, error) {
	var s summary
	err := until(ctx, time.Minute, func() error {
		code, text, err := get(ctx, http.DefaultClient, http.MethodGet, "http://127.0.0.1:10255/stats/summary", nil)
		if err != nil {
			return err
		}
		if code != http.StatusOK {
			return fmt.Errorf("/stats/summary answers %d: %.300s", code, text)
		}
		s = summary{}
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return err
		}
		return s.lacks(v.pods, v.criStats)
	})
	if err != nil {
		return "", err
	}
	var most uint64
	for _, p := range s.Pods {
		for _, c := range p.Containers {
			most = max(most, *c.Memory.WorkingSet)
		}
	}
	return fmt.Sprintf("CPU, memory, layer and logs of 3 containers in each of %d pods, the largest working set %d KiB", len(s.Pods), most>>10), nil
}

// lacks says what is missing, or nil.
func (s *summary) lacks(pods []*wanted, all bool) error {
	seen := map[string]bool{}
	var wrong []error
	for _, p := range s.Pods {
		pod := strings.TrimSuffix(p.Ref.Name, "-"+nodeName)
		if p.CPU.CPU == nil || p.Memory.WorkingSet == nil {
			wrong = append(wrong, fmt.Errorf("%s has no CPU or memory", pod))
		}
		if all && (p.Network.Received == nil || p.Processes.Count == nil || *p.Processes.Count < 3) {
			wrong = append(wrong, fmt.Errorf("%s has no network or processes", pod))
		}
		for _, c := range p.Containers {
			seen[pod+"/"+c.Name] = true
			if c.CPU.CPU == nil || c.Memory.WorkingSet == nil || *c.Memory.WorkingSet == 0 || c.Rootfs.Used == nil || c.Logs.Used == nil {
				wrong = append(wrong, fmt.Errorf("%s/%s lacks CPU, memory, layer or logs", pod, c.Name))
			}
		}
	}
	for _, w := range pods {
		for _, c := range []string{"sidecar", "main", "log"} {
			if !seen[w.name+"/"+c] {
				wrong = append(wrong, fmt.Errorf("%s/%s is not there", w.name, c))
			}
		}
	}
	return errors.Join(wrong...)
}
