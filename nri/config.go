package nri

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	nrilog "github.com/containerd/nri/pkg/log"

	"github.com/vitrine-runtime/vitrine/internal/unixsocket"
)

// Config says where plugins are and what is expected of them. It is fixed for the life of a Plugins.
type Config struct {
	// Version of the runtime, which plugins are told.
	Version string
	// Socket is where plugins connect. Its directory is made for root alone if it is not there.
	Socket string
	// PluginDir holds plugins that are started with us, NN-name each; "" means none.
	PluginDir string
	// ConfigDir holds what these are given, NN-name.conf or name.conf.
	ConfigDir string
	// RegistrationTimeout is how long a plugin that has connected may take to say its name.
	RegistrationTimeout time.Duration
	// RequestTimeout is how long a plugin may take for an answer.
	RequestTimeout time.Duration
	// Required are plugins without which nothing is made, by name or by NN-name.
	Required []string
	// Log gets what the adaptation has to say; nil drops it.
	Log nrilog.Logger
}

// checkSocket refuses to take a socket away from somebody who listens, which may be another runtime: the adaptation
// removes whatever is at the path.
func checkSocket(path string) error {
	_, err := unixsocket.Stale(path)
	return err
}

// checkDir refuses a directory, or a file in it, that somebody else may write to: what is in it runs as root, or tells
// what does so what to do.
func checkDir(dir string) error {
	if dir == "" {
		return nil
	}
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	paths := []string{dir}
	for _, e := range entries {
		paths = append(paths, filepath.Join(dir, e.Name()))
	}
	for _, p := range paths {
		info, err := os.Stat(p)
		if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
			return fmt.Errorf("%s: others than its owner, who must be us, may write to it", p)
		}
	}
	return nil
}
