package house

import (
	"fmt"
	"strings"
)

// floors maps a directory to its floor; the longest matching prefix counts. A package outside of all of these is a
// complaint: whoever adds a directory decides where it stands.
var floors = map[string]int{
	"cmd/vitrine":         5,
	"cmd/vitrine-oci":     5,
	"server":              4,
	"sandbox":             3,
	"oci":                 2,
	"oci/monitor":         2,
	"oci/bundle":          2,
	"oci/source":          2,
	"oci/program":         1,
	"oci/executor":        1,
	"oci/wire":            1,
	"oci/crilog":          1,
	"oci/netdev":          1,
	"oci/seccomp":         1,
	"oci/seccomp/profile": 1,
	"oci/cgroup":          1,
	"oci/notify":          1,
	"image":               1,
	"cni":                 1,
	"nri":                 1,
	"internal/sys":        0,
	"internal/atomicfile": 0,
	"internal/step":       0,
	"internal/pause":      0,
	"internal/scratch":    0,
	"internal/early":      0,
	"internal/ready":      0,
	"internal/signals":    0,
	"internal/sysctl":     0,
	"internal/dbus":       0,
	"internal/specjson":   0,
	"internal/userns":     0,
	"internal/unixsocket": 0,
}

// outside are the directories that stand beside the house: they may import any floor, and no floor imports them.
var outside = []string{"conformance", "contrib"}

// forbidden are import path prefixes that never come into the closure of cmd/vitrine-oci. Their cost is why there
// are two binaries: cri-api alone takes a Go program from 2 MB to 11 MB.
var forbidden = []string{
	"k8s.io/",
	"google.golang.org/",
	"go.podman.io/",
	"github.com/google/go-containerregistry",
	"github.com/opencontainers/image-spec",
	"github.com/containernetworking/",
	"github.com/spf13/",
	"net/http",
}

// floorOf returns the key in floors under which a module-relative directory falls; ok is false where none does.
func floorOf(dir string) (key string, ok bool) {
	for key = dir; key != "" && key != "."; {
		if _, ok := floors[key]; ok {
			return key, true
		}
		i := strings.LastIndexByte(key, '/')
		if i < 0 {
			break
		}
		key = key[:i]
	}
	return "", false
}

// isOutside reports whether a module-relative directory stands beside the house.
func isOutside(dir string) bool {
	for _, o := range outside {
		if dir == o || strings.HasPrefix(dir, o+"/") {
			return true
		}
	}
	return false
}

// CheckFloors complains about each import within the module that goes up, that goes sideways on floor 1, or that
// reaches what stands beside the house, and about each package that has no floor.
func CheckFloors(pkgs []Package) []string {
	var bad []string
	for _, p := range pkgs {
		from, ours := strings.CutPrefix(p.ImportPath, Module+"/")
		if !ours || isOutside(from) {
			continue
		}
		fromKey, ok := floorOf(from)
		if !ok {
			bad = append(bad, fmt.Sprintf("%s stands on no floor: give it one in conformance/house/floors.go", from))
			continue
		}
		for _, imp := range p.Imports {
			if to, ours := strings.CutPrefix(imp, Module+"/"); ours {
				if complaint := checkImport(from, fromKey, to); complaint != "" {
					bad = append(bad, complaint)
				}
			}
		}
	}
	return bad
}

// checkImport returns what is wrong with one import within the module, or "".
func checkImport(from, fromKey, to string) string {
	toKey, ok := floorOf(to)
	switch {
	case isOutside(to):
		return fmt.Sprintf("%s imports %s, which stands beside the house", from, to)
	case !ok:
		return fmt.Sprintf("%s imports %s, which stands on no floor", from, to)
	case floors[toKey] > floors[fromKey]:
		return fmt.Sprintf("%s (floor %d) imports %s (floor %d): imports go down", from, floors[fromKey], to, floors[toKey])
	case floors[fromKey] == 1 && floors[toKey] == 1 && fromKey != toKey:
		return fmt.Sprintf("%s imports its sibling %s: packages of floor 1 do not know each other", from, to)
	}
	return ""
}

// CheckClosure complains about each forbidden package among the dependencies of the small binary.
func CheckClosure(deps []Package) []string {
	var bad []string
	for _, p := range deps {
		for _, f := range forbidden {
			if p.ImportPath == strings.TrimSuffix(f, "/") || strings.HasPrefix(p.ImportPath, f) {
				bad = append(bad, fmt.Sprintf("vitrine-oci depends on %s", p.ImportPath))
				break
			}
		}
	}
	return bad
}
