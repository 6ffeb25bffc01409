package sandbox

import (
	"bytes"
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// defaultAppArmor is the name of the profile in appArmorText.
const defaultAppArmor = "vitrine-default"

//go:embed apparmor.profile
var appArmorText []byte

// loadedProfiles has a line for each profile that the kernel has.
const loadedProfiles = "/sys/kernel/security/apparmor/profiles"

// parserTime is how long the compiler of profiles may take; on an emulated machine it takes seconds.
const parserTime = 30 * time.Second

// appArmor is AppArmor on this node.
type appArmor struct {
	missing error // why there is no default profile
}

// openAppArmor loads the default profile where the kernel has AppArmor. A note in dir, which does not outlive a boot, tells
// the next daemon that it need not: to compile a profile takes longer than everything else at a start.
func openAppArmor(ctx context.Context, h *spec.Host, dir string) appArmor {
	if !h.AppArmor {
		return appArmor{errors.New("this kernel has no AppArmor, or it is off")}
	}
	note, sum := filepath.Join(dir, "apparmor-default"), fmt.Sprintf("%x", sha256.Sum256(appArmorText))
	if text, err := os.ReadFile(note); err == nil && string(text) == sum && profileLoaded(defaultAppArmor) == nil {
		return appArmor{}
	}
	err := loadProfile(ctx, appArmorText)
	if err == nil {
		err = os.WriteFile(note, []byte(sum), 0o600) // half of it says nothing
	}
	if err != nil {
		klog.ErrorS(err, "No default AppArmor profile: containers that ask for none have none, and those that ask for the default are refused")
	}
	return appArmor{err}
}

// loadProfile compiles a profile and gives it to the kernel, in the place of one of the same name.
func loadProfile(ctx context.Context, text []byte) error {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		if parser, err = exec.LookPath("/usr/sbin/apparmor_parser"); err != nil {
			return errors.New("apparmor_parser is not installed")
		}
	}
	ctx, cancel := context.WithTimeout(ctx, parserTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, parser, "--replace", "--skip-cache")
	cmd.Stdin, cmd.WaitDelay = bytes.NewReader(text), time.Second
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("apparmor_parser: %w: %.500s", err, bytes.TrimSpace(out))
	}
	return nil
}

// profile returns the name of the profile that a container is to run under, "" for none.
func (a appArmor) profile(c *runtimeapi.ContainerConfig, h spec.Host) (string, error) {
	want, err := spec.AppArmorOf(c, h)
	switch {
	case err != nil:
		return "", err
	case want.Profile != "":
		if err := profileLoaded(want.Profile); err != nil {
			return "", fmt.Errorf("config.%s %.256q: %w: %w", want.Field, want.Profile, err, ErrState)
		}
		return want.Profile, nil
	case want.Default && a.missing == nil:
		return defaultAppArmor, nil
	case want.Default && want.Field != "":
		return "", fmt.Errorf("config.%s: there is no default profile: %w: %w", want.Field, a.missing, ErrState)
	}
	return "", nil
}

// profileLoaded is nil for a profile that the kernel has, and where it does not say: then it will when the profile is used.
func profileLoaded(name string) error {
	text, err := os.ReadFile(loadedProfiles)
	if err != nil {
		return nil //nolint:nilerr // see above
	}
	for line := range strings.Lines(string(text)) { // name (mode)
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == name {
			return nil
		}
	}
	return errors.New("no such profile is loaded")
}
