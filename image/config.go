package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.podman.io/image/v5/types"
)

// Where the configuration is looked for when Config does not say otherwise.
const (
	DefaultRegistriesConf = "/etc/containers/registries.conf"
	DefaultPolicyPath     = "/etc/containers/policy.json"
	DefaultRegistriesDir  = "/etc/containers/registries.d"
)

// Config says where a Store keeps its things and where its rules are. All paths
// are absolute.
type Config struct {
	// Root holds images and layers; it survives a reboot. Mode 0700.
	Root string
	// RunRoot holds the storage library's run-time state; it should be on a
	// tmpfs. Mode 0700.
	RunRoot string
	// Containers holds one directory for each container's own changes. It must be
	// on a filesystem that can be the upper layer of an overlay. Mode 0700.
	Containers string

	// RegistriesConf is a containers-registries.conf(5). Empty means
	// DefaultRegistriesConf, which may be missing; any other path must exist.
	RegistriesConf string
	// RegistriesConfDir holds drop-ins for it and may be missing. Empty means
	// RegistriesConf with ".d" appended.
	RegistriesConfDir string
	// PolicyPath is a containers-policy.json(5). Empty means DefaultPolicyPath,
	// and where that is missing, every image is accepted. Any other path must
	// exist.
	PolicyPath string
	// PolicyDir holds policies for the pods of single namespaces, NAMESPACE.json, in
	// place of PolicyPath's. It may be missing, and empty means none.
	PolicyDir string
	// RegistriesDir is a containers-registries.d(5): where signatures are. Empty means
	// DefaultRegistriesDir. It may be missing.
	RegistriesDir string
	// CertsDir is a containers-certs.d(5): HOST:PORT/*.crt and the like. Empty means
	// where the library looks: /etc/containers/certs.d, then /etc/docker/certs.d.
	CertsDir string
	// AuthFile is a containers-auth.json(5) for pulls whose request brings no
	// credentials, and for mirrors. Empty means none.
	AuthFile string
	// TokenHosts are hosts (host or host:port) that a registry on another site may
	// send credentials to, to have them turned into a token. Its own site may
	// always be: auth.example.com for registry.example.com.
	TokenHosts []string
	// Pinned are the images that Image.Pinned is set for: names as in a pull, or
	// patterns with * at one end or both.
	Pinned []string
}

// check refuses what cannot work, before anything is created.
func (c *Config) check() error {
	for _, p := range []struct{ name, path string }{
		{"image root", c.Root}, {"image run root", c.RunRoot}, {"container root directory", c.Containers},
	} {
		if !filepath.IsAbs(p.path) {
			return fmt.Errorf("open image store: %s %q is not an absolute path", p.name, p.path)
		}
	}
	if _, err := c.systemContext(); err != nil {
		return err
	}
	_, err := (&policies{}).rules(c, "")
	return err
}

// systemContext returns the image library's settings, with every path that the
// library would otherwise look up in $HOME or the environment set.
func (c *Config) systemContext() (*types.SystemContext, error) {
	conf, err := configFile(c.RegistriesConf, DefaultRegistriesConf)
	if err != nil {
		return nil, err
	}
	dir := c.RegistriesConfDir
	if dir == "" {
		dir = DefaultRegistriesConf + ".d"
		if c.RegistriesConf != "" {
			dir = c.RegistriesConf + ".d"
		}
	}
	if conf == "" {
		conf = os.DevNull
	}
	auth := c.AuthFile
	if auth == "" {
		auth = filepath.Join(c.RunRoot, "no-auth.json") // does not exist: the library reads none
	}
	signatures := c.RegistriesDir
	if signatures == "" {
		signatures = DefaultRegistriesDir
	}
	return &types.SystemContext{
		DockerPerHostCertDirPath:    c.CertsDir,
		SystemRegistriesConfPath:    conf,
		SystemRegistriesConfDirPath: dir,
		RegistriesDirPath:           signatures,
		UserShortNameAliasConfPath:  filepath.Join(c.RunRoot, "short-name-aliases.conf"),
		AuthFilePath:                auth,
		BlobInfoCacheDir:            filepath.Join(c.Root, "cache"),
		BigFilesTemporaryDir:        c.tmp(),
		DockerRegistryUserAgent:     "vitrine",
	}, nil
}

// tmp is where blobs wait to be unpacked. It is emptied when the store opens.
func (c *Config) tmp() string { return filepath.Join(c.Root, "tmp") }

// configFile returns path, or def if path is empty, or "" if def is meant and
// does not exist.
func configFile(path, def string) (string, error) {
	if path == "" {
		path = def
	}
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) && path == def {
		return "", nil
	}
	return path, err
}
