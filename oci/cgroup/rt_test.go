package cgroup

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRT08UsualDevices is GHSA-g54h-m393-cpwq: what a device list denies and
// allows, against its plain reading and in the kernel. Through a whole container:
// TestRT08DeviceFilter of conformance/integration.
func TestRT08UsualDevices(t *testing.T) {
	for _, d := range []struct {
		kind         int32
		major, minor int64
		access       int32
		want         bool
	}{
		{devBlock, 8, 0, accRead, false}, {devBlock, 254, 0, accWrite, false}, {devBlock, 8, 0, accMknod, true}, {devChar, 1, 1, accRead, false},
		{devChar, 10, 200, accRead, false}, {devChar, 1, 3, accRead | accWrite, true}, {devChar, 136, 77, accRead, true}, {devChar, 5, 1, accRead, false},
	} {
		if got := allowed(usualDevices(), d.kind, d.major, d.minor, d.access); got != d.want {
			t.Errorf("%+v: %v", d, got)
		}
	}
	t.Run("compiled", TestDeviceProgram)
	t.Run("in the kernel", TestDeviceFilterHolds)
}

// TestRT23NoShortQuery: on kernels 6.17 to 7.1 BPF_PROG_QUERY writes behind the
// end of an attribute of fewer than 64 bytes, into the memory of whoever asks.
// Nobody here asks. Who wants to passes the attribute whole, and says so here.
func TestRT23NoShortQuery(t *testing.T) {
	if os.Getenv("VITRINE_VM") != "" {
		t.Skip("needs the source tree: looks for a call in it")
	}
	if found := queries(t, "../.."); len(found) > 0 {
		t.Errorf("BPF_PROG_QUERY at %v", found)
	}
	file := "package p\nimport \"golang.org/x/sys/unix\"\nfunc f() { bpf(unix.BPF_PROG_QUERY, nil, 16) }\n"
	f, err := parser.ParseFile(token.NewFileSet(), "x.go", file, 0)
	if err != nil || !asks(f) {
		t.Errorf("a query is not found: %v", err)
	}
}

// queries returns the files below dir that ask the kernel for attached programs.
func queries(t *testing.T, dir string) (found []string) {
	t.Helper()
	seen := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return err
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err == nil && asks(f) {
			found = append(found, path)
		}
		seen++
		return err
	})
	if err != nil || seen < 100 {
		t.Fatalf("%d files, %v", seen, err)
	}
	return found
}

func asks(f *ast.File) (found bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		if id, ok := n.(*ast.Ident); ok && (id.Name == "BPF_PROG_QUERY" || id.Name == "ProgQuery" || id.Name == "QueryPrograms") {
			found = true
		}
		return true
	})
	return found
}
