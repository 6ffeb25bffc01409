package server

import (
	"encoding/base64"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkPullImage checks a PullImageRequest. The sandbox config may be missing: the
// kubelet sends it only as background.
func (s *Server) checkPullImage(r *runtimeapi.PullImageRequest) error {
	err := first(
		shape(r),
		at("image", s.checkImage(r.GetImage())),
		at("auth", checkAuth(r.GetAuth())),
	)
	if err == nil && r.GetSandboxConfig().GetMetadata() != nil {
		err = at("sandbox_config.metadata", checkPodMetadata(r.GetSandboxConfig().GetMetadata()))
	}
	return err
}

// checkImage: the name has to be there and can be a name. Its grammar is the image
// store's, which has to know registries and short names anyway.
func (s *Server) checkImage(i *runtimeapi.ImageSpec) error {
	return first(
		text("image", i.GetImage(), required, reference),
		optional("user_specified_image", i.GetUserSpecifiedImage(), reference), // a signature policy may be about it
		s.checkHandler("runtime_handler", i.GetRuntimeHandler()),
		checkLabels("annotations", i.GetAnnotations()),
	)
}

// maxReference is far above what registries accept (255 for a name, 128 for a tag).
const maxReference = 1024

// reference refuses what no image reference is, and what is something else to the
// libraries below: a transport (docker://), a path, an option.
func reference(v string) string {
	for _, r := range []rule{atMost(maxReference), chars("-_.:/@[]+"), noParent} {
		if must := r(v); must != "" {
			return must
		}
	}
	switch {
	case strings.Contains(v, "://"):
		return "must be an image name without a scheme"
	case !alnum(v[0]) && v[0] != '[':
		return "must begin with a letter or a digit"
	case strings.HasPrefix(v, "sha256:") && !hexDigest(v[len("sha256:"):]):
		return "must have 64 lower case hex digits behind sha256:"
	}
	if _, digest, ok := strings.Cut(v, "@sha256:"); ok && !hexDigest(digest) {
		return "must have 64 lower case hex digits behind sha256:"
	}
	return ""
}

func hexDigest(v string) bool {
	if len(v) != 64 {
		return false
	}
	for i := range len(v) {
		if (v[i] < '0' || v[i] > '9') && (v[i] < 'a' || v[i] > 'f') {
			return false
		}
	}
	return true
}

// maxSecret is four times the longest registry tokens that are known.
const maxSecret = 64 << 10

// checkAuth checks credentials without ever repeating one: errors of a pull end in
// pod events, which many may read.
func checkAuth(a *runtimeapi.AuthConfig) error {
	secrets := []struct{ field, v string }{
		{"username", a.GetUsername()},
		{"password", a.GetPassword()},
		{"auth", a.GetAuth()},
		{"identity_token", a.GetIdentityToken()},
		{"registry_token", a.GetRegistryToken()},
	}
	for _, c := range secrets {
		if len(c.v) > maxSecret {
			return wrong(c.field, "must be shorter than 64 KiB")
		}
		// A password may be anything, but nothing of this fits a header.
		if strings.ContainsAny(c.v, "\r\n") {
			return wrong(c.field, "must be one line")
		}
	}
	if a.GetRegistryToken() != "" && a.GetUsername()+a.GetAuth()+a.GetIdentityToken() != "" {
		return wrong("registry_token", "must be the only credential")
	}
	return first(
		checkBasic(a.GetAuth()),
		optional("server_address", a.GetServerAddress(), singleLine),
	)
}

// checkBasic: base64 of user:password, as in a Docker configuration file.
func checkBasic(auth string) error {
	if auth == "" {
		return nil
	}
	plain, err := base64.StdEncoding.DecodeString(auth)
	if err != nil {
		return wrong("auth", "must be base64")
	}
	if !strings.Contains(string(plain), ":") || strings.ContainsAny(string(plain), "\r\n") {
		return wrong("auth", "must be user:password in base64")
	}
	return nil
}
