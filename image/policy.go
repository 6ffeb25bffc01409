package image

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/signature"
	"golang.org/x/sys/unix"
)

// rules are what one policy.json says at one time.
type rules struct {
	policy *signature.Policy
	// version tells them from any other rules and from the same ones with other
	// keys. Whatever was decided by rules holds for their version only.
	version string
}

// policies remembers the files that were read, for as long as they are the same
// files: a container's start asks for one.
type policies struct {
	mu     sync.Mutex
	byPath map[string]*policyFile // guarded by mu
	seen   map[string]seenFile    // guarded by mu
}

// policyFile is what one policy.json said that had this content.
type policyFile struct {
	version string
	policy  *signature.Policy
	keys    []string // the files that it takes keys and certificates from
}

// seenFile is a file's content, and the date that it had then.
type seenFile struct {
	stamp   string
	settled bool // a change since then would have got another date
	content string
}

// maxPolicies bounds what is remembered: namespaces come and go.
const maxPolicies = 1000

// rules returns what holds for a pod of that namespace ("" for no pod): the
// namespace's own policy where it has one, else the node's.
func (p *policies) rules(c *Config, namespace string) (*rules, error) {
	path, err := c.policyFile(namespace)
	if err != nil {
		return nil, fmt.Errorf("read signature policy: %w", err)
	}
	if path == "" {
		return &rules{policy: &signature.Policy{Default: signature.PolicyRequirements{signature.NewPRInsecureAcceptAnything()}}}, nil
	}
	f, err := p.file(path)
	if err != nil {
		return nil, fmt.Errorf("read signature policy %s: %w", path, err)
	}
	r := &rules{policy: f.policy, version: path + f.version}
	for _, k := range f.keys {
		// A key that cannot be read is the library's to refuse; here it is as good
		// a version as any.
		version, err := p.versionOf(k)
		r.version += fmt.Sprint(k, version, err != nil)
	}
	return r, nil
}

func (p *policies) file(path string) (*policyFile, error) {
	version, err := p.versionOf(path)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if f := p.byPath[path]; f != nil && f.version == version {
		return f, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	policy, err := signature.NewPolicyFromBytes(data)
	if err != nil {
		return nil, err
	}
	if p.byPath == nil || len(p.byPath) >= maxPolicies {
		p.byPath = map[string]*policyFile{}
	}
	f := &policyFile{version: string(digest.FromBytes(data)), policy: policy, keys: keyFiles(data)}
	p.byPath[path] = f
	return f, nil
}

// keyFiles lists the files that a policy names: whatever is called ...Path or
// ...Paths, in requirements of today and of tomorrow.
func keyFiles(policy []byte) (files []string) {
	var walk func(name string, v any)
	walk = func(name string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, inner := range v {
				walk(k, inner)
			}
		case []any:
			for _, inner := range v {
				walk(name, inner)
			}
		case string:
			if strings.HasSuffix(name, "Path") || strings.HasSuffix(name, "Paths") {
				files = append(files, v)
			}
		}
	}
	var all any
	if json.Unmarshal(policy, &all) == nil {
		walk("", all)
	}
	slices.Sort(files)
	return slices.Compact(files)
}

// tick is more than the steps in which kernels before 6.13, and some file systems of later ones, date changes: 10 ms at
// the most.
const tick = 50 * time.Millisecond

// versionOf tells what is in a file from what was in it before. It is the digest of the content, whatever the file's
// date: pulls that begin a moment apart have to have the same rules to be one pull. The date only spares reading it
// again, and not that of a file which has just been changed, since another change might get the same date.
func (p *policies) versionOf(path string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	stamp := fmt.Sprint([]int64{int64(st.Dev), int64(st.Ino), st.Size, st.Mtim.Nano(), st.Ctim.Nano()})
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return stamp, nil
	}
	p.mu.Lock()
	f := p.seen[path]
	p.mu.Unlock()
	if f.settled && f.stamp == stamp {
		return f.content, nil
	}
	settled := time.Since(time.Unix(st.Ctim.Unix())) >= tick // before it is read
	data, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.seen == nil || len(p.seen) >= maxPolicies {
		p.seen = map[string]seenFile{}
	}
	f = seenFile{stamp: stamp, settled: settled, content: string(digest.FromBytes(data))}
	p.seen[path] = f
	return f.content, nil
}

// plainName is what a file in PolicyDir can be called for, and a program: less than a
// path, and at least all that Kubernetes calls a namespace.
var plainName = regexp.MustCompile(`^[A-Za-z0-9][-A-Za-z0-9._]{0,249}$`)

// policyFile returns the path of the policy that holds for a namespace, or "" if
// there is none at all. A namespace whose name cannot be a file's has no policy of
// its own; a policy that is there and cannot be reached is an error.
func (c *Config) policyFile(namespace string) (string, error) {
	if c.PolicyDir != "" && plainName.MatchString(namespace) {
		path := filepath.Join(c.PolicyDir, namespace+".json")
		if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
			return path, err
		}
	}
	return configFile(c.PolicyPath, DefaultPolicyPath)
}
