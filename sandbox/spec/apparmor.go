package spec

import (
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// localhostPrefix is in front of a name in the older field; kubelets put it into the newer one, too.
const localhostPrefix = "localhost/"

// AppArmor is the profile that a container is to run under. The zero value is none.
type AppArmor struct {
	Field   string // of the request that names it, "" where nothing was said
	Profile string // the name of one that the node has, "" for none or the default one
	Default bool   // the runtime's default one
}

// AppArmorOf chooses a container's profile. Who says nothing gets the default one, as with other runtimes; privileged containers get
// none but one that is named. Whether a profile is loaded is the node's to say.
func AppArmorOf(c *runtimeapi.ContainerConfig, h Host) (AppArmor, error) {
	sc := security(c)
	a := AppArmor{Field: "linux.security_context.apparmor"}
	p := sc.GetApparmor()
	if p == nil {
		a.Field = "linux.security_context.apparmor_profile"
		var err error
		//nolint:staticcheck // deprecated, but kubelets still send it and critest tries it
		if p, err = legacyAppArmor(a.Field, sc.GetApparmorProfile()); err != nil {
			return AppArmor{}, err
		}
	}
	if err := checkAppArmor(a.Field, p, h.AppArmor); err != nil {
		return AppArmor{}, err
	}
	switch kind := p.GetProfileType(); {
	case !h.AppArmor:
		return AppArmor{}, nil
	case p != nil && kind == runtimeapi.SecurityProfile_Localhost:
		a.Profile = strings.TrimPrefix(p.GetLocalhostRef(), localhostPrefix)
	case p != nil && kind == runtimeapi.SecurityProfile_Unconfined, sc.GetPrivileged():
		return AppArmor{}, nil
	case p == nil:
		return AppArmor{Default: true}, nil
	default:
		a.Default = true
	}
	return a, nil
}

// checkAppArmor judges an AppArmor profile, nil included. RuntimeDefault on a node without AppArmor means "the default of this runtime
// here", which is none.
func checkAppArmor(field string, p *runtimeapi.SecurityProfile, enabled bool) error {
	ref := p.GetLocalhostRef()
	switch p.GetProfileType() {
	case runtimeapi.SecurityProfile_Unconfined, runtimeapi.SecurityProfile_RuntimeDefault:
		if ref != "" {
			return Invalid(field+".localhost_ref", ref, "set for a profile that is not Localhost")
		}
		return nil
	case runtimeapi.SecurityProfile_Localhost:
		if strings.TrimPrefix(ref, localhostPrefix) == "" {
			return Invalid(field+".localhost_ref", ref, "names no profile")
		}
		if !enabled {
			return Invalid(field, ref, "AppArmor is not enabled on this node")
		}
		return nil
	}
	return Invalid(field+".profile_type", itoa(int64(p.GetProfileType())), "unknown profile type")
}

// legacyAppArmor reads the deprecated string form: runtime/default, unconfined, localhost/<name>; nil for "".
func legacyAppArmor(field, v string) (*runtimeapi.SecurityProfile, error) {
	switch name, local := strings.CutPrefix(v, localhostPrefix); {
	case v == "":
		return nil, nil
	case v == "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}, nil
	case v == "runtime/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case local:
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: name}, nil
	}
	return nil, Invalid(field, v, "neither runtime/default nor unconfined nor localhost/<profile>")
}
