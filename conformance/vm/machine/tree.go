package machine

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// bootModules are what stands between the kernel and its root disk and port. What is built in is not loaded.
var bootModules = []string{"virtio_pci", "virtio_console", "virtio_blk", "ext4"}

func writeFile(tree string, f File) error {
	path := filepath.Join(tree, f.Path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.RemoveAll(path); err != nil {
		return err
	}
	if f.Link != "" {
		return os.Symlink(f.Link, path)
	}
	return os.WriteFile(path, []byte(f.Content), 0o644)
}

func takeKernel(tree, to string) error {
	found, err := filepath.Glob(tree + "/boot/vmlinuz-*")
	if err != nil || len(found) != 1 {
		return errors.Join(fmt.Errorf("find kernel: %d in /boot, want one", len(found)), err)
	}
	return os.Rename(found[0], to)
}

// takeModules copies the boot modules and what they need, numbered in the order of loading.
func takeModules(tree, to string) error {
	dirs, err := filepath.Glob(tree + "/usr/lib/modules/*")
	if err == nil && len(dirs) == 0 {
		dirs, err = filepath.Glob(tree + "/lib/modules/*")
	}
	if err != nil || len(dirs) != 1 {
		return errors.Join(fmt.Errorf("find modules: %d kernels, want one", len(dirs)), err)
	}
	deps, err := readDeps(filepath.Join(dirs[0], "modules.dep"))
	if err != nil {
		return err
	}
	builtin, err := os.ReadFile(filepath.Join(dirs[0], "modules.builtin"))
	if err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	var order []string
	for _, m := range bootModules {
		path := modulePath(deps, m)
		if path == "" {
			if !bytes.Contains(builtin, []byte("/"+m+".ko")) {
				return fmt.Errorf("find module %s: neither built in nor there", m)
			}
			continue
		}
		for _, d := range inOrder(deps[path], path) {
			if !slices.Contains(order, d) {
				order = append(order, d)
			}
		}
	}
	for i, path := range order {
		b, err := os.ReadFile(filepath.Join(dirs[0], path))
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, fmt.Sprintf("%02d-%s", i, filepath.Base(path))), b, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// readDeps reads modules.dep: each module's path and those that it needs, the deepest last.
func readDeps(file string) (map[string][]string, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	deps := map[string][]string{}
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		path, needs, _ := strings.Cut(lines.Text(), ":")
		deps[path] = strings.Fields(needs)
	}
	return deps, lines.Err()
}

// modulePath finds a module by its name, whichever way it is compressed.
func modulePath(deps map[string][]string, name string) string {
	for path := range deps {
		base, _, _ := strings.Cut(filepath.Base(path), ".ko")
		if strings.ReplaceAll(base, "-", "_") == name {
			return path
		}
	}
	return ""
}

// takePackageList keeps which versions the root is made of, for reports.
func takePackageList(ctx context.Context, tree, to string) error {
	out, err := exec.CommandContext(ctx, "dpkg-query", "--admindir="+tree+"/var/lib/dpkg", "-W").Output()
	if err != nil {
		return fmt.Errorf("list packages: %w", err)
	}
	return os.WriteFile(to, out, 0o644)
}

// tail returns the last lines of a text.
func tail(text []byte, lines int) string {
	all := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// inOrder is the order of loading: modules.dep names the deepest dependency last.
func inOrder(needs []string, path string) []string {
	order := slices.Clone(needs)
	slices.Reverse(order)
	return append(order, path)
}
