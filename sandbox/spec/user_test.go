package spec

import (
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const passwdFile = `root:x:0:0:root:/root:/bin/sh
# comment
+nis
app:x:1000:1001::/home/app:/bin/sh
short:x
big:x:4294967295:0::/:/bin/sh
wrap:x:4294967296:0::/:/bin/sh
word:x:abc:0::/:/bin/sh
123:x:5:5::/trap:/bin/sh
`

const groupFile = `root:x:0:
app:x:1001:
extra:x:50000:app,other
bad:x:4294967296:app
staff:x:50:other
`

func id(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }

func TestResolveUser(t *testing.T) {
	type sec = runtimeapi.LinuxContainerSecurityContext
	for _, c := range []struct {
		name  string
		image string
		sc    *sec
		want  User
		bad   string // field of the refusal
	}{
		{name: "nobody says anything", want: User{Home: "/root", Groups: []uint32{0}}},
		{name: "image name", image: "app", want: User{UID: 1000, GID: 1001, Groups: []uint32{1001, 50000}, Home: "/home/app"}},
		{name: "image uid:gid", image: "1000:7", want: User{UID: 1000, GID: 7, Groups: []uint32{7, 50000}, Home: "/home/app"}},
		{name: "image uid:group", image: "2000:staff", want: User{UID: 2000, GID: 50, Groups: []uint32{50}, Home: "/"}},
		{name: "digits are never a name", image: "123", want: User{UID: 123, Groups: []uint32{0}, Home: "/"}},
		{name: "image three parts", image: "a:b:c", bad: "image.user"},
		{name: "image overflow", image: "4294967296", bad: "image.user"},
		{name: "image no change id", image: "4294967295", bad: "image.user"},
		{name: "image negative", image: "-1", bad: "image.user"},
		{name: "unusable line", image: "wrap", bad: "image.user"},
		{name: "no number in line", image: "word", bad: "image.user"},
		{name: "unknown group", image: "app:nope", bad: "image.user"},
		{name: "uid", image: "app", sc: &sec{RunAsUser: id(0)}, want: User{Home: "/root", Groups: []uint32{0}}},
		{name: "uid drops the image's group", image: "app:staff", sc: &sec{RunAsUser: id(3000)}, want: User{UID: 3000, Groups: []uint32{0}, Home: "/"}},
		{name: "uid largest", sc: &sec{RunAsUser: id(maxID)}, want: User{UID: maxID, Groups: []uint32{0}, Home: "/"}},
		{name: "uid too large", sc: &sec{RunAsUser: id(1 << 32)}, bad: "linux.security_context.run_as_user"},
		{name: "uid negative", sc: &sec{RunAsUser: id(-1)}, bad: "linux.security_context.run_as_user"},
		{name: "name", sc: &sec{RunAsUsername: "app"}, want: User{UID: 1000, GID: 1001, Groups: []uint32{1001, 50000}, Home: "/home/app"}},
		{name: "name unknown", sc: &sec{RunAsUsername: "ghost"}, bad: "linux.security_context.run_as_username"},
		{name: "name with colon", sc: &sec{RunAsUsername: "0:0"}, bad: "linux.security_context.run_as_username"},
		{name: "name and uid differ", sc: &sec{RunAsUser: id(5), RunAsUsername: "app"}, bad: "linux.security_context.run_as_user"},
		{name: "gid alone", sc: &sec{RunAsGroup: id(5)}, bad: "linux.security_context.run_as_group"},
		{name: "gid wraps", sc: &sec{RunAsUser: id(1), RunAsGroup: id(1 << 32)}, bad: "linux.security_context.run_as_group"},
		{name: "gid", sc: &sec{RunAsUser: id(1000), RunAsGroup: id(7)}, want: User{UID: 1000, GID: 7, Groups: []uint32{7, 50000}, Home: "/home/app"}},
		{name: "merge", image: "app", sc: &sec{SupplementalGroups: []int64{1234, 50000}}, want: User{UID: 1000, GID: 1001, Groups: []uint32{1001, 1234, 50000}, Home: "/home/app"}},
		{name: "strict", image: "app", sc: &sec{SupplementalGroups: []int64{1234}, SupplementalGroupsPolicy: runtimeapi.SupplementalGroupsPolicy_Strict},
			want: User{UID: 1000, GID: 1001, Groups: []uint32{1001, 1234}, Home: "/home/app"}},
		{name: "policy", sc: &sec{SupplementalGroupsPolicy: 99}, bad: "linux.security_context.supplemental_groups_policy"},
		{name: "group wraps", sc: &sec{SupplementalGroups: []int64{1 << 32}}, bad: "linux.security_context.supplemental_groups[0]"},
	} {
		got, err := ResolveUser(UserRequest{Security: c.sc, Image: c.image}, strings.NewReader(passwdFile), strings.NewReader(groupFile))
		var fe *FieldError
		switch {
		case c.bad != "" && (!errors.As(err, &fe) || fe.Field != c.bad || !errors.Is(err, ErrInvalid)):
			t.Errorf("%s: want a refusal of %s, got %v", c.name, c.bad, err)
		case c.bad == "" && err != nil:
			t.Errorf("%s: %v", c.name, err)
		case c.bad == "" && !reflect.DeepEqual(got, c.want):
			t.Errorf("%s: got %+v, want %+v", c.name, got, c.want)
		}
	}
}

func TestResolveUserWithoutFiles(t *testing.T) {
	got, err := ResolveUser(UserRequest{Image: "1000:1000"}, nil, nil)
	if err != nil || got.UID != 1000 || got.GID != 1000 || got.Home != "/" {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := ResolveUser(UserRequest{Image: "app"}, nil, nil); !errors.Is(err, ErrInvalid) {
		t.Errorf("a name without a passwd file: %v", err)
	}
}

// endless never ends and never has a newline.
type endless struct{ line string }

func (e endless) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = e.line[i%len(e.line)]
	}
	return len(p), nil
}

func TestAccountBounds(t *testing.T) {
	for what, r := range map[string]io.Reader{
		"a line without end":  endless{"x"},
		"a file of all lines": endless{"a:x:1:1::/:/bin/sh\n"},
	} {
		if _, err := ResolveUser(UserRequest{}, r, nil); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", what, err)
		}
	}
}

func TestTooManyGroups(t *testing.T) {
	var groups []int64
	for g := range int64(70_000) {
		groups = append(groups, g)
	}
	_, err := ResolveUser(UserRequest{Security: &runtimeapi.LinuxContainerSecurityContext{SupplementalGroups: groups}}, nil, nil)
	if !errors.Is(err, ErrInvalid) {
		t.Errorf("70,000 groups: %v", err)
	}
}

func FuzzResolveUser(f *testing.F) {
	f.Add(passwdFile, groupFile, "app:staff")
	f.Fuzz(func(t *testing.T, passwd, group, image string) {
		u, err := ResolveUser(UserRequest{Image: image}, strings.NewReader(passwd), strings.NewReader(group))
		if err == nil && (u.UID > maxID || u.GID > maxID || len(u.Groups) == 0) {
			t.Fatalf("%+v", u)
		}
	})
}
