package spec

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkAppArmor judges an AppArmor profile. Unconfined is what every process gets for now. RuntimeDefault
// on a node without AppArmor means "the default of this runtime here", which is none; where the kernel has
// AppArmor it would be a silent loss of protection and is refused. A named profile is refused always.
func checkAppArmor(field string, p *runtimeapi.SecurityProfile, enabled bool) error {
	if p == nil {
		return nil
	}
	ref := p.GetLocalhostRef()
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_RuntimeDefault:
		if ref != "" {
			return Invalid(field+".localhost_ref", ref, "set for a profile that is not Localhost")
		}
		if enabled && p.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
			return Unimplemented(field, "RuntimeDefault", "AppArmor profiles are not applied yet")
		}
		return nil
	case runtimeapi.SecurityProfile_Localhost:
		if ref == "" {
			return Invalid(field+".localhost_ref", "", "empty for a Localhost profile")
		}
		if !enabled {
			return Invalid(field, ref, "AppArmor is not enabled on this node")
		}
		return Unimplemented(field, ref, "AppArmor profiles are not applied yet")
	}
	return Invalid(field+".profile_type", itoa(int64(p.GetProfileType())), "unknown profile type")
}

// checkAppArmorString judges the deprecated string form: runtime/default, unconfined, localhost/<name>.
func checkAppArmorString(v string, enabled bool) error {
	const field = "linux.security_context.apparmor_profile"
	p := &runtimeapi.SecurityProfile{}
	switch name, local := strings.CutPrefix(v, "localhost/"); {
	case v == "":
		return nil
	case v == "unconfined":
		p.ProfileType = runtimeapi.SecurityProfile_Unconfined
	case v == "runtime/default":
		p.ProfileType = runtimeapi.SecurityProfile_RuntimeDefault
	case local:
		p.ProfileType, p.LocalhostRef = runtimeapi.SecurityProfile_Localhost, name
	default:
		return Invalid(field, v, "neither runtime/default nor unconfined nor localhost/<profile>")
	}
	return checkAppArmor(field, p, enabled)
}
