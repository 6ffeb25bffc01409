package matrix

import "testing"

// TestNamedBy: a text names a field by the whole of its path, and not by a word that stands somewhere in it.
func TestNamedBy(t *testing.T) {
	for _, c := range []struct {
		field, text string
		named       bool
	}{
		{"config.mounts.image.image", "config.mounts[3].image.image: must be set", true},
		{"config.mounts.image.image", `pull image "x": not found`, false},
		{"config.mounts", "config.mounts[0].host_path: must be set", true},
		{"config.mounts.host_path", "config.mounts: must be set", false},
		{"config.linux.sysctls", `ImageVolumeMountFailed: config.linux.sysctls["a]b\"c"]: must be one line`, true},
		{"config.linux.sysctls", `config.linux.sysctls["` + "aaa" + `"...]: must be one line`, true},
		{"linux.cpu_quota", "config.linux.cpu_quota: must be positive", false},
		{"user", "users: must be set", false},
		{"cmd", "cmd[0]: must be set", true},
		{"config.linux.resources.cpu_period", "config.linux.resources.cpu_quota: must not be set without cpu_period", true},
		{"config.linux.resources.cpu_period", "config.linux.overhead.cpu_quota: must not be set without cpu_period", false},
		{"config.mounts.uidMappings.length", "config.mounts[0].uidMappings: must be that of the sandbox", true},
		{"config.mounts.uidMappings.length", "config.mounts[0]: must be that of the sandbox", false},
	} {
		if got := NamedBy(Mutation{Field: c.field}, c.text); got != c.named {
			t.Errorf("%s by %q: %v", c.field, c.text, got)
		}
	}
}
