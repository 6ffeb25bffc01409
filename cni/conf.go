package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/utils"
	"github.com/containernetworking/cni/pkg/version"
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

// stamp identifies a state of one file. The inode and its change time tell what
// the modification time does not: a file put in place of another with an old
// date.
type stamp struct {
	name         string // below the directory
	ino          uint64
	size         int64
	mod, changed syscall.Timespec
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
		if young(now) {
			c.seen = nil
		}
	}
	return c.list, c.err
}

// tick is more than the steps in which kernels before 6.13 date changes: 10 ms at the most.
const tick = 50 * time.Millisecond

// young says whether a file was changed so shortly ago that another change might get the same date and go unnoticed.
func young(files []stamp) bool {
	limit := time.Now().Add(-tick)
	return slices.ContainsFunc(files, func(s stamp) bool { return time.Unix(s.changed.Unix()).After(limit) })
}

// stamps lists the files of the directory in the order of names, and those of
// the directories in it, where a list may have further plugins.
func (c *confs) stamps() ([]stamp, error) {
	entries, err := os.ReadDir(c.dir) // sorted
	if err != nil {
		return nil, err
	}
	stamps := []stamp{}
	for _, e := range entries {
		if slices.Contains(extensions, filepath.Ext(e.Name())) {
			stamps = c.stamp(stamps, e.Name())
		} else if e.IsDir() {
			more, err := os.ReadDir(filepath.Join(c.dir, e.Name()))
			if err != nil {
				continue
			}
			for _, m := range more {
				stamps = c.stamp(stamps, e.Name()+"/"+m.Name())
			}
		}
	}
	return stamps, nil
}

func (c *confs) stamp(to []stamp, name string) []stamp {
	fi, err := os.Stat(filepath.Join(c.dir, name)) // add-ons install symlinks
	if err != nil || !fi.Mode().IsRegular() {
		return to
	}
	st := fi.Sys().(*syscall.Stat_t)
	return append(to, stamp{name, st.Ino, st.Size, st.Mtim, st.Ctim})
}

func (c *confs) load(files []stamp) (*libcni.NetworkConfigList, error) {
	var bad []error
	for _, f := range files {
		if strings.Contains(f.name, "/") {
			continue // part of a list
		}
		list, err := loadFile(c.dir, f.name)
		if err == nil {
			return list, nil
		}
		bad = append(bad, fmt.Errorf("%s: %w", f.name, err))
	}
	if len(bad) == 0 {
		return nil, fmt.Errorf("no network configuration in %s: %w", c.dir, ErrNotReady)
	}
	return nil, brief(fmt.Errorf("no valid network configuration in %s: %w: %w", c.dir, ErrNotReady, errors.Join(bad...)))
}

// loadFile reads a list, or a single plugin as a list of one. What it returns
// is whole: its bytes, which go into intents, make the same list again.
func loadFile(dir, name string) (*libcni.NetworkConfigList, error) {
	raw, err := readConf(filepath.Join(dir, name))
	if err != nil {
		return nil, err
	}
	if filepath.Ext(name) != ".conflist" {
		return loadSingle(raw)
	}
	list, err := libcni.NetworkConfFromBytes(raw)
	if err != nil {
		return nil, err
	}
	if list, err = inline(list, dir); err != nil {
		return nil, err
	}
	return list, checkList(list)
}

// loadSingle makes a list of one plugin's configuration, which has the name and
// the version of the list in it.
func loadSingle(raw []byte) (*libcni.NetworkConfigList, error) {
	conf, err := libcni.NetworkPluginConfFromBytes(raw)
	if err != nil {
		return nil, err
	}
	whole, err := json.Marshal(map[string]any{
		"name": conf.Network.Name, "cniVersion": conf.Network.CNIVersion, "plugins": []json.RawMessage{raw},
	})
	if err != nil {
		return nil, err
	}
	list, err := libcni.NetworkConfFromBytes(whole)
	if err != nil {
		return nil, err
	}
	return list, checkList(list)
}

// maxConf bounds a configuration; real ones have a few kilobytes.
const maxConf = 1 << 20

func readConf(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0) // it was a file a moment ago
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, maxConf+1))
	if err == nil && len(raw) > maxConf {
		err = fmt.Errorf("more than %d bytes", maxConf)
	}
	return raw, err
}

// inline writes the plugins of the directory <dir>/<name of the list>/ into the
// list itself, behind its own. They would be missing at DEL otherwise: the
// directory may be another one by then.
func inline(list *libcni.NetworkConfigList, dir string) (*libcni.NetworkConfigList, error) {
	if err := checkName(list.Name); err != nil || list.LoadOnlyInlinedPlugins {
		return list, err
	}
	files, err := libcni.ConfFiles(filepath.Join(dir, list.Name), []string{".conf"}) // sorted
	if err != nil || len(files) == 0 {
		return list, err
	}
	whole := map[string]json.RawMessage{}
	if err := json.Unmarshal(list.Bytes, &whole); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	if own := whole["plugins"]; own != nil {
		if err := json.Unmarshal(own, &plugins); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		raw, err := readConf(f)
		if err != nil {
			return nil, err
		}
		plugins = append(plugins, raw)
	}
	if whole["plugins"], err = json.Marshal(plugins); err != nil {
		return nil, err
	}
	whole["loadOnlyInlinedPlugins"] = json.RawMessage("true")
	raw, err := json.Marshal(whole)
	if err != nil {
		return nil, err
	}
	return libcni.NetworkConfFromBytes(raw)
}

// checkList refuses what no pod could be connected by, or not disconnected: a
// node with such a list is not ready, instead of ready and failing.
func checkList(list *libcni.NetworkConfigList) error {
	if err := checkName(list.Name); err != nil {
		return err
	}
	if _, _, _, err := version.ParseVersion(list.CNIVersion); err != nil {
		return fmt.Errorf("cniVersion: %w", err)
	}
	if len(list.Plugins) == 0 {
		return errors.New("no plugins")
	}
	if len(list.Bytes) > maxConf {
		return fmt.Errorf("more than %d bytes", maxConf)
	}
	for _, p := range list.Plugins {
		// A type with a slash would run any program of the host (CVE-2021-20206).
		if t := p.Network.Type; t == "" || len(t) > 255 || t == "." || t == ".." || strings.ContainsAny(t, "/\x00") {
			return fmt.Errorf("plugin type %.300q", t)
		}
	}
	return nil
}

// checkName refuses a network's name that plugins refuse, which is also part of
// the name of a file beside the pod's id.
func checkName(name string) error {
	if err := utils.ValidateNetworkName(name); err != nil {
		return fmt.Errorf("network name %.300q: %w", name, err)
	}
	if len(name) > 100 {
		return fmt.Errorf("network name %.300q is too long", name)
	}
	return nil
}
