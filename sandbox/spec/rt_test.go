package spec

import (
	"errors"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRT02NumbersAreNoNames is CVE-2016-3697: a user id was looked up as a name,
// and the image's passwd made of it what it liked.
func TestRT02NumbersAreNoNames(t *testing.T) {
	const passwd = "root:x:0:0::/root:/bin/sh\n1000:x:0:0::/:/bin/sh\n+1:x:0:0::/:/bin/sh\n0x3e8:x:0:0::/:/bin/sh\n1000 :x:0:0::/:/bin/sh\n7:x:7:70::/seven:/bin/sh\n"
	const group = "1000:x:0:\n50:x:0:1000\nstaff:x:51:1000\n"
	for _, tt := range []struct {
		image    string
		sc       *runtimeapi.LinuxContainerSecurityContext
		uid, gid uint32
	}{
		{image: "1000", uid: 1000},
		{image: "1000:1000", uid: 1000, gid: 1000},
		{image: "1000:50", uid: 1000, gid: 50},
		{sc: &runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(1000)}, uid: 1000},
		{image: "root", sc: &runtimeapi.LinuxContainerSecurityContext{RunAsUser: id(1000), RunAsGroup: id(50)}, uid: 1000, gid: 50},
		{image: "7", uid: 7, gid: 70}, // a name that is its own number: the entry is the number's
	} {
		u, err := ResolveUser(UserRequest{Image: tt.image, Security: tt.sc}, strings.NewReader(passwd), strings.NewReader(group))
		if err != nil || u.UID != tt.uid || u.GID != tt.gid {
			t.Errorf("%q %v: %+v, %v", tt.image, tt.sc, u, err)
		}
		for _, g := range u.Groups {
			if g == 51 || g == 0 && tt.gid != 0 {
				t.Errorf("%q %v: groups %v of somebody with a name", tt.image, tt.sc, u.Groups)
			}
		}
	}
}

// TestRT18NobodyIsRootByMistake is CVE-2026-30892: what is not quite a user is
// refused, or is exactly who it says; it is never root because nothing else was
// understood.
func TestRT18NobodyIsRootByMistake(t *testing.T) {
	const passwd = "root:x:0:0::/root:/bin/sh\none:x:1:1::/:/bin/sh\n"
	for _, tt := range []struct {
		user string
		uid  int64 // -1: refused
		gid  int64
	}{
		{"1", 1, 1}, {"1:", 1, 1}, {"1:1", 1, 1}, {"1:2", 1, 2}, {"0:0", 0, 0}, {"root", 0, 0}, {"one", 1, 1},
		{":1", -1, 0}, {":", -1, 0}, {"+1", -1, 0}, {" 1", -1, 0}, {"1 ", -1, 0}, {"0x1", -1, 0}, {"١", -1, 0}, {"1.0", -1, 0}, {"1e3", -1, 0}, {"-1", -1, 0}, {"-0", -1, 0}, {"\t", -1, 0},
		{"4294967295", -1, 0}, {"4294967296", -1, 0}, {"18446744073709551616", -1, 0}, {"99999999999999999999999", -1, 0}, {"1:4294967296", -1, 0}, {"1:-1", -1, 0}, {"1: 1", -1, 0},
		{"1:1:1", -1, 0}, {"1\x00", -1, 0}, {"nobody-here", -1, 0}, {"1\n", -1, 0},
		{"00001", 1, 1}, {"4294967294", 4294967294, 0},
	} {
		u, err := ResolveUser(UserRequest{Image: tt.user}, strings.NewReader(passwd), strings.NewReader("root:x:0:\n"))
		switch {
		case tt.uid < 0 && !errors.Is(err, ErrInvalid):
			t.Errorf("image user %q: %+v, %v", tt.user, u, err)
		case tt.uid >= 0 && (err != nil || int64(u.UID) != tt.uid || int64(u.GID) != tt.gid):
			t.Errorf("image user %q: %+v, %v", tt.user, u, err)
		}
		if strings.Contains(tt.user, ":") || tt.user == "" {
			continue
		}
		sc := &runtimeapi.LinuxContainerSecurityContext{RunAsUsername: tt.user}
		if u, err := ResolveUser(UserRequest{Image: "one", Security: sc}, strings.NewReader(passwd), nil); tt.uid < 0 && err == nil || err == nil && int64(u.UID) != tt.uid {
			t.Errorf("run_as_username %q: %+v, %v", tt.user, u, err)
		}
	}
}
