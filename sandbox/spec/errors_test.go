package spec

import (
	"errors"
	"fmt"
	"testing"
)

// TestInConfig: the path of a field has the request's part once, and what is not in the request has none.
func TestInConfig(t *testing.T) {
	for field, want := range map[string]string{
		"linux.sysctls":       `config.linux.sysctls "x": bad`,
		"config.mounts":       `config.mounts "x": bad`,
		"image.working_dir":   `image.working_dir "x": bad`,
		"mounts[0].host_path": `config.mounts[0].host_path "x": bad`,
	} {
		if got := InConfig(InConfig(Invalid(field, "x", "bad"))); got.Error() != want || !errors.Is(got, ErrInvalid) {
			t.Errorf("%s: %v", field, got)
		}
	}
	other := fmt.Errorf("mount: %w", errors.ErrUnsupported)
	if InConfig(nil) != nil || !errors.Is(InConfig(other), other) {
		t.Error("what names no field was changed")
	}
}
