package cni

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containernetworking/cni/libcni"
)

// confs is the node's configuration. It is read again when the directory or a
// file in it has changed, which costs a few stat calls per use and no watcher.
type confs struct {
	dir string

	mu   sync.Mutex
	seen []stamp
	list *libcni.NetworkConfigList
	err  error // why list is nil
}

// stamp identifies a state of one file.
type stamp struct {
	name string
	size int64
	mod  time.Time
}

var extensions = []string{".conf", ".conflist", ".json"}

// current returns the first valid configuration in the order of names. A file
// that is malformed is passed over, and named if there is no other.
func (c *confs) current() (*libcni.NetworkConfigList, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	now, err := c.stamps()
	if err != nil {
		return nil, fmt.Errorf("read network configuration: %w: %w", ErrNotReady, err)
	}
	if c.seen == nil || !slices.Equal(now, c.seen) {
		c.seen = now
		c.list, c.err = c.load(now)
	}
	return c.list, c.err
}

func (c *confs) stamps() ([]stamp, error) {
	entries, err := os.ReadDir(c.dir) // sorted
	if err != nil {
		return nil, err
	}
	stamps := []stamp{}
	for _, e := range entries {
		if !slices.Contains(extensions, filepath.Ext(e.Name())) {
			continue
		}
		fi, err := os.Stat(filepath.Join(c.dir, e.Name())) // add-ons install symlinks
		if err != nil || !fi.Mode().IsRegular() {
			continue
		}
		stamps = append(stamps, stamp{e.Name(), fi.Size(), fi.ModTime()})
	}
	return stamps, nil
}

// maxConf bounds a configuration file; real ones have a few kilobytes.
const maxConf = 1 << 20

func (c *confs) load(files []stamp) (*libcni.NetworkConfigList, error) {
	var bad []error
	for _, f := range files {
		list, err := loadFile(filepath.Join(c.dir, f.name), f.size)
		if err == nil {
			return list, nil
		}
		bad = append(bad, fmt.Errorf("%s: %w", f.name, err))
	}
	if len(bad) == 0 {
		return nil, fmt.Errorf("no network configuration in %s: %w", c.dir, ErrNotReady)
	}
	return nil, fmt.Errorf("no valid network configuration in %s: %w: %w", c.dir, ErrNotReady, errors.Join(bad...))
}

func loadFile(path string, size int64) (*libcni.NetworkConfigList, error) {
	if size > maxConf {
		return nil, fmt.Errorf("%d bytes are too many", size)
	}
	if filepath.Ext(path) != ".conflist" {
		conf, err := libcni.NetworkPluginConfFromBytes(must(os.ReadFile(path)))
		if err != nil {
			return nil, err
		}
		if conf.Network.Type == "" {
			return nil, errors.New("no plugin type")
		}
		return libcni.ConfListFromConf(conf)
	}
	list, err := libcni.NetworkConfFromFile(path)
	if err != nil {
		return nil, err
	}
	if len(list.Plugins) == 0 {
		return nil, errors.New("no plugins")
	}
	return list, nil
}

// must drops the error of a read: an unreadable file is an empty one, which
// the parser refuses with a name.
func must(b []byte, _ error) []byte { return b }
