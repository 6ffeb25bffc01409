package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Root is a finished, cached root: a disk image and what boots it. It is read only; each machine works on a copy.
type Root struct {
	Dir    string
	Recipe Recipe
	Fresh  bool          // it was built just now
	Took   time.Duration // how long that took
}

func (r *Root) image() string  { return filepath.Join(r.Dir, "root.img") }
func (r *Root) kernel() string { return filepath.Join(r.Dir, "vmlinuz") }

// buildTime is the longest that a root may take to be made, downloads included.
const buildTime = 15 * time.Minute

// BuildRoot returns the recipe's root, from the cache directory or built into it. Building wants root (device nodes, owners). Two
// processes that want the same root build it once. The last lines of what mmdebstrap says are in the error.
func BuildRoot(ctx context.Context, cache string, r Recipe, progress io.Writer) (*Root, error) {
	root := &Root{Dir: filepath.Join(cache, "debian"+r.Debian+"-"+r.Digest()), Recipe: r}
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, buildTime)
	defer cancel()
	unlock, err := lock(ctx, root.Dir+".lock")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if _, err := os.Stat(root.kernel()); err == nil {
		return root, nil
	}
	if os.Geteuid() != 0 {
		return nil, errors.New("build root: needs root: device nodes and owners are made as they are in the guest")
	}
	began := time.Now()
	tmp := root.Dir + ".tmp"
	if err := errors.Join(os.RemoveAll(tmp), os.MkdirAll(tmp, 0o755)); err != nil {
		return nil, err
	}
	defer os.RemoveAll(tmp)
	if err := makeRoot(ctx, tmp, r, progress); err != nil {
		return nil, fmt.Errorf("build root of Debian %s: %w", r.Debian, err)
	}
	if err := os.Rename(tmp, root.Dir); err != nil {
		return nil, err
	}
	root.Fresh, root.Took = true, time.Since(began)
	return root, nil
}

// lock takes a file lock, polling until ctx ends: another process may be building.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { f.Close() }, nil
		}
		select {
		case <-ctx.Done():
			f.Close()
			return nil, fmt.Errorf("lock %s: %w", path, ctx.Err())
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// makeRoot runs the two tools and takes the kernel and the boot modules out of the tree in between.
func makeRoot(ctx context.Context, dir string, r Recipe, progress io.Writer) error {
	if err := needTools(ctx, progress); err != nil {
		return err
	}
	tree := filepath.Join(dir, "tree")
	if err := bootstrap(ctx, tree, r, progress); err != nil {
		return err
	}
	for _, f := range r.Files {
		if err := writeFile(tree, f); err != nil {
			return err
		}
	}
	if err := takeModules(tree, filepath.Join(dir, "modules")); err != nil {
		return err
	}
	if err := takeKernel(tree, filepath.Join(dir, "vmlinuz")); err != nil {
		return err
	}
	if err := takePackageList(ctx, tree, filepath.Join(dir, "packages")); err != nil {
		return err
	}
	fmt.Fprintf(progress, "make a disk of %d MiB\n", r.DiskMiB)
	// A brand-new file reads as zeros, so initialising the inode tables costs nothing here, and much in the guest.
	err := tool(ctx, "", "mke2fs", "-q", "-t", "ext4", "-L", "vitrine-vm", "-m", "0", "-N", "262144",
		"-E", "lazy_itable_init=0,lazy_journal_init=0,assume_storage_prezeroed=1", "-d", tree, filepath.Join(dir, "root.img"), fmt.Sprintf("%dM", r.DiskMiB))
	if err != nil {
		// e2fsprogs before 1.47 does not know assume_storage_prezeroed.
		err = tool(ctx, "", "mke2fs", "-q", "-F", "-t", "ext4", "-L", "vitrine-vm", "-m", "0", "-N", "262144",
			"-d", tree, filepath.Join(dir, "root.img"), fmt.Sprintf("%dM", r.DiskMiB))
	}
	return errors.Join(err, os.RemoveAll(tree))
}

func bootstrap(ctx context.Context, tree string, r Recipe, progress io.Writer) error {
	sources, err := aptSources(ctx, r.Suite)
	if err != nil {
		return err
	}
	fmt.Fprintf(progress, "mmdebstrap %s with %d packages beyond the smallest\n", r.Suite, len(r.Packages))
	args := []string{"--mode=root", "--variant=minbase", "--format=directory", "--include=" + strings.Join(r.Packages, ","), "--aptopt=Apt::Install-Recommends false", "--dpkgopt=force-confold",
		// No initramfs: the harness brings its own /init, which knows its one disk.
		`--essential-hook=mkdir -p "$1/etc/initramfs-tools" && echo update_initramfs=no >"$1/etc/initramfs-tools/update-initramfs.conf"`}
	for _, e := range r.Exclude {
		args = append(args, "--dpkgopt=path-exclude="+e)
	}
	args = append(args, r.Suite, tree)
	return tool(ctx, strings.Join(sources, "\n")+"\n", "mmdebstrap", append(args, "-")...)
}

// aptSources are the lines of sources.list for a suite: the addresses that this machine's apt already uses for Debian. Where apt has no lists
// yet it does not know whose a source is, so they are fetched.
func aptSources(ctx context.Context, suite string) ([]string, error) {
	found, err := askApt(ctx)
	if err == nil && found["Debian"] == "" {
		if err = tool(ctx, "", "apt-get", "update", "-qq"); err == nil {
			found, err = askApt(ctx)
		}
	}
	if err != nil {
		return nil, err
	}
	if found["Debian"] == "" {
		return nil, errors.New("find a Debian mirror: apt has no source with origin and label Debian; add one, also on another distribution, and run apt-get update")
	}
	lines := []string{"deb " + found["Debian"] + " " + suite + " main"}
	if uri := found["Debian-Security"]; uri != "" {
		lines = append(lines, "deb "+uri+" "+suite+"-security main")
	}
	return lines, nil
}

// askApt returns the addresses of Debian's own sources by their labels.
func askApt(ctx context.Context) (map[string]string, error) {
	out, err := exec.CommandContext(ctx, "apt-get", "indextargets", "--format", "$(LABEL)|$(REPO_URI)", "Identifier: Packages", "Origin: Debian").Output()
	if err != nil {
		return nil, fmt.Errorf("ask apt for its sources: %w", err)
	}
	found := map[string]string{}
	for lines := bufio.NewScanner(strings.NewReader(string(out))); lines.Scan(); {
		if label, uri, ok := strings.Cut(lines.Text(), "|"); ok {
			found[label] = uri
		}
	}
	return found, nil
}

// needTools installs what is missing and can be had by apt.
func needTools(ctx context.Context, progress io.Writer) error {
	var missing []string
	for _, t := range [][2]string{{"mmdebstrap", "mmdebstrap"}, {"mke2fs", "e2fsprogs"}, {qemuProgram, "qemu-system-x86"}} {
		if _, err := exec.LookPath(t[0]); err != nil {
			missing = append(missing, t[1])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	fmt.Fprintln(progress, "install with apt:", strings.Join(missing, " "))
	args := append([]string{"install", "-y", "-qq", "--no-install-recommends"}, missing...)
	if tool(ctx, "", "apt-get", args...) == nil {
		return nil
	}
	if err := tool(ctx, "", "apt-get", "update", "-qq"); err != nil {
		return err
	}
	return tool(ctx, "", "apt-get", args...)
}

// tool runs a program nicely, with stdin's text as its input; its last words are in the error.
func tool(ctx context.Context, stdin, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "15", name}, args...)...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive", "LC_ALL=C.UTF-8")
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 5 * time.Second
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, tail(out, 15))
	}
	return nil
}
