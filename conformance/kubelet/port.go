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
