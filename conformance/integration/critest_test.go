package integration

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/stage"
)

// TestCritestImages runs critest's specs on images and image volumes, where VITRINE_CRITEST names the program: none
// fails, none is skipped.
func TestCritestImages(t *testing.T) {
	r := critest(t, "Image Manager|Image Consistency|Image Identifier Consistency|Image Volume")
	if len(r.others) > 0 || r.passed < 20 {
		t.Errorf("%d specs passed, want 20; others: %q", r.passed, r.others)
	}
}

// TestCritestMetrics is the same for metrics. Where the kernel lacks controllers critest misses what these count, and
// nothing else.
func TestCritestMetrics(t *testing.T) {
	r := critest(t, "support metrics operations")
	var uncounted []string
	for name, at := range metricFiles {
		controller, file, _ := strings.Cut(at[0], ".")
		if file == "pressure" || at == [2]string{"cpu.stat"} || has(controller) {
			continue // needs none
		}
		if controller == "memory" || controller == "cpu" || controller == "pids" {
			uncounted = append(uncounted, name)
		}
	}
	slices.Sort(uncounted)
	missed := "Expected " + strings.Join(uncounted, " ") + " metrics to be present"
	if len(uncounted) > 0 && r.passed == 1 && len(r.others) == 1 && strings.Contains(r.others[0].message, missed) {
		t.Logf("without controllers: %s", r.others[0])
		return
	}
	if len(r.others) > 0 || r.passed != 2 {
		t.Errorf("%d specs passed, want 2; others: %q", r.passed, r.others)
	}
}

// TestCrictl runs crictl's own specs, where VITRINE_CRICTL_SPECS names the program that they are (cri-tools, test/e2e) and
// VITRINE_CRICTL the crictl: none fails, none is skipped.
func TestCrictl(t *testing.T) {
	program, crictl := os.Getenv("VITRINE_CRICTL_SPECS"), os.Getenv("VITRINE_CRICTL")
	if program == "" || crictl == "" {
		t.Skip("needs crictl and its specs: VITRINE_CRICTL and VITRINE_CRICTL_SPECS are their paths")
	}
	s := openFor(t, critestTime)
	// One spec removes all images, and expects that there is none.
	if err := s.cri.Images.RemoveImage(s.ctx, &runtimeapi.ImageSpec{Image: busybox}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := s.cri.Pull(s.ctx, busybox); err != nil {
			t.Error(err)
		}
	})
	r := s.runSpecs(program, s.critestImages(), "-crictl-binary-path="+crictl, "-crictl-runtime-endpoint=unix://"+s.Socket)
	t.Logf("%d specs passed", r.passed)
	if len(r.others) > 0 || r.passed < 35 {
		t.Errorf("%d specs passed, others: %q", r.passed, r.others)
	}
}

// critest runs the specs that a regular expression names, and says which of them did not pass.
func critest(t *testing.T, focus string) outcomes {
	t.Helper()
	program := os.Getenv("VITRINE_CRITEST")
	if program == "" {
		t.Skip("needs critest: VITRINE_CRITEST is its path")
	}
	s := open(t)
	return s.runCritest(program, s.critestImages(), focus)
}

// critestImages pushes images as critest's own, and returns the digest of the one that it pulls by digest.
func (s *scene) critestImages() (digest string) {
	s.Helper()
	s.before["path /sys/fs/cgroup/vitrine"] = 1 // stays, once a pod had no parent
	s.before.AllowPulled(100)
	text := ""
	for _, host := range []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"} {
		text += fmt.Sprintf("[[registry]]\nprefix = %q\nlocation = %q\ninsecure = true\n", host, s.Registry.Addr())
	}
	dropIns := s.RegistriesConf + ".d"
	if err := os.MkdirAll(dropIns, 0o755); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { os.RemoveAll(dropIns) })
	if err := os.WriteFile(filepath.Join(dropIns, "critest.conf"), []byte(text), 0o644); err != nil {
		s.Fatal(err)
	}
	const staging = "k8s-staging-cri-tools/"
	for repo, edit := range map[string]func(*ocispec.Image){
		"pause:3.9": nil, "e2e-test-images/busybox:1.29-2": nil, staging + "test-image-digest:latest": nil,
		staging + "test-image-1:latest": nil, staging + "test-image-2:latest": nil, staging + "test-image-3:latest": nil, staging + "test-image-latest:latest": nil,
		staging + "test-image-tag:test": nil, staging + "test-image-tag:all": nil,
		staging + "test-image-user-uid:latest":            func(c *ocispec.Image) { c.Config.User = "1002" },
		staging + "test-image-user-username:latest":       func(c *ocispec.Image) { c.Config.User = "www-data" },
		staging + "test-image-user-uid-group:latest":      func(c *ocispec.Image) { c.Config.User = "1003:1004" },
		staging + "test-image-user-username-group:latest": func(c *ocispec.Image) { c.Config.User = "www-data:1004" },
	} {
		base, err := stage.BusyboxImage(repo)
		if err != nil {
			s.Fatal(err)
		}
		img, err := base.With([]tar.Header{content("marker", repo)}, edit)
		if err != nil {
			s.Fatal(err)
		}
		name, tag, _ := strings.Cut(repo, ":")
		if _, err := s.Push(s.ctx, name, tag, img); err != nil {
			s.Fatal(err)
		}
		if strings.Contains(repo, "digest") {
			digest = img.Digest()
		}
	}
	tags, err := stage.BusyboxImage("tags")
	if err != nil {
		s.Fatal(err)
	}
	for _, tag := range []string{"1", "2", "3"} {
		if _, err := s.Push(s.ctx, staging+"test-image-tags", tag, tags); err != nil {
			s.Fatal(err)
		}
	}
	return digest
}

// critestTime is enough for all of critest, three times.
const critestTime = 20 * time.Minute

// runCritest runs specs, and says which of them did not pass.
func (s *scene) runCritest(program, digest, focus string, flags ...string) outcomes {
	s.Helper()
	return s.runSpecs(program, digest, append([]string{"--runtime-endpoint=unix://" + s.Socket, "--ginkgo.focus=" + focus}, flags...)...)
}

// runSpecs runs a program of specs, of which it replaces the one constant that is the digest of somebody's build.
func (s *scene) runSpecs(program, digest string, flags ...string) outcomes {
	s.Helper()
	binary, err := os.ReadFile(program)
	if err != nil {
		s.Fatal(err)
	}
	const theirs = "sha256:9700f9a2f5bf2c45f2f605a0bd3bce7cf37420ec9d3ed50ac2758413308766bf"
	copied := filepath.Join(s.Scratch, "specs")
	if err := os.WriteFile(copied, bytes.ReplaceAll(binary, []byte(theirs), []byte(digest)), 0o755); err != nil {
		s.Fatal(err)
	}
	defer os.Remove(copied)
	config := filepath.Join(s.Scratch, "crictl.yaml") // or each would say that there is none
	if err := os.WriteFile(config, nil, 0o644); err != nil {
		s.Fatal(err)
	}
	defer os.Remove(config)
	report := filepath.Join(s.Scratch, "specs.json")
	defer os.Remove(report)
	cmd := exec.CommandContext(s.ctx, copied, append([]string{"--ginkgo.no-color", "--ginkgo.json-report=" + report}, flags...)...)
	cmd.Dir, cmd.Env = s.Scratch, append(os.Environ(), "CRI_CONFIG_FILE="+config)
	out, err := cmd.CombinedOutput()
	lines := strings.Split(string(out), "\n")
	for _, l := range lines {
		if strings.Contains(l, "[FAIL]") || strings.Contains(l, "Passed") || strings.Contains(l, "[It]") || strings.Contains(l, "[SKIPPED]") {
			s.Log(l)
		}
	}
	r := specsOf(s.T, report)
	if err != nil && len(r.others) == 0 {
		s.Errorf("%s: %v\n%s", filepath.Base(program), err, strings.Join(lines[max(0, len(lines)-80):], "\n"))
	}
	return r
}

// outcomes are what became of the specs of a report.
type outcomes struct {
	all    int // those that are no benchmarks, whether they were asked for or not
	passed int
	others []outcome // that did not pass, and were asked for
}

// outcome is that of one.
type outcome struct {
	state   string
	name    string // with those of the groups that it is in
	message string
}

func (s outcome) String() string { return s.state + ": " + s.name + ": " + s.message }

// specsOf counts the specs of a report that passed, and names those that did not. What a spec skips by itself is what
// we do not do: it has a message then, unlike what was not asked for.
func specsOf(t *testing.T, report string) (all outcomes) {
	t.Helper()
	text, err := os.ReadFile(report)
	if err != nil {
		t.Fatal(err)
	}
	var suites []struct {
		SpecReports []struct {
			LeafNodeText, State     string
			ContainerHierarchyTexts []string
			Failure                 struct{ Message string }
		}
	}
	if err := json.Unmarshal(text, &suites); err != nil {
		t.Fatal(err)
	}
	for _, suite := range suites {
		for _, r := range suite.SpecReports {
			if r.LeafNodeText == "" { // set-up of the suite
				continue
			}
			name := strings.Join(append(r.ContainerHierarchyTexts, r.LeafNodeText), " ")
			if !strings.Contains(name, "benchmark") {
				all.all++
			}
			switch {
			case r.State == "passed":
				all.passed++
			case r.State != "skipped" || r.Failure.Message != "":
				all.others = append(all.others, outcome{r.State, name, r.Failure.Message})
			}
		}
	}
	return all
}
