package main

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/vitrine-runtime/vitrine/conformance/vm/link"
	"github.com/vitrine-runtime/vitrine/conformance/vm/machine"
)

const (
	tags       = "osusergo netgo containers_image_openpgp exclude_graphdriver_btrfs exclude_graphdriver_devicemapper nri_no_wasm"
	testTime   = 45 * time.Minute
	runTime    = 45 * time.Minute // of a command, or of files on their way, with a boot before it
	upTime     = 20 * time.Minute // with a root that has to be built
	guestTree  = "/src"           // where the guest has what tests expect around them
	modulePath = "github.com/vitrine-runtime/vitrine"
)

// exec carries a test binary, the package's testdata and the tree's go.mod into the guest and runs the binary there, in
// a directory that has the package's place in the tree.
func (o *options) exec(ctx context.Context, args []string) error {
	if len(args) == 0 {
		return errors.New("exec: which binary?")
	}
	g, err := o.dial()
	if err != nil {
		return err
	}
	defer g.client.Close()
	here, err := os.Getwd()
	if err != nil {
		return err
	}
	top, err := treeTop(here)
	if err != nil {
		return err
	}
	rel, err := filepath.Rel(top, here)
	if err != nil {
		return err
	}
	dir := filepath.Join(guestTree, rel)
	files := map[string]string{filepath.Join(rel, filepath.Base(args[0])): args[0], "go.mod": filepath.Join(top, "go.mod")}
	if err := testdata(files, top, here); err != nil {
		return err
	}
	if err := binaries(files, top, rel); err != nil {
		return err
	}
	env := append(environment(files), "VITRINE_VM="+o.debian)
	if err := send(ctx, g.client, guestTree, files); err != nil {
		return err
	}
	cmd := link.Command{Args: append([]string{filepath.Join(dir, filepath.Base(args[0]))}, args[1:]...), Dir: dir, Env: env}
	res, err := g.client.Run(ctx, cmd, link.Streams{Stdout: os.Stdout, Stderr: os.Stderr})
	if err == nil && res.Left > 0 {
		fmt.Printf("vm: the tests left %d processes behind, which were killed\n", res.Left)
	}
	if err == nil && res.Code != 0 {
		err = exitCode(res.Code)
	}
	return err
}

// brought are variables of the environment that name a program of the host's, which goes into the guest with the tests.
var brought = map[string]bool{"VITRINE_CRITEST": true, "VITRINE_BUSYBOX": true, "VITRINE_CRICTL": true, "VITRINE_CRICTL_SPECS": true}

// environment returns what the tests are to have of ours, and adds to files what that names.
func environment(files map[string]string) (env []string) {
	for _, e := range os.Environ() {
		name, value, _ := strings.Cut(e, "=")
		switch {
		case brought[name] && value != "":
			in := filepath.Join("brought", filepath.Base(value))
			files[in] = value
			env = append(env, name+"="+filepath.Join(guestTree, in))
		case strings.HasPrefix(e, "VITRINE_"), name == "GODEBUG":
			env = append(env, e)
		}
	}
	return env
}

func treeTop(dir string) (string, error) {
	for {
		b, err := os.ReadFile(filepath.Join(dir, "go.mod"))
		if err == nil && strings.HasPrefix(string(b), "module "+modulePath+"\n") {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("find go.mod: no directory upwards has ours")
		}
		dir = filepath.Dir(dir)
	}
}

// binaries adds what is tried as a whole to files: the packages below conformance start it, package cni calls the plugins, the
// tests of vitrine-oci look at how it is linked, and package oci is measured against the C program of the bound.
func binaries(files map[string]string, top, rel string) error {
	patterns := []string{"docs/*.md"} // tests read the tables in them
	switch {
	case strings.HasPrefix(rel, "conformance/"):
		patterns = append(patterns, "bin/vitrine*", "bin/cni/*")
	case rel == "cni":
		patterns = append(patterns, "bin/cni/*")
	case rel == "cmd/vitrine-oci":
		patterns = append(patterns, "bin/vitrine-oci")
	case rel == "oci":
		patterns = append(patterns, "bin/dev/bound")
	}
	for _, pattern := range patterns {
		found, err := filepath.Glob(filepath.Join(top, pattern))
		if err == nil && len(found) == 0 {
			err = fmt.Errorf("find %s: none (run make first)", pattern)
		}
		if err != nil {
			return err
		}
		for _, path := range found {
			name, err := filepath.Rel(top, path)
			if err != nil {
				return err
			}
			files[name] = path
		}
	}
	return nil
}

// testdata adds a package's testdata to files, by their names below top.
func testdata(files map[string]string, top, pkg string) error {
	root := filepath.Join(pkg, "testdata")
	if _, err := os.Stat(root); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		name, err := filepath.Rel(top, path)
		files[name] = path
		return err
	})
}

// send brings files (by their names in the guest) below dir, those that the guest does not have yet. What it has is written in
// small files beside them, since taking digests there would cost more than sending.
func send(ctx context.Context, r machine.Runner, dir string, files map[string]string) error {
	have, err := machine.Output(ctx, r, "sh", "-c", `cat "$0"/.sums/* 2>/dev/null; true`, dir)
	if err != nil {
		return err
	}
	present := map[string]bool{}
	for _, line := range strings.Split(have, "\n") {
		present[line] = true
	}
	sums := map[string]string{}
	for name, path := range files {
		sum, err := digest(path)
		if err != nil {
			return err
		}
		if line := sum + "  " + name; !present[line] {
			sums[name] = line
		}
	}
	if len(sums) == 0 {
		return nil
	}
	pr, pw := io.Pipe()
	go func() { pw.CloseWithError(pack(pw, files, sums)) }() // ends with its reader
	defer func() { _ = pr.Close() }()                        // lets the packer end
	return machine.Put(ctx, r, dir, pr)
}

// pack writes each file and after it the note that it is there, so that half a transfer leaves no note.
func pack(w io.Writer, files, sums map[string]string) error {
	t := tar.NewWriter(w)
	for name, line := range sums {
		if err := addFile(t, files[name], name); err != nil {
			return err
		}
		note := ".sums/" + strings.ReplaceAll(name, "/", "+")
		if err := t.WriteHeader(&tar.Header{Name: note, Mode: 0o644, Size: int64(len(line) + 1)}); err != nil {
			return err
		}
		if _, err := io.WriteString(t, line+"\n"); err != nil {
			return err
		}
	}
	return t.Close()
}

func digest(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
