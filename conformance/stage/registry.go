package stage

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"

	"github.com/google/go-containerregistry/pkg/registry"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Host is the name under which images are pulled; registries.conf leads it to the loopback registry, as an operator
// would lead a public name to a mirror.
const Host = "registry.vitrine.test"

// Registry is an in-memory image registry on loopback.
type Registry struct {
	addr   string
	server *http.Server
	done   chan struct{}
}

// StartRegistry serves an empty registry until Close.
func StartRegistry() (*Registry, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	quiet := log.New(io.Discard, "", 0)
	r := &Registry{addr: l.Addr().String(), done: make(chan struct{})}
	r.server = &http.Server{Handler: registry.New(registry.Logger(quiet)), ErrorLog: quiet}
	// A client's idle connections would look like descriptors that it forgot.
	r.server.SetKeepAlivesEnabled(false)
	go func() { // ends with Close
		defer close(r.done)
		_ = r.server.Serve(l)
	}()
	return r, nil
}

// Addr returns host:port of the registry.
func (r *Registry) Addr() string { return r.addr }

// Close stops serving.
func (r *Registry) Close() error {
	err := r.server.Close()
	<-r.done
	return err
}

// Push uploads an image under repository and tag, by the calls that any registry client makes, and returns the
// reference to pull it by.
func (r *Registry) Push(ctx context.Context, repository, tag string, img *Image) (string, error) {
	base := "http://" + r.addr + "/v2/" + repository
	for d, blob := range img.Blobs {
		if err := send(ctx, http.MethodPost, base+"/blobs/uploads/?digest="+d, "application/octet-stream", blob); err != nil {
			return "", fmt.Errorf("push blob: %w", err)
		}
	}
	if err := send(ctx, http.MethodPut, base+"/manifests/"+tag, ocispec.MediaTypeImageManifest, img.Manifest); err != nil {
		return "", fmt.Errorf("push manifest: %w", err)
	}
	return Host + "/" + repository + ":" + tag, nil
}

// send makes one request and wants 201 for it.
func send(ctx context.Context, method, url, contentType string, body []byte) error {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", contentType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusCreated {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		return fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, text)
	}
	return nil
}

// WriteImageConfig writes into dir the registries.conf that leads Host to addr, and a policy.json that wants no signatures.
func WriteImageConfig(dir, addr string) (registries, policy string, err error) {
	registries, policy = filepath.Join(dir, "registries.conf"), filepath.Join(dir, "policy.json")
	text := fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", Host, addr)
	if err := os.WriteFile(registries, []byte(text), 0o644); err != nil {
		return "", "", err
	}
	return registries, policy, os.WriteFile(policy, []byte(`{"default":[{"type":"insecureAcceptAnything"}]}`+"\n"), 0o644)
}

// ServeHost answers every HTTP request on the host's side of the pod network with a text, and returns the URL under
// which pods find it. The gateway address exists from the first pod on.
func ServeHost(text string) (url string, stop func() error, err error) {
	l, err := net.Listen("tcp", Gateway+":0")
	if err != nil {
		return "", nil, err
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, text) })}
	done := make(chan struct{})
	go func() { // ends with stop
		defer close(done)
		_ = server.Serve(l)
	}()
	return "http://" + l.Addr().String() + "/", func() error {
		err := server.Close()
		<-done
		return err
	}, nil
}
