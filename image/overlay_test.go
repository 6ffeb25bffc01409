package image

import (
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// TestLabelInMountOptions: the kernels that take an overlay by mount(2) get the label whole, though it has commas; without one there is no option.
func TestLabelInMountOptions(t *testing.T) {
	dir, err := sys.OpenAt2(unix.AT_FDCWD, t.TempDir(), unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	l := &layerSet{lower: []*sys.FD{dir}}
	if text, err := mountOptions(l); err != nil || strings.Contains(text, overlayLabel) {
		t.Errorf("without a label: %q, %v", text, err)
	}
	l.label = "u:object_r:f:s0:c1,c2"
	if text, err := mountOptions(l); err != nil || !strings.HasSuffix(text, `,context="u:object_r:f:s0:c1,c2"`) {
		t.Errorf("with a label: %q, %v", text, err)
	}
}

// TestLabelWithoutSELinux: a kernel that would not give the files the label makes no root.
func TestLabelWithoutSELinux(t *testing.T) {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err == nil {
		t.Skip("needs a kernel without SELinux")
	}
	e := newEnv(t)
	e.reg.push(t, "labelled", simple(t, "labelled"))
	must(t, e.NewRootfs(soon(t), "c", e.pull("registry.example/labelled")))
	for mode := e.overlay; mode <= layersByMount; mode++ { // what an older kernel does, a newer one can
		e.overlay = mode
		if fd, err := e.Mount(soon(t), "c", View{Label: "u:object_r:f:s0:c1,c2"}); err == nil {
			t.Errorf("mode %d: a root without its label", mode)
			must(t, fd.Close())
		}
		fd, err := e.Mount(soon(t), "c", View{})
		must(t, err)
		must(t, fd.Close())
	}
}
