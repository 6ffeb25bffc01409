// The tests are a package of their own: what they import is not to be initialised before early.
package early_test

import (
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/vitrine-runtime/vitrine/internal/early"
)

const probeEnv = "VITRINE_TEST_EARLY"

// TestFileLimit: what a process was started with, and not what Go has made of it.
func TestFileLimit(t *testing.T) {
	if os.Getenv(probeEnv) != "" {
		if soft, hard := early.FileLimit(); soft != 300 || hard != 400 {
			t.Errorf("%d, %d", soft, hard)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sh", "-c", `ulimit -Sn 300 && ulimit -Hn 400 && exec "$0" -test.run=TestFileLimit -test.v`, self)
	cmd.Env = append(os.Environ(), probeEnv+"=1")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "PASS: TestFileLimit") {
		t.Errorf("%v: %s", err, out)
	}
}
