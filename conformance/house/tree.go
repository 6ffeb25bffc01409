package house

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Tags are the build tags of everything that Vitrine ships; the Makefile carries the same list.
const Tags = "osusergo netgo containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper nri_no_wasm"

// Module is the import path of the module; floors are given relative to it.
const Module = "github.com/vitrine-runtime/vitrine"

// Package is the part of `go list -json` that the rules look at.
type Package struct {
	ImportPath string
	Standard   bool
	Imports    []string
}

// Root returns the top of the source tree: the nearest directory upwards that holds go.mod.
func Root() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "go.mod")); err == nil {
			return dir, nil
		}
		up := filepath.Dir(dir)
		if up == dir {
			return "", errors.New("find go.mod: no directory upwards has one")
		}
		dir = up
	}
}

// List runs `go list` over the patterns, with all dependencies where deps is true. Test files do not count: what a
// test imports weighs nothing in what is shipped.
func List(root string, deps bool, patterns ...string) ([]Package, error) {
	args := []string{"list", "-json=ImportPath,Standard,Imports", "-tags", Tags}
	if deps {
		args = append(args, "-deps")
	}
	out, err := goTool(root, append(args, patterns...)...)
	if err != nil {
		return nil, err
	}
	var pkgs []Package
	for dec := json.NewDecoder(strings.NewReader(out)); ; {
		var p Package
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return pkgs, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode go list: %w", err)
		}
		pkgs = append(pkgs, p)
	}
}

// goTool runs the go command in root without cgo and returns what it printed.
func goTool(root string, args ...string) (string, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	out, err := cmd.Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return "", fmt.Errorf("go %s: %w\n%s", args[0], err, exit.Stderr)
	}
	return string(out), err
}

// Files returns the paths below root, relative to it, of all files whose name ends in one of the suffixes. What is
// built or fetched (bin, build, .git, testdata of fuzzing) is left out.
func Files(root string, suffixes ...string) ([]string, error) {
	var found []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel == ".git" || rel == "bin" || rel == "build" || strings.HasSuffix(rel, "testdata/fuzz") {
				return filepath.SkipDir
			}
			return nil
		}
		for _, s := range suffixes {
			if strings.HasSuffix(rel, s) {
				found = append(found, rel)
				break
			}
		}
		return nil
	})
	return found, err
}

// MostBytes is what a file of the source tree may weigh: the longest that we need is a table of system calls that a test
// holds against another implementation.
const MostBytes = 256 << 10

// CheckContent complains of a file that is no source: one that was built (an ELF file, an archive of objects), one longer
// than MostBytes, one with a zero byte outside testdata. What is built is made by who needs it: nobody can review it.
func CheckContent(name string, content []byte) []string {
	switch {
	case bytes.HasPrefix(content, []byte("\x7fELF")), bytes.HasPrefix(content, []byte("!<arch>\n")):
		return []string{name + ": was built; the source tree holds sources"}
	case len(content) > MostBytes:
		return []string{fmt.Sprintf("%s: %d bytes, at most %d", name, len(content), MostBytes)}
	case bytes.IndexByte(content, 0) >= 0 && !strings.Contains(name, "testdata/"):
		return []string{name + ": a zero byte; data belongs in testdata"}
	}
	return nil
}
