package main

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strings"
)

// logs reads what containers wrote, through the kubelet, as kubectl would: of one that runs, of one that has ended in the middle of a
// line, and the last line of one with its time.
func (v *visit) logs(ctx context.Context) (string, error) {
	for _, w := range v.pods {
		for _, c := range []struct {
			name, query string
			want        []string
		}{
			{"log", "", []string{"to stdout\n", "to stderr\n"}},
			{"first", "", []string{"unfinished"}},
			{"main", "tailLines=1&timestamps=true", []string{"Z serving\n", "20"}},
		} {
			query, err := url.ParseQuery(c.query)
			if err != nil {
				return "", err
			}
			code, text, err := v.ask(ctx, http.MethodGet, "/containerLogs/walk/"+w.name+"-"+nodeName+"/"+c.name, query, nil)
			if err != nil {
				return "", err
			}
			for _, want := range c.want {
				if code != http.StatusOK || !strings.Contains(text, want) {
					return "", fmt.Errorf("%s/%s: status %d, the log is %q, without %q", w.name, c.name, code, text, want)
				}
			}
		}
	}
	return "running, ended within a line, last line with its time: of three containers in each pod", nil
}

// run is the kubelet's old way to run a command, over ExecSync.
func (v *visit) run(ctx context.Context) (string, error) {
	code, text, err := v.ask(ctx, http.MethodPost, "/run/walk/burstable-"+nodeName+"/main", url.Values{"cmd": {"cat /shared/second"}}, nil)
	if err != nil {
		return "", err
	}
	if want := "burstable-" + nodeName + "\n"; code != http.StatusOK || text != want {
		return "", fmt.Errorf("status %d, output %q, want %q", code, text, want)
	}
	return "the command's output", nil
}

// streams asks for what needs a streaming server. Where there is none yet, the refusal must come at once and say so.
func (v *visit) streams(ctx context.Context) (string, error) {
	upgrade := http.Header{"Connection": {"Upgrade"}, "Upgrade": {"SPDY/3.1"}, "X-Stream-Protocol-Version": {"v4.channel.k8s.io"}}
	forward := upgrade.Clone()
	forward.Set("X-Stream-Protocol-Version", "portforward.k8s.io")
	var saw []string
	for _, r := range []struct {
		name, path string
		query      url.Values
		header     http.Header
	}{
		{"exec", "/exec/walk/guaranteed-" + nodeName + "/main", url.Values{"command": {"true"}, "output": {"1"}}, upgrade},
		{"attach", "/attach/walk/guaranteed-" + nodeName + "/main", url.Values{"output": {"1"}}, upgrade},
		{"port-forward", "/portForward/walk/guaranteed-" + nodeName, nil, forward},
	} {
		code, text, err := v.ask(ctx, http.MethodPost, r.path, r.query, r.header)
		if err != nil {
			return "", fmt.Errorf("%s: %w", r.name, err)
		}
		served := code == http.StatusSwitchingProtocols
		if !served && !strings.Contains(text, "not served by this version of Vitrine") {
			return "", fmt.Errorf("%s: status %d without a reason: %q", r.name, code, text)
		}
		saw = append(saw, fmt.Sprintf("%s %d", r.name, code))
	}
	return strings.Join(saw, ", ") + " (101 is served; else refused with the reason)", nil
}
