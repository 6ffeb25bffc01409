package image

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/types"
)

// Auth holds the credentials of one pull request, in the shape of the CRI's
// AuthConfig. At most one kind may be given: Username and Password, Auth
// (base64 of "username:password"), IdentityToken or RegistryToken; Auth beside
// the same Username and Password is tolerated. With ServerAddress set they are
// used for that registry only.
type Auth struct {
	Username, Password string
	Auth               string
	ServerAddress      string
	IdentityToken      string
	RegistryToken      string
}

// maxAuth bounds each field: no registry takes a header of more than this.
const maxAuth = 64 << 10

// String keeps credentials out of whatever prints an Auth with %v.
func (a Auth) String() string { return "[credentials]" }

// GoString is String for %#v.
func (a Auth) GoString() string { return a.String() }

// credentials is an Auth that was checked and decoded.
type credentials struct {
	config  types.DockerAuthConfig
	token   string   // bearer token for the registry
	server  string   // host[:port], or ""
	secrets []string // what must not appear in an error
}

// decode checks a and returns nil if it holds no credentials. Its errors match
// ErrInvalidAuth and quote nothing.
func (a *Auth) decode() (*credentials, error) {
	if a == nil || *a == (Auth{ServerAddress: a.ServerAddress}) {
		return nil, nil
	}
	for _, f := range []string{a.Username, a.Password, a.Auth, a.ServerAddress, a.IdentityToken, a.RegistryToken} {
		if len(f) > maxAuth {
			return nil, fmt.Errorf("%w: a field is longer than %d bytes", ErrInvalidAuth, maxAuth)
		}
		if strings.ContainsAny(f, "\r\n\x00") {
			return nil, fmt.Errorf("%w: a field contains a line break or NUL", ErrInvalidAuth)
		}
	}
	c := &credentials{
		config: types.DockerAuthConfig{Username: a.Username, Password: a.Password, IdentityToken: a.IdentityToken},
		token:  a.RegistryToken,
		server: serverHost(a.ServerAddress),
	}
	if a.Auth != "" {
		user, password, err := splitBasic(a.Auth)
		if err != nil {
			return nil, err
		}
		if (a.Username != "" && a.Username != user) || (a.Password != "" && a.Password != password) {
			return nil, fmt.Errorf("%w: auth contradicts username and password", ErrInvalidAuth)
		}
		c.config.Username, c.config.Password = user, password
	}
	kinds := 0
	for _, set := range []bool{c.config.Username != "" || c.config.Password != "", a.IdentityToken != "", a.RegistryToken != ""} {
		if set {
			kinds++
		}
	}
	// The kubelet's docker config may carry a user name beside an identity
	// token; a registry token beside anything else has no one meaning.
	if kinds > 1 && (a.RegistryToken != "" || c.config.Password != "") {
		field := "identity_token"
		if a.RegistryToken != "" {
			field = "registry_token"
		}
		return nil, fmt.Errorf("%w: auth.%s: there is another credential beside it: password (or auth), or the other token", ErrInvalidAuth, field)
	}
	if strings.Contains(c.config.Username, ":") {
		return nil, fmt.Errorf("%w: the user name contains a colon", ErrInvalidAuth)
	}
	c.collectSecrets(a.Auth)
	return c, nil
}

// collectSecrets lists the texts that could come back in a message of the
// registry: the parts, and the form in which HTTP carries them.
func (c *credentials) collectSecrets(auth string) {
	basic := base64.StdEncoding.EncodeToString([]byte(c.config.Username + ":" + c.config.Password))
	for _, s := range []string{auth, basic, c.config.Password, c.config.IdentityToken, c.token} {
		if s == "" {
			continue
		}
		c.secrets = append(c.secrets, s)
		if q := url.QueryEscape(s); q != s {
			c.secrets = append(c.secrets, q)
		}
	}
}

// splitBasic decodes base64 of "username:password".
func splitBasic(auth string) (user, password string, err error) {
	b, err := base64.StdEncoding.DecodeString(auth)
	if err != nil {
		b, err = base64.RawStdEncoding.DecodeString(auth)
	}
	if err != nil {
		return "", "", fmt.Errorf("%w: auth is not base64", ErrInvalidAuth)
	}
	user, password, ok := strings.Cut(string(b), ":")
	if !ok || strings.ContainsAny(string(b), "\r\n") {
		return "", "", fmt.Errorf("%w: auth does not hold username:password", ErrInvalidAuth)
	}
	return user, strings.TrimRight(password, "\x00"), nil
}

// serverHost takes host[:port] out of an address with or without a scheme.
func serverHost(address string) string {
	if i := strings.Index(address, "://"); i >= 0 {
		address = address[i+3:]
	}
	host, _, _ := strings.Cut(address, "/")
	switch host {
	case "index.docker.io", "registry-1.docker.io": // the names that logins to docker.io were stored under
		return "docker.io"
	}
	return host
}

// apply puts the credentials into the library's context for a pull of named.
// For another registry than the one that they were given for, the pull goes on
// without them.
func (c *credentials) apply(sys *types.SystemContext, named reference.Named) {
	if c == nil || (c.server != "" && c.server != reference.Domain(named)) {
		return
	}
	// Never nil, even for a bearer token: the library keeps credentials away
	// from mirrors on other hosts only when this field is set, and would send
	// the token there otherwise.
	config := c.config
	sys.DockerAuthConfig = &config
	sys.DockerBearerRegistryToken = c.token
}

// digest tells credentials apart without keeping them: pulls are shared only
// between callers with the same ones.
func (c *credentials) digest() string {
	if c == nil {
		return ""
	}
	h := sha256.New()
	for _, f := range []string{c.config.Username, c.config.Password, c.config.IdentityToken, c.token, c.server} {
		fmt.Fprintf(h, "%d:%s,", len(f), f)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// hidden returns the texts to keep out of errors.
func (c *credentials) hidden() []string {
	if c == nil {
		return nil
	}
	return c.secrets
}
