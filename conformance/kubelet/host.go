package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// home is where the guest has what is tried.
const home = "/opt/vitrine-walk"

// carry brings the binaries into the guest, those that it does not have yet, and runs this program there.
func carry(ctx context.Context, vm, bin, kubelet string, args []string) error {
	if kubelet == "" {
		return errors.New("-kubelet: which? (make vm-kubelet builds one)")
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	g := guest(strings.Fields(vm))
	// A guest that is up is used; otherwise this one ends by itself soon after the run.
	if err := g.do(ctx, nil, "-idle", "3m", "up"); err != nil {
		return fmt.Errorf("boot guest: %w", err)
	}
	// Every file by its directory in the guest. The kubelet's name has its version, which is not of interest there.
	files := map[string]string{
		filepath.Join(bin, "vitrine"): home, filepath.Join(bin, "vitrine-oci"): home, self: home, kubelet: home,
		"contrib/systemd/" + daemonUnit: home, filepath.Join(bin, "cni/bridge"): home + "/cni", filepath.Join(bin, "cni/host-local"): home + "/cni",
	}
	have, err := g.output(ctx, "run", "sh", "-c", "sha256sum "+home+"/* "+home+"/cni/* 2>/dev/null; true")
	if err != nil {
		return err
	}
	for path, dir := range files {
		sum, err := digest(path)
		if err != nil {
			return err
		}
		if strings.Contains(have, sum+"  "+filepath.Join(dir, filepath.Base(path))) {
			continue
		}
		// A program that still runs there cannot be written to, but its name can go.
		err = g.do(ctx, nil, "run", "rm", "-f", filepath.Join(dir, filepath.Base(path)))
		if err = errors.Join(err, g.do(ctx, nil, "put", dir, path)); err != nil {
			return fmt.Errorf("carry %s: %w", path, err)
		}
	}
	if err := g.do(ctx, nil, "run", "ln", "-sfn", filepath.Base(kubelet), home+"/kubelet"); err != nil {
		return err
	}
	return g.do(ctx, os.Stdout, append([]string{"run", filepath.Join(home, filepath.Base(self))}, args...)...)
}

// guest is the command line that reaches the virtual machine.
type guest []string

// do runs one verb; what it prints goes to stdout, or nowhere.
func (g guest) do(ctx context.Context, stdout io.Writer, verb ...string) error {
	cmd := exec.CommandContext(ctx, g[0], append(append([]string{}, g[1:]...), verb...)...)
	cmd.Stdout, cmd.Stderr = stdout, os.Stderr
	return cmd.Run()
}

func (g guest) output(ctx context.Context, verb ...string) (string, error) {
	var b strings.Builder
	err := g.do(ctx, &b, verb...)
	return b.String(), err
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
