package integration

import (
	"archive/tar"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// lacking is why a spec of critest cannot pass on a machine, by what the spec is called, and what becomes of it there. What is not here
// has to pass.
var lacking = []struct {
	spec   *regexp.Regexp
	state  string
	needs  string
	isHere func() bool
}{
	{regexp.MustCompile(`(?i)apparmor`), "skipped", "AppArmor in the kernel", func() bool { return strings.HasPrefix(fileText("/sys/module/apparmor/parameters/enabled"), "Y") }},
	{regexp.MustCompile(`OOMKilled`), "failed", "the memory controller", func() bool { return has("memory") }},
	{regexp.MustCompile(`pod sandbox metrics`), "failed", "the controllers cpu, memory and pids", func() bool { return has("cpu") && has("memory") && has("pids") }},
}

// TestCritest runs all of critest, the specs of NRI included, where VITRINE_CRITEST names the program: none fails and none is
// skipped but what this machine lacks, which is said. VITRINE_CRITEST_FLAGS are more flags, as --parallel=2, for which
// ginkgo has to be in PATH.
func TestCritest(t *testing.T) {
	program := os.Getenv("VITRINE_CRITEST")
	if program == "" {
		t.Skip("needs critest: VITRINE_CRITEST is its path")
	}
	if os.Getenv("VITRINE_BUSYBOX") == "" {
		t.Skip("needs a busybox with ipcs and pgrep whose shell runs no applets by itself: VITRINE_BUSYBOX is its path")
	}
	s := openFor(t, critestTime)
	s.withPortmap()
	s.withNRI("")
	digest := s.critestImages()
	s.critestServers()
	flags := append([]string{"--nri-socket=" + s.nriSocket(), "--ginkgo.timeout=20m"}, strings.Fields(os.Getenv("VITRINE_CRITEST_FLAGS"))...)
	r := s.runCritest(program, digest, "", flags...)
	excused := 0
	for _, o := range r.others {
		if needs := lacks(o); needs != "" {
			excused++
			t.Logf("needs %s: %s", needs, o)
		} else {
			t.Error(o)
		}
	}
	t.Logf("%d specs passed, %d need what is not here, of %d", r.passed, excused, r.all)
	if r.passed+excused != r.all || r.passed < 100 {
		t.Errorf("%d specs passed and %d need what is not here, of %d that are no benchmarks", r.passed, excused, r.all)
	}
}

// lacks returns what a spec needs that is not here, or "".
func lacks(s outcome) string {
	for _, l := range lacking {
		if l.spec.MatchString(s.name) && l.state == s.state && !l.isHere() {
			return l.needs
		}
	}
	return ""
}

// withPortmap adds host ports to the network.
func (s *scene) withPortmap() {
	s.Helper()
	s.Cleanup(func() {
		if err := s.Configure(s.ctx, ""); err != nil {
			s.Error(err)
		}
		s.connect()
	})
	s.addPlugin(portmap)
}

// critestServers pushes images whose programs are this one, under another name: see standIn.
func (s *scene) critestServers() {
	s.Helper()
	program, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		s.Fatal(err)
	}
	file := func(name string, mode int64, text string) tar.Header {
		return tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, PAXRecords: map[string]string{"content": text}}
	}
	command := func(cmd ...string) func(*ocispec.Image) { return func(c *ocispec.Image) { c.Config.Cmd = cmd } }
	for repo, of := range map[string]struct {
		entry tar.Header
		edit  func(*ocispec.Image)
	}{
		"e2e-test-images/nginx:1.14-2":                     {file("bin/nginx", 0o755, string(program)), command("nginx", "-g", "daemon off;")},
		"e2e-test-images/httpd:2.4.39-4":                   {file("bin/httpd", 0o755, string(program)), command("httpd")},
		"e2e-test-images/nonewprivs:1.3":                   {file("bin/nnp", 0o6755, string(program)), command("nnp")},
		"k8s-staging-cri-tools/hostnet-nginx-amd64:latest": {file("bin/nginx", 0o755, string(program)), command("nginx", "-p", "12003")},
		"k8s-staging-cri-tools/test-image-predefined-group:latest": {
			file("etc/group", 0o644, "root:x:0:\ngroup-defined-in-image:x:50000:default-user\n"), func(c *ocispec.Image) { c.Config.User = "1000" }},
	} {
		base, err := stage.BusyboxImage(repo)
		if err != nil {
			s.Fatal(err)
		}
		entries := []tar.Header{of.entry}
		if strings.Contains(repo, "predefined") {
			entries = append(entries, file("etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/tmp:/bin/sh\n"))
		}
		img, err := base.With(entries, of.edit)
		if err != nil {
			s.Fatal(err)
		}
		name, tag, _ := strings.Cut(repo, ":")
		if _, err := s.Push(s.ctx, name, tag, img); err != nil {
			s.Fatal(err)
		}
	}
}

// masterTitle is what the web server's first process is called in critest's specs.
const masterTitle = "nginx: master process "

// standIn is what this program does in the images of critestServers, by its name; nothing where it has another.
func standIn() {
	port := "80"
	switch name := filepath.Base(os.Args[0]); {
	case name == "nnp":
		fmt.Printf("Effective uid: %d\n", os.Geteuid())
		os.Exit(0)
	case name == "httpd":
		fmt.Println("httpd: ready")
	case name == "nginx":
		err := syscall.Exec("/bin/nginx", append([]string{masterTitle + strings.Join(os.Args, " ")}, os.Args[1:]...), os.Environ())
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	case strings.HasPrefix(os.Args[0], masterTitle):
		if len(os.Args) > 2 && os.Args[1] == "-p" {
			port = os.Args[2]
		}
		err := os.MkdirAll("/var/run", 0o755)
		if err == nil {
			err = os.WriteFile("/var/run/nginx.pid", []byte(fmt.Sprintln(os.Getpid())), 0o644)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	default:
		return
	}
	err := http.ListenAndServe(":"+port, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, "hello from", r.Host) }))
	if !errors.Is(err, http.ErrServerClosed) {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
