package stream

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"
)

// certificate is a certificate on disk, which somebody renews. One that cannot be read keeps the last
// that could.
type certificate struct {
	certFile, keyFile string

	mu     sync.Mutex
	loaded *tls.Certificate
	times  [2]time.Time // of the files, as they were loaded
}

func tlsConfig(certFile, keyFile string) (*tls.Config, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	if err := c.load(); err != nil {
		return nil, err
	}
	// Without h2: connections are upgraded to something else.
	return &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: []string{"http/1.1"}, GetCertificate: c.get}, nil
}

// load reads the files if they have changed. Preconditions: c.mu is held, or nobody else knows c.
func (c *certificate) load() error {
	var times [2]time.Time
	for i, f := range []string{c.certFile, c.keyFile} {
		st, err := os.Stat(f)
		if err != nil {
			return fmt.Errorf("read certificate: %w", err)
		}
		times[i] = st.ModTime()
	}
	if times == c.times {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("read certificate: %w", err)
	}
	c.loaded, c.times = &pair, times
	return nil
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err := c.load(); err != nil {
		klog.ErrorS(err, "The certificate for streams stays what it was")
	}
	return c.loaded, nil
}
