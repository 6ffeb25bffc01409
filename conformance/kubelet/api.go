package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// podList is the part of the kubelet's /pods that we look at.
type podList struct {
	Items []pod `json:"items"`
}

type pod struct {
	Metadata struct {
		Name string `json:"name"`
		UID  string `json:"uid"`
	} `json:"metadata"`
	Status struct {
		Phase      string `json:"phase"`
		QOSClass   string `json:"qosClass"`
		PodIP      string `json:"podIP"`
		Conditions []struct {
			Type    string `json:"type"`
			Status  string `json:"status"`
			Message string `json:"message"`
		} `json:"conditions"`
		InitContainers []container `json:"initContainerStatuses"`
		Containers     []container `json:"containerStatuses"`
	} `json:"status"`
}

type container struct {
	Name         string `json:"name"`
	ContainerID  string `json:"containerID"`
	Ready        bool   `json:"ready"`
	RestartCount int    `json:"restartCount"`
	State        struct {
		Waiting *struct {
			Reason  string `json:"reason"`
			Message string `json:"message"`
		} `json:"waiting"`
		Running *struct {
			StartedAt time.Time `json:"startedAt"`
		} `json:"running"`
		Terminated *ended `json:"terminated"`
	} `json:"state"`
	LastState struct {
		Terminated *ended `json:"terminated"`
	} `json:"lastState"`
}

type ended struct {
	ExitCode int    `json:"exitCode"`
	Reason   string `json:"reason"`
}

// id is the runtime's id of the container.
func (c *container) id() string {
	_, id, _ := strings.Cut(c.ContainerID, "://")
	return id
}

// containers are all of a pod, init containers first.
func (p *pod) containers() []container {
	return append(append([]container{}, p.Status.InitContainers...), p.Status.Containers...)
}

// container returns one by name, or an empty one.
func (p *pod) container(name string) container {
	for _, c := range p.containers() {
		if c.Name == name {
			return c
		}
	}
	return container{Name: name}
}

// isReady is nil if the kubelet holds the pod Ready; otherwise it says why it does not.
func (p *pod) isReady() error {
	why := p.Metadata.Name + " is " + p.Status.Phase
	for _, c := range p.Status.Conditions {
		if c.Type == "Ready" && c.Status == "True" {
			return nil
		}
		if c.Status != "True" && c.Message != "" {
			why += "; " + c.Type + ": " + c.Message
		}
	}
	for _, c := range p.containers() {
		if w := c.State.Waiting; w != nil {
			why += "; " + c.Name + ": " + w.Reason + " " + w.Message
		}
	}
	return fmt.Errorf("%s", why)
}

// pods asks the kubelet for its pods, by the names in their manifests.
func (n *node) livePods(ctx context.Context) (map[string]*pod, error) {
	code, text, err := get(ctx, http.DefaultClient, http.MethodGet, "http://127.0.0.1:10255/pods", nil)
	if err != nil {
		return nil, err
	}
	if code != http.StatusOK {
		return nil, fmt.Errorf("/pods answers %d: %.200s", code, text)
	}
	var list podList
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("decode /pods: %w", err)
	}
	found := map[string]*pod{}
	for i := range list.Items {
		p := &list.Items[i]
		found[strings.TrimSuffix(p.Metadata.Name, "-"+nodeName)] = p
	}
	return found, nil
}

// ask makes one request to the kubelet's own port, whose certificate it made itself.
func (n *node) ask(ctx context.Context, method, path string, query url.Values, header http.Header) (int, string, error) {
	text, err := os.ReadFile(filepath.Join(klDir, "pki/kubelet.crt"))
	if err != nil {
		return 0, "", err
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true,
		TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: nodeName, MinVersion: tls.VersionTLS12}}}
	u := url.URL{Scheme: "https", Host: "127.0.0.1:10250", Path: path, RawQuery: query.Encode()}
	return get(ctx, client, method, u.String(), header)
}

// get makes a request that must be answered within half a minute; that it is not is an error, never a wait.
func get(ctx context.Context, client *http.Client, method, url string, header http.Header) (int, string, error) {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, nil)
	if err != nil {
		return 0, "", err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp.StatusCode, "", nil
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, 8<<20))
	return resp.StatusCode, string(text), err
}
