package image

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"

	"github.com/docker/distribution/registry/api/errcode"
	v2 "github.com/docker/distribution/registry/api/v2"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
)

// What a caller may branch on with errors.Is. Everything else is a fault of the
// node (disk, configuration). A pull that ended because of its context carries
// the context's error and none of these.
var (
	// ErrNotFound: no such image, here or in the registry.
	ErrNotFound = errors.New("image not found")
	// ErrInvalidReference: the text is no image reference, or a short one that
	// registries.conf does not resolve to exactly one place.
	ErrInvalidReference = errors.New("invalid image reference")
	// ErrUnavailable: the registry did not answer, or not with sense (5xx, 429,
	// TLS). Worth a retry.
	ErrUnavailable = errors.New("registry unavailable")
	// ErrUnmeasured: what the store occupies is not known: it has not been measured yet, or cannot be read. Worth a retry.
	ErrUnmeasured = errors.New("disk usage not known")
	// ErrDenied: the registry refused the credentials or the lack of them, or
	// registries.conf blocks it.
	ErrDenied = errors.New("access denied")
	// ErrSignature: policy.json does not accept the image.
	ErrSignature = errors.New("signature policy not satisfied")
	// ErrUnsupported: what the registry holds under the name cannot be run here:
	// no build for this platform, a Docker plugin, schema 1, a config without sense.
	ErrUnsupported = errors.New("unsupported image")
	// ErrNoIDMaps: the kernel, or the filesystem that the store is on, cannot mount
	// layers for user namespaces.
	ErrNoIDMaps = errors.New("layers cannot be mounted with mapped ids here")
	// ErrInvalidAuth: the request's credentials contradict themselves or cannot
	// be decoded. The text never quotes them.
	ErrInvalidAuth = errors.New("invalid credentials")
)

// kinds are all of them, and those of the limits. What says more about the cause comes first.
var kinds = []error{ErrInvalidReference, ErrNotFound, ErrDenied, ErrSignature, ErrUnavailable, ErrLimit, ErrCorrupt, ErrUnsupported, ErrInvalidAuth}

// classify returns the sentinel that stands for an error of the image library,
// or nil. Types decide as far as the library has them; the last few cases exist
// only as text.
func classify(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return nil
	}
	for _, s := range kinds {
		if errors.Is(err, s) {
			return nil // already said
		}
	}
	var (
		policy   signature.PolicyRequirementError
		badSig   signature.InvalidSignatureError
		artifact manifest.NonImageArtifactError
		denied   docker.ErrUnauthorizedForCredentials
	)
	switch {
	case errors.As(err, &policy), errors.As(err, &badSig):
		return ErrSignature
	case errors.As(err, &artifact):
		return ErrUnsupported
	case errors.As(err, &denied):
		return ErrDenied
	case errors.Is(err, docker.ErrTooManyRequests):
		return ErrUnavailable
	}
	if s := classifyHTTP(err); s != nil {
		return s
	}
	return classifyText(err.Error())
}

// classifyHTTP looks for a registry's error code, a status, or a failure below HTTP.
func classifyHTTP(err error) error {
	var code errcode.ErrorCoder
	if errors.As(err, &code) {
		switch code.ErrorCode() {
		case v2.ErrorCodeManifestUnknown, v2.ErrorCodeNameUnknown, v2.ErrorCodeBlobUnknown:
			return ErrNotFound
		case errcode.ErrorCodeUnauthorized, errcode.ErrorCodeDenied:
			return ErrDenied
		case errcode.ErrorCodeUnavailable, errcode.ErrorCodeTooManyRequests:
			return ErrUnavailable
		}
	}
	var status docker.UnexpectedHTTPStatusError
	if errors.As(err, &status) {
		switch {
		case status.StatusCode == http.StatusNotFound:
			return ErrNotFound
		case status.StatusCode == http.StatusUnauthorized, status.StatusCode == http.StatusForbidden:
			return ErrDenied
		case status.StatusCode >= 500:
			return ErrUnavailable
		}
	}
	var (
		netErr net.Error
		urlErr *url.Error
	)
	if errors.As(err, &netErr) || errors.As(err, &urlErr) {
		return ErrUnavailable
	}
	return nil
}

// classifyText knows the errors for which the library has no exported type.
func classifyText(text string) error {
	for _, c := range []struct {
		sub  string
		kind error
	}{
		{"StatusCode: 404", ErrNotFound},
		{"StatusCode: 401", ErrDenied},
		{"StatusCode: 403", ErrDenied},
		{"StatusCode: 5", ErrUnavailable},
		{" is blocked in ", ErrDenied},
		{"no image found in image index for", ErrUnsupported},
		{"no image found in manifest list for", ErrUnsupported},
		{"unsupported schema version", ErrUnsupported},
		{"unexpected EOF", ErrUnavailable},
	} {
		if strings.Contains(text, c.sub) {
			return c.kind
		}
	}
	return nil
}

// pullError puts the reference and the sentinel before err and takes secrets out
// of its text. A hostile registry can answer with the credentials it was sent,
// and errors of a pull end up in the events of a pod, which more people read
// than the secret.
func pullError(ref string, err error, secrets []string) error {
	err = withoutSecrets(err, secrets)
	if kind := classify(err); kind != nil {
		return fmt.Errorf("pull %s: %w: %w", ref, kind, err)
	}
	return fmt.Errorf("pull %s: %w", ref, err)
}

// withoutSecrets takes secrets out of the text of err. Where there are some, only its
// kind stays of the original: whoever unwraps it could print it.
func withoutSecrets(err error, secrets []string) error {
	if err == nil {
		return nil
	}
	clean := redact(err.Error(), secrets)
	if clean == err.Error() {
		return err
	}
	for _, s := range kinds {
		if errors.Is(err, s) {
			return fmt.Errorf("%w: %s", s, clean)
		}
	}
	if s := classify(err); s != nil {
		return fmt.Errorf("%w: %s", s, clean)
	}
	return errors.New(clean)
}

// redact replaces each secret in text. Very short ones stay: replacing every "a"
// would destroy the message and protect nothing.
func redact(text string, secrets []string) string {
	for _, s := range secrets {
		if len(s) >= 4 {
			text = strings.ReplaceAll(text, s, "[redacted]")
		}
	}
	return text
}
