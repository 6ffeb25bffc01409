package machine

import "testing"

// An unknown QEMU counts as an old one: one thread is slow, two kill the guest.
func TestPatchesSafely(t *testing.T) {
	for version, want := range map[string]bool{
		"QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c)": false,
		"QEMU emulator version 8.0.5":                         false,
		"QEMU emulator version 8.1.0":                         true,
		"QEMU emulator version 10.0.11 (Debian 1:10.0.11+ds)": true,
		"":        false,
		"qemu 11": false,
	} {
		if got := patchesSafely(version); got != want {
			t.Errorf("%q: %v, want %v", version, got, want)
		}
	}
}
