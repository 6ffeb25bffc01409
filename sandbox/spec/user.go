package spec

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxID is the largest user or group id: 2^32-1 means "no change" to the kernel. Ids are kept as int64
// until they were compared with it; a conversion before that would make 1<<32 root (CVE-2024-40635).
const maxID = 1<<32 - 2

// maxGroups is the kernel's NGROUPS_MAX.
const maxGroups = 65536

// User is who the first process runs as.
type User struct {
	UID, GID uint32
	Groups   []uint32 // supplementary groups, sorted, the primary group among them
	Home     string   // from passwd; "/" where it has no entry
}

// UserRequest holds what the request and the image say about the user.
type UserRequest struct {
	Security *runtimeapi.LinuxContainerSecurityContext // may be nil
	Image    string                                    // USER of the image: user[:group], names or numbers
}

// ResolveUser finds the user, the group and the supplementary groups. passwd and group are /etc/passwd and
// /etc/group of the container's own root file system, or nil where it has none; the caller bounds them.
// Nothing of the host's user database is looked at.
//
// A run_as_user that passwd does not know is fine and has group 0; a name that passwd does not know is an
// error, and so is run_as_group without a user. What looks like a number is never looked up as a name.
func ResolveUser(req UserRequest, passwd, group io.Reader) (User, error) {
	want, err := wantedUser(req)
	if err != nil {
		return User{}, err
	}
	entries, err := parseAccounts(passwd, "passwd", 7)
	if err != nil {
		return User{}, err
	}
	groups, err := parseAccounts(group, "group", 4)
	if err != nil {
		return User{}, err
	}
	u, name, err := want.lookUp(entries, groups)
	if err != nil {
		return User{}, err
	}
	return u, u.addGroups(req.Security, name, groups)
}

// wanted is a user specification before it is looked up.
type wanted struct {
	field       string
	user, group string // name or number, "" for none
}

func wantedUser(req UserRequest) (wanted, error) {
	const field = "linux.security_context."
	sc := req.Security
	w := wanted{field: "image.user"}
	w.user, w.group, _ = strings.Cut(req.Image, ":")
	if strings.Contains(w.group, ":") || w.user == "" && req.Image != "" { // ":1" is not root with group 1
		return w, Invalid(w.field, req.Image, "not of the form user[:group]")
	}
	if n := sc.GetRunAsUsername(); n != "" {
		if strings.ContainsAny(n, ":\n\r\x00") {
			return w, Invalid(field+"run_as_username", n, "not a user name")
		}
		w = wanted{field: field + "run_as_username", user: n}
	}
	if v := sc.GetRunAsUser(); v != nil {
		if sc.GetRunAsUsername() != "" && sc.GetRunAsUsername() != itoa(v.GetValue()) {
			return w, Invalid(field+"run_as_user", itoa(v.GetValue()), "set together with run_as_username %q", cut(sc.GetRunAsUsername()))
		}
		if v.GetValue() < 0 || v.GetValue() > maxID {
			return w, Invalid(field+"run_as_user", itoa(v.GetValue()), "outside 0..%d", int64(maxID))
		}
		w = wanted{field: field + "run_as_user", user: itoa(v.GetValue())}
	}
	if v := sc.GetRunAsGroup(); v != nil {
		if sc.GetRunAsUser() == nil && sc.GetRunAsUsername() == "" {
			return w, Invalid(field+"run_as_group", itoa(v.GetValue()), "set without run_as_user or run_as_username")
		}
		if v.GetValue() < 0 || v.GetValue() > maxID {
			return w, Invalid(field+"run_as_group", itoa(v.GetValue()), "outside 0..%d", int64(maxID))
		}
		w.group = itoa(v.GetValue())
	}
	return w, nil
}

// lookUp returns the user and the name under which group lists it.
func (w wanted) lookUp(passwd, group []account) (u User, name string, err error) {
	u.Home = "/"
	user := w.user
	if user == "" {
		user = "0"
	}
	id, numeric, err := number(w.field, user)
	if err != nil {
		return u, "", err
	}
	i := slices.IndexFunc(passwd, func(a account) bool {
		return a.idOK && (numeric && a.id == id || !numeric && a.name == user)
	})
	switch {
	case i >= 0:
		e := passwd[i]
		u.UID, name = uint32(e.id), e.name
		if e.home != "" {
			u.Home = e.home
		}
		if e.gidOK {
			u.GID = uint32(e.gid)
		}
	case numeric:
		u.UID = uint32(id)
	default:
		return u, "", Invalid(w.field, user, "no such user in the image's /etc/passwd")
	}
	if w.group == "" {
		return u, name, nil
	}
	gid, numeric, err := number(w.field, w.group)
	if err != nil {
		return u, "", err
	}
	if !numeric {
		i := slices.IndexFunc(group, func(a account) bool { return a.idOK && a.name == w.group })
		if i < 0 {
			return u, "", Invalid(w.field, w.group, "no such group in the image's /etc/group")
		}
		gid = group[i].id
	}
	u.GID = uint32(gid)
	return u, name, nil
}

// addGroups computes the supplementary groups. Merge adds those in which the image's /etc/group lists the
// user; Strict takes the request's alone. The primary group is always among them.
func (u *User) addGroups(sc *runtimeapi.LinuxContainerSecurityContext, name string, group []account) error {
	const field = "linux.security_context."
	u.Groups = []uint32{u.GID}
	switch p := sc.GetSupplementalGroupsPolicy(); p {
	case runtimeapi.SupplementalGroupsPolicy_Merge:
		for _, g := range group {
			if name != "" && g.idOK && slices.Contains(g.members, name) {
				u.Groups = append(u.Groups, uint32(g.id))
			}
		}
	case runtimeapi.SupplementalGroupsPolicy_Strict:
	default:
		return Invalid(field+"supplemental_groups_policy", itoa(int64(p)), "unknown policy")
	}
	for i, g := range sc.GetSupplementalGroups() {
		if g < 0 || g > maxID {
			return Invalid(fmt.Sprintf("%ssupplemental_groups[%d]", field, i), itoa(g), "outside 0..%d", int64(maxID))
		}
		u.Groups = append(u.Groups, uint32(g))
	}
	slices.Sort(u.Groups)
	u.Groups = slices.Compact(u.Groups)
	if len(u.Groups) > maxGroups {
		return Invalid(field+"supplemental_groups", "", "%d groups are more than the kernel's %d", len(u.Groups), maxGroups)
	}
	return nil
}

// number parses what consists of digits only. Anything else is a name.
func number(field, s string) (id int64, numeric bool, err error) {
	if strings.Trim(s, "0123456789") != "" {
		if strings.HasPrefix(s, "-") || strings.HasPrefix(s, "+") {
			return 0, false, Invalid(field, s, "neither an id nor a name")
		}
		return 0, false, nil
	}
	id, err = strconv.ParseInt(s, 10, 64)
	if err != nil || id > maxID {
		return 0, true, Invalid(field, s, "outside 0..%d", int64(maxID))
	}
	return id, true, nil
}

// applyUser writes the resolved user.
func applyUser(in *Input, s *specs.Spec) error {
	umask := uint32(0o022)
	s.Process.User = specs.User{
		UID: in.User.UID, GID: in.User.GID, Umask: &umask, AdditionalGids: in.User.Groups,
	}
	return nil
}
