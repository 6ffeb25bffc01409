package house

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// tree returns the top of the source tree and its budgets.
func tree(t *testing.T) (string, Budgets) {
	t.Helper()
	root, err := Root()
	if err != nil {
		t.Fatal(err)
	}
	b, err := ReadBudgets(root)
	if err != nil {
		t.Fatal(err)
	}
	return root, b
}

// limit returns one budget; a missing row fails, so that deleting a line of BUDGET.md lifts no limit.
func (b Budgets) limit(t *testing.T, name string) int {
	t.Helper()
	n, ok := b[name]
	if !ok {
		t.Fatalf("conformance/BUDGET.md has no row %q", name)
	}
	return n
}

// goFiles parses every Go file of the tree.
func goFiles(t *testing.T, root string) []*File {
	t.Helper()
	names, err := Files(root, ".go")
	if err != nil {
		t.Fatal(err)
	}
	files := make([]*File, 0, len(names))
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		f, err := Parse(name, string(text))
		if err != nil {
			t.Fatal(err)
		}
		files = append(files, f)
	}
	return files
}

func report(t *testing.T, complaints []string) {
	t.Helper()
	for _, c := range complaints {
		t.Error(c)
	}
}

func TestFloors(t *testing.T) {
	root, _ := tree(t)
	pkgs, err := List(root, false, "./...")
	if err != nil {
		t.Fatal(err)
	}
	report(t, CheckFloors(pkgs))
}

func TestFloorsComplain(t *testing.T) {
	for _, c := range []struct{ from, to, want string }{
		{"oci/wire", "oci/monitor", "imports go down"},
		{"image", "cni", "sibling"},
		{"oci/seccomp", "oci/seccomp/profile", "sibling"},
		{"server", "conformance/stage", "beside the house"},
		{"newcomer", "internal/sys", "stands on no floor"},
		{"server", "newcomer", "stands on no floor"},
		{"server/stream", "sandbox", ""},
		{"oci", "oci/wire", ""},
		{"conformance/try", "server", ""},
	} {
		pkgs := []Package{{ImportPath: Module + "/" + c.from, Imports: []string{"fmt", Module + "/" + c.to}}}
		got := strings.Join(CheckFloors(pkgs), "\n")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) {
			t.Errorf("%s -> %s: got %q, want %q", c.from, c.to, got, c.want)
		}
	}
}

// notInlined returns the flags with which the Makefile builds the small binary.
func notInlined(t *testing.T, root string) (flags []string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	_, list, _ := strings.Cut(string(b), "SMALL   := $(foreach p,")
	list, _, ok := strings.Cut(list, ",-gcflags=$(p)=-l)")
	if !ok {
		t.Fatal("the Makefile does not say how the small binary is built")
	}
	for _, p := range strings.Fields(list) {
		flags = append(flags, "-gcflags="+p+"=-l")
	}
	return flags
}

func TestSmallBinary(t *testing.T) {
	root, b := tree(t)
	deps, err := List(root, true, "./cmd/vitrine-oci")
	if err != nil {
		t.Fatal(err)
	}
	report(t, CheckClosure(deps))
	if most := b.limit(t, "oci-packages"); len(deps) > most {
		t.Errorf("vitrine-oci is made of %d packages, at most %d", len(deps), most)
	}
	out := filepath.Join(t.TempDir(), "vitrine-oci")
	args := append([]string{"build", "-trimpath", "-buildvcs=false", "-tags", Tags}, notInlined(t, root)...)
	if _, err := goTool(root, append(args, "-ldflags", "-s -w", "-o", out, "./cmd/vitrine-oci")...); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(out)
	if err != nil {
		t.Fatal(err)
	}
	if most := b.limit(t, "oci-bytes"); fi.Size() > int64(most) {
		t.Errorf("vitrine-oci has %d bytes, at most %d", fi.Size(), most)
	}
	t.Logf("vitrine-oci: %d bytes, %d packages", fi.Size(), len(deps))
}

func TestClosureComplains(t *testing.T) {
	for _, path := range []string{"net/http", "net/http/httptrace", "k8s.io/cri-api/pkg/apis", "google.golang.org/grpc", "go.podman.io/storage", "github.com/spf13/cobra"} {
		if len(CheckClosure([]Package{{ImportPath: path}})) != 1 {
			t.Errorf("%s may come into vitrine-oci", path)
		}
	}
	if bad := CheckClosure([]Package{{ImportPath: "net"}, {ImportPath: "golang.org/x/sys/unix"}}); bad != nil {
		t.Error(bad)
	}
}

func TestLengths(t *testing.T) {
	root, b := tree(t)
	all, long := 0, 0
	for _, f := range goFiles(t, root) {
		if most := b.limit(t, "file-lines"); f.Lines() > most {
			t.Errorf("%s has %d lines, at most %d", f.Name, f.Lines(), most)
		}
		name := "function-lines"
		if f.IsTest() {
			name = "function-lines-test"
		}
		for _, fn := range f.Functions() {
			if most := b.limit(t, name); fn.Lines > most {
				t.Errorf("%s: %s has %d lines, at most %d", fn.Where, fn.Name, fn.Lines, most)
			}
			if !f.IsTest() {
				all++
				if fn.Lines > 60 {
					long++
				}
			}
		}
	}
	if most := b.limit(t, "long-functions-percent"); long*100 > all*most {
		t.Errorf("%d of %d functions have more than 60 lines, at most %d %%", long, all, most)
	}
	t.Logf("%d functions outside tests, %d longer than 60 lines", all, long)
}

func TestDocumented(t *testing.T) {
	root, b := tree(t)
	var bad []string
	comment := map[string]bool{}
	for _, f := range goFiles(t, root) {
		bad = append(bad, f.Undocumented()...)
		if dir := filepath.Dir(f.Name); !f.IsTest() {
			comment[dir] = comment[dir] || f.HasPackageComment()
		}
	}
	for dir, ok := range comment {
		if !ok {
			bad = append(bad, dir+": no file has the package's comment")
		}
		if vagueName[filepath.Base(dir)] {
			bad = append(bad, dir+": the name says nothing")
		}
	}
	if most := b.limit(t, "undocumented"); len(bad) > most {
		report(t, bad)
	}
}

func TestSourceRulesComplain(t *testing.T) {
	src := "package p\n\nfunc F() {\n" + strings.Repeat("\t_ = 0\n", 5) + "}\n\ntype T int\n\nfunc (T) M() {}\nfunc (t *T) m() {}\n" +
		"type u int\nfunc (u) M() {}\n\n// G is documented.\nfunc G() {}\n\nconst (\n\tA = 1\n\tB = 2 // B is\n)\n\n// Group.\nvar (\n\tC = 1\n)\n"
	f, err := Parse("p.go", src)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, c := range f.Undocumented() {
		names = append(names, strings.Fields(c)[1])
	}
	if want := []string{"F", "T", "M", "A"}; !slices.Equal(names, want) {
		t.Errorf("undocumented: got %v, want %v", names, want)
	}
	if fn := f.Functions()[0]; fn.Lines != 7 || fn.Where != "p.go:3" {
		t.Errorf("length of F: %+v", fn)
	}
	if f.Lines() != strings.Count(src, "\n") || f.HasPackageComment() {
		t.Error("lines or package comment")
	}
}

func TestWords(t *testing.T) {
	root, _ := tree(t)
	names, err := Files(root, ".go", ".md", ".yml", ".toml", ".sh", "Makefile", ".ci/run", ".conflist", ".service")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		text, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		report(t, CheckWords(name, string(text)))
	}
}

func TestWordsComplain(t *testing.T) {
	for line, bad := range map[string]bool{
		"// TO" + "DO: later":                   true,
		"# FIX" + "ME":                          true,
		`return fmt.Errorf(` + `"failed to x")`: true,
		`errors.New(` + `"cannot open")`:        true,
		`fmt.Errorf("open %s: %w", p, err)`:     false,
		"methodology":                           false,
	} {
		if got := CheckWords("x.go", line) != nil; got != bad {
			t.Errorf("%q: complained %v, want %v", line, got, bad)
		}
	}
}

func TestSourcesOnly(t *testing.T) {
	root, _ := tree(t)
	names, err := Files(root, "")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			t.Fatal(err)
		}
		report(t, CheckContent(name, content))
	}
}

func TestSourcesOnlyComplains(t *testing.T) {
	for _, c := range []struct {
		name, content string
		bad           bool
	}{
		{"vitrine-oci", "\x7fELF\x02\x01\x01", true},
		{"oci/testdata/bound", "\x7fELF\x02\x01\x01", true},
		{"lib.a", "!<arch>\n", true},
		{"docs/long.md", strings.Repeat("x", MostBytes+1), true},
		{"oci/x.bin", "a\x00b", true},
		{"oci/testdata/x.bin", "a\x00b", false},
		{"docs/x.md", "ELF", false},
	} {
		if got := CheckContent(c.name, []byte(c.content)) != nil; got != c.bad {
			t.Errorf("%s: complained %v, want %v", c.name, got, c.bad)
		}
	}
}

func TestDirectModules(t *testing.T) {
	root, b := tree(t)
	goMod, err := os.ReadFile(filepath.Join(root, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	reasons, err := os.ReadFile(filepath.Join(root, "docs", "dependencies.md"))
	if err != nil {
		t.Fatal(err)
	}
	direct, unexplained := DirectModules(string(goMod), string(reasons))
	if most := b.limit(t, "direct-modules"); len(direct) > most {
		t.Errorf("go.mod requires %d modules directly, at most %d", len(direct), most)
	}
	for _, m := range unexplained {
		t.Errorf("docs/dependencies.md does not say why we need %s", m)
	}
}

func TestDirectModulesComplain(t *testing.T) {
	mod := "module m\n\nrequire a.b/c v1.0.0\n\nrequire (\n\td.e/f v1.0.0\n\tg.h/i v1.0.0 // indirect\n)\n\ntool x.y/z\n"
	direct, missing := DirectModules(mod, "| `a.b/c` | because |")
	if fmt.Sprint(direct, missing) != "[a.b/c d.e/f] [d.e/f]" {
		t.Error(direct, missing)
	}
}

// TestMakefileAgrees holds the two copies of the build tags together.
func TestMakefileAgrees(t *testing.T) {
	root, _ := tree(t)
	text, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(text), Tags+"\n") {
		t.Errorf("Makefile does not build with the tags %q", Tags)
	}
	var recipe int
	for i, line := range strings.Split(string(text), "\n") {
		if !strings.HasPrefix(line, "\t") {
			recipe = 0
		} else if recipe++; recipe > 3 {
			t.Errorf("Makefile:%d: a recipe of more than three lines belongs in a program", i+1)
		}
	}
	if out, err := exec.Command("make", "-s", "-C", root, "help").CombinedOutput(); err != nil || !strings.Contains(string(out), "try") {
		t.Errorf("make help: %v\n%s", err, out)
	}
}
