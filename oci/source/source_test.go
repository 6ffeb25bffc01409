package source_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/oci/program"
	"github.com/vitrine-runtime/vitrine/oci/source"
)

func needsRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: copies mounts")
	}
}

// bundle makes a bundle with a root filesystem and a volume with a file.
func bundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, d := range []string{"rootfs", "volume"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "volume/file"), []byte("content"), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

func spec(mounts ...specs.Mount) *specs.Spec {
	return &specs.Spec{Root: &specs.Root{Path: "rootfs"}, Mounts: mounts}
}

func TestOpensRootAndBinds(t *testing.T) {
	needsRoot(t)
	dir := bundle(t)
	set, err := source.Open(spec(
		specs.Mount{Destination: "/proc", Type: "proc"},
		specs.Mount{Destination: "/a", Source: "volume", Options: []string{"rbind"}},
		specs.Mount{Destination: "/b", Source: filepath.Join(dir, "volume/file"), Type: "none", Options: []string{"bind"}},
	), dir)
	if err != nil {
		t.Fatal(err)
	}
	var in program.Input
	set.Apply(&in)
	if len(set.Files()) != 3 || len(in.Binds) != 2 || in.Binds[1] != (program.Bind{File: 1, Dir: true}) || in.Binds[2] != (program.Bind{File: 2}) {
		t.Errorf("%d files, binds %v", len(set.Files()), in.Binds)
	}
	var want, got unix.Stat_t
	unix.Stat(filepath.Join(dir, "volume/file"), &want)
	if err := unix.Fstat(set.Files()[2].Int(), &got); err != nil || got.Ino != want.Ino {
		t.Errorf("inode %d, want %d (%v)", got.Ino, want.Ino, err)
	}
	if err := set.Close(); err != nil {
		t.Error(err)
	}
}

func TestErrorsNameTheField(t *testing.T) {
	needsRoot(t)
	dir := bundle(t)
	os.WriteFile(filepath.Join(dir, "plain"), nil, 0o644)
	bind := []string{"bind"}
	for _, tt := range []struct {
		spec  *specs.Spec
		want  string
		cause error
	}{
		{&specs.Spec{}, "root.path is missing", program.ErrInvalid},
		{&specs.Spec{Root: &specs.Root{Path: "nothing"}}, "root.path: ", unix.ENOENT},
		{&specs.Spec{Root: &specs.Root{Path: "plain"}}, "root.path: ", unix.ENOTDIR},
		{spec(specs.Mount{Destination: "/a", Source: "nothing", Options: bind}), "mounts[0].source: ", unix.ENOENT},
		{spec(specs.Mount{Destination: "/p", Type: "proc"}, specs.Mount{Destination: "/a", Options: bind}), "mounts[1].source: missing", program.ErrInvalid},
	} {
		_, err := source.Open(tt.spec, dir)
		if err == nil || !strings.HasPrefix(err.Error(), tt.want) || !errors.Is(err, tt.cause) {
			t.Errorf("%v, want %q and %v", err, tt.want, tt.cause)
		}
	}
}
