package image

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
)

// Where the configuration is looked for when Config does not say otherwise.
const (
	DefaultRegistriesConf = "/etc/containers/registries.conf"
	DefaultPolicyPath     = "/etc/containers/policy.json"
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
	_, err := c.policy()
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
	return &types.SystemContext{
		SystemRegistriesConfPath:    conf,
		SystemRegistriesConfDirPath: dir,
		RegistriesDirPath:           "/etc/containers/registries.d",
		UserShortNameAliasConfPath:  filepath.Join(c.RunRoot, "short-name-aliases.conf"),
		AuthFilePath:                auth,
		BlobInfoCacheDir:            filepath.Join(c.Root, "cache"),
		BigFilesTemporaryDir:        c.tmp(),
		DockerRegistryUserAgent:     "vitrine",
	}, nil
}

// tmp is where blobs wait to be unpacked. It is emptied when the store opens.
func (c *Config) tmp() string { return filepath.Join(c.Root, "tmp") }

// policy reads the signature policy.
func (c *Config) policy() (*signature.Policy, error) {
	path, err := configFile(c.PolicyPath, DefaultPolicyPath)
	if err != nil {
		return nil, err
	}
	if path == "" {
		return &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}, nil
	}
	p, err := signature.NewPolicyFromFile(path)
	if err != nil {
		return nil, fmt.Errorf("read signature policy %s: %w", path, err)
	}
	return p, nil
}

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
