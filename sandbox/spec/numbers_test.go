package spec

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/nri/pkg/api"
)

// TestPluginNumbers: what a request may not write a plugin may not write either, and is named by the field that it did it in.
func TestPluginNumbers(t *testing.T) {
	for v, fine := range map[string]bool{
		"max": true, "0": true, "-0": true, "-5": true, "50.00": true, "0.50": true, "0-3,7": true, "50000 100000": true, "default 200": true, "mlx4_0 hca_handle=2": true,
		"8:0 rbps=max wiops=120": true, "8:0 rbps=0": true, "drm/0000:03:00.0/vram0 1048576": true, "sev-01 1": true, "-": true, "a=": true, "": true,
		"0100": false, "00": false, "+5": false, "50000 0x10000": false, "0X1": false, "08:0 rbps=1": false, "-010": false, "-+5": false, "-0x5": false,
		"mlx4_0 hca_handle=010": false, "8:0 rbps=+1": false, "8:0 rbps=0x10": false, "8:0 rbps=-010": false, "0-07": false, "1,010": false,
	} {
		_, err := PluginResources("linux.resources.", &api.LinuxResources{Unified: map[string]string{"memory.high": "max", "io.max": v}})
		const field = `linux.resources.unified["io.max"]`
		if fine && err != nil {
			t.Errorf("%q: %v", v, err)
		}
		var f *FieldError
		if !fine && (!errors.As(err, &f) || !errors.Is(err, ErrInvalid) || f.Field != field || f.Value != v || !strings.Contains(f.Problem, "octal")) {
			t.Errorf("%q: %v", v, err)
		}
	}
}
