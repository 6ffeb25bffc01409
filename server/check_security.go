package server

import (
	"math"
	"path"
	"strconv"
	"strings"

	"github.com/moby/sys/capability"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (s *Server) checkPodSecurity(c *runtimeapi.LinuxSandboxSecurityContext) error {
	return first(
		at("namespace_options", s.checkPodNamespaces(c.GetNamespaceOptions())),
		at("selinux_options", checkSELinux(c.GetSelinuxOptions())),
		checkID("run_as_user", c.GetRunAsUser()),
		checkID("run_as_group", c.GetRunAsGroup()),
		checkGroupNeedsUser(c.GetRunAsGroup() != nil, c.GetRunAsUser() != nil),
		checkGroups(c.GetSupplementalGroups()),
		s.checkGroupsPolicy(c.GetSupplementalGroupsPolicy()),
		at("seccomp", checkSeccomp(c.GetSeccomp())),
		at("apparmor", checkAppArmor(c.GetApparmor())),
		checkProfilePath(c.GetSeccompProfilePath()), //nolint:staticcheck // deprecated, and older clients still set it
	)
}

func (s *Server) checkContainerSecurity(c *runtimeapi.LinuxContainerSecurityContext, pod *runtimeapi.LinuxSandboxSecurityContext) error {
	if c.GetPrivileged() && !pod.GetPrivileged() {
		return bad("privileged", "true", "must not be set in a sandbox that is not privileged")
	}
	hasUser := c.GetRunAsUser() != nil || c.GetRunAsUsername() != ""
	return first(
		at("capabilities", checkCapabilities(c.GetCapabilities())),
		at("namespace_options", s.checkContainerNamespaces(c.GetNamespaceOptions(), pod.GetNamespaceOptions())),
		at("selinux_options", checkSELinux(c.GetSelinuxOptions())),
		checkID("run_as_user", c.GetRunAsUser()),
		checkUsername(c.GetRunAsUsername(), c.GetRunAsUser()),
		checkID("run_as_group", c.GetRunAsGroup()),
		checkGroupNeedsUser(c.GetRunAsGroup() != nil, hasUser),
		checkGroups(c.GetSupplementalGroups()),
		s.checkGroupsPolicy(c.GetSupplementalGroupsPolicy()),
		checkPaths("masked_paths", c.GetMaskedPaths()),
		checkPaths("readonly_paths", c.GetReadonlyPaths()),
		at("seccomp", checkSeccomp(c.GetSeccomp())),
		at("apparmor", checkAppArmor(c.GetApparmor())),
		checkAppArmorName(c.GetApparmorProfile()),   //nolint:staticcheck // deprecated, and older clients still set it
		checkProfilePath(c.GetSeccompProfilePath()), //nolint:staticcheck // deprecated, and older clients still set it
	)
}

// checkID: ids are 32 bits, and the highest means "leave as it is" to the kernel.
// A wider number must not be cut down: 1<<32 would become root.
func checkID(field string, v *runtimeapi.Int64Value) error {
	if v == nil {
		return nil
	}
	return at(field, id("value", v.GetValue()))
}

func id(field string, v int64) error {
	if v < 0 || v > math.MaxUint32-1 {
		return badInt(field, v, "must be between 0 and 4294967294")
	}
	return nil
}

func checkGroupNeedsUser(group, user bool) error {
	if group && !user {
		return wrong("run_as_group", "must not be set without run_as_user")
	}
	return nil
}

func checkGroups(groups []int64) error {
	for i, g := range groups {
		if err := id("", g); err != nil {
			return atIndex("supplemental_groups", i, err)
		}
	}
	return nil
}

func (s *Server) checkGroupsPolicy(p runtimeapi.SupplementalGroupsPolicy) error {
	if p != runtimeapi.SupplementalGroupsPolicy_Merge && !s.cfg.Features.SupplementalGroupsPolicy {
		return unsupported("supplemental_groups_policy", "policies other than Merge are")
	}
	return nil
}

// checkUsername: a name of /etc/passwd or a number, never "user:group". With
// run_as_user set as well, that one counts; a number that differs is a
// contradiction that nobody should have to guess about.
func checkUsername(n string, uid *runtimeapi.Int64Value) error {
	const field = "run_as_username"
	err := optional(field, n, atMost(256), singleLine, func(v string) string {
		if strings.ContainsAny(v, ":/ ") {
			return "must not hold ':', '/' or a space"
		}
		return ""
	})
	if err != nil || !digits(n) {
		return err
	}
	v, perr := strconv.ParseInt(n, 10, 64)
	if perr != nil || v > math.MaxUint32-1 {
		return bad(field, n, "must be between 0 and 4294967294")
	}
	if uid != nil && uid.GetValue() != v {
		return bad(field, n, "must not differ from run_as_user")
	}
	return nil
}

// knownCaps has the capabilities that there are, by their names without CAP_.
var knownCaps = func() map[string]bool {
	m := map[string]bool{"ALL": true}
	for _, c := range capability.ListKnown() {
		m[strings.ToUpper(c.String())] = true
	}
	return m
}()

func checkCapabilities(c *runtimeapi.Capability) error {
	return first(
		checkCapList("add_capabilities", c.GetAddCapabilities()),
		checkCapList("drop_capabilities", c.GetDropCapabilities()),
		checkCapList("add_ambient_capabilities", c.GetAddAmbientCapabilities()),
	)
}

// checkCapList refuses unknown names also where they are to be dropped: a
// capability that stays because of a slip of the pen is a hole.
func checkCapList(field string, list []string) error {
	for i, c := range list {
		if !knownCaps[strings.TrimPrefix(strings.ToUpper(c), "CAP_")] {
			return atIndex(field, i, bad("", c, "must be the name of a capability"))
		}
	}
	return nil
}

// checkSELinux: a label is user:role:type:level, so none of the first three may
// bring a colon of its own.
func checkSELinux(o *runtimeapi.SELinuxOption) error {
	word := []rule{atMost(255), chars("-_.")}
	return first(
		optional("user", o.GetUser(), word...),
		optional("role", o.GetRole(), word...),
		optional("type", o.GetType(), word...),
		optional("level", o.GetLevel(), level),
	)
}

// level: s0, s0-s15, s0:c1,c3.c9 or s0:c0-s15:c0.c1023.
func level(v string) string {
	const must = "must be an MLS level as s0:c1,c2"
	low, high, ranged := strings.Cut(v, "-")
	if !oneLevel(low) || ranged && !oneLevel(high) {
		return must
	}
	return ""
}

func oneLevel(v string) bool {
	sens, cats, has := strings.Cut(v, ":")
	if !numbered(sens, 's') || has && cats == "" {
		return false
	}
	if !has {
		return true
	}
	for c := range strings.SplitSeq(cats, ",") {
		from, to, ranged := strings.Cut(c, ".")
		if !numbered(from, 'c') || ranged && !numbered(to, 'c') {
			return false
		}
	}
	return true
}

func numbered(v string, letter byte) bool {
	return len(v) > 1 && len(v) < 6 && v[0] == letter && digits(v[1:])
}

func checkSeccomp(p *runtimeapi.SecurityProfile) error {
	if err := checkRefGoesWithLocalhost(p); err != nil {
		return err
	}
	return optional("localhost_ref", p.GetLocalhostRef(), absolute, noParent, singleLine, pathMax)
}

func checkAppArmor(p *runtimeapi.SecurityProfile) error {
	if err := checkRefGoesWithLocalhost(p); err != nil {
		return err
	}
	return optional("localhost_ref", p.GetLocalhostRef(), singleLine, pathMax)
}

func checkRefGoesWithLocalhost(p *runtimeapi.SecurityProfile) error {
	const field = "localhost_ref"
	localhost := p.GetProfileType() == runtimeapi.SecurityProfile_Localhost
	switch {
	case localhost && p.GetLocalhostRef() == "":
		return missing(field)
	case !localhost && p.GetLocalhostRef() != "":
		return bad(field, p.GetLocalhostRef(), "must be empty unless profile_type is Localhost")
	}
	return nil
}

// checkProfilePath is the older way to name a seccomp profile.
func checkProfilePath(v string) error {
	return checkLegacyProfile("seccomp_profile_path", v, absolute, noParent, singleLine)
}

// checkAppArmorName is the older way to name an AppArmor profile.
func checkAppArmorName(v string) error {
	return checkLegacyProfile("apparmor_profile", v, required, singleLine)
}

func checkLegacyProfile(field, v string, ref ...rule) error {
	switch v {
	case "", "runtime/default", "unconfined":
		return nil
	}
	p, ok := strings.CutPrefix(v, "localhost/")
	if !ok {
		return bad(field, v, "must be runtime/default, unconfined or localhost/...")
	}
	for _, r := range ref {
		if must := r(p); must != "" {
			return bad(field, v, must+" behind localhost/")
		}
	}
	return nil
}

// checkPaths is for paths that are masked or made read-only in the container.
func checkPaths(field string, paths []string) error {
	for i, p := range paths {
		err := text("", p, absolute, notRoot, noParent, pathMax)
		if err == nil && path.Clean(p) == "/proc" {
			err = bad("", p, "must not be /proc itself")
		}
		if err != nil {
			return atIndex(field, i, err)
		}
	}
	return nil
}
