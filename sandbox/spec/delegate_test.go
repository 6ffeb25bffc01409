package spec

import (
	"errors"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestWritableCgroup(t *testing.T) {
	for _, c := range []struct {
		value   string
		allowed bool
		yes, no []string // containers; none in both: refused
	}{
		{"main", true, []string{"main"}, []string{"other", "*", ""}},
		{"a, b", true, []string{"a", "b"}, []string{"a, b", "c"}},
		{"*", true, []string{"a", "main"}, nil},
		{"main", false, nil, nil},
		{"", true, nil, nil},
		{"a,,b", true, nil, nil},
	} {
		cfg := &runtimeapi.PodSandboxConfig{Annotations: map[string]string{WritableCgroup: c.value}}
		p := &Pod{}
		err := podDelegation(p, cfg, Host{Handler: Handler{WritableCgroup: c.allowed}})
		if c.yes == nil && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), WritableCgroup)) {
			t.Errorf("%q: %v", c.value, err)
		}
		if c.yes != nil && err != nil {
			t.Errorf("%q: %v", c.value, err)
		}
		if i := slices.IndexFunc(c.yes, func(n string) bool { return !p.DelegatesCgroup(n) }); i >= 0 {
			t.Errorf("%q does not name %q", c.value, c.yes[i])
		}
		if i := slices.IndexFunc(c.no, p.DelegatesCgroup); i >= 0 {
			t.Errorf("%q names %q", c.value, c.no[i])
		}
	}
}
