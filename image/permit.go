package image

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	unparsed "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/signature"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
)

// permits remembers what policy.json said about the images that are here, for as
// long as it is the same file: a container's start does not wait for signatures to
// be verified again.
type permits struct {
	mu      sync.Mutex
	version [4]int64        // of the policy file: device, inode, size, time
	verdict map[string]bool // by image and name; only those that are allowed
}

// Permit says whether policy.json lets a container be made from an image that is
// here, whoever pulled it and under whatever policy. asked is what the pod calls
// it: where that is one of the image's names, that name has to be accepted; where it
// is an id or nothing, one of its names has to be. Errors match ErrSignature or
// ErrNotFound.
func (s *Store) Permit(ctx context.Context, imageID, asked string) error {
	img, err := s.Resolve(ctx, imageID)
	if err != nil {
		return err
	}
	names, err := s.namesToJudge(img, asked)
	if err != nil {
		return err
	}
	if err := s.permits.refresh(s.config); err != nil {
		return fmt.Errorf("read signature policy: %w", err)
	}
	err = fmt.Errorf("%w: it has no name that the policy could be about", ErrSignature)
	for _, n := range names {
		key := img.ID + " " + n.String()
		if s.permits.has(key) {
			return nil
		}
		if err = s.judge(ctx, img, n); err == nil {
			s.permits.keep(key)
			return nil
		}
	}
	return fmt.Errorf("use image %s: %w", img.ID, err)
}

// namesToJudge returns the names of img that asked stands for.
func (s *Store) namesToJudge(img *Image, asked string) ([]reference.Named, error) {
	have := append(slices.Clone(img.RepoTags), img.RepoDigests...)
	sysctx, err := s.config.systemContext()
	if err != nil {
		return nil, err
	}
	if id, _ := strings.CutPrefix(asked, idPrefix); !isHex(id) {
		for _, n := range localCandidates(sysctx, asked) {
			if slices.Contains(have, n.String()) {
				return []reference.Named{n}, nil
			}
		}
	}
	var names []reference.Named
	for _, text := range have {
		if n, err := reference.ParseNormalizedNamed(text); err == nil {
			names = append(names, n)
		}
	}
	return names, nil
}

// judge asks the policy about an image as if it came from a registry under that
// name now, with the manifest and the signatures that it came with.
func (s *Store) judge(ctx context.Context, img *Image, named reference.Named) error {
	policy, err := s.config.policy()
	if err != nil {
		return err
	}
	pc, err := signature.NewPolicyContext(policy)
	if err != nil {
		return err
	}
	defer pc.Destroy() //nolint:errcheck // it has nothing to say
	record, err := s.store.Image(strings.TrimPrefix(img.ID, idPrefix))
	if err != nil {
		return err
	}
	here, err := istorage.Transport.NewStoreReference(s.store, nil, record.ID)
	if err != nil {
		return err
	}
	src, err := here.NewImageSource(ctx, &types.SystemContext{})
	if err != nil {
		return err
	}
	defer src.Close()
	there, err := docker.NewReference(named)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	raw, _, err := src.GetManifest(ctx, nil)
	if err != nil {
		return err
	}
	instance := digest.FromBytes(raw)
	as := unparsed.UnparsedInstanceWithReference(unparsed.UnparsedInstance(src, &instance), there)
	if allowed, err := pc.IsRunningImageAllowed(ctx, as); !allowed {
		return errors.Join(ErrSignature, err)
	}
	return nil
}

// refresh forgets what another version of the policy file said.
func (p *permits) refresh(config Config) error {
	file, err := configFile(config.PolicyPath, DefaultPolicyPath)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	var version [4]int64
	if file != "" {
		if err := unix.Stat(file, &st); err != nil {
			return &fs.PathError{Op: "stat", Path: file, Err: err}
		}
		version = [4]int64{int64(st.Dev), int64(st.Ino), st.Size, st.Mtim.Nano()}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.version != version || p.verdict == nil {
		p.version, p.verdict = version, map[string]bool{}
	}
	return nil
}

func (p *permits) has(key string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.verdict[key]
}

func (p *permits) keep(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.verdict == nil || len(p.verdict) > 10000 { // images come and go
		p.verdict = map[string]bool{}
	}
	p.verdict[key] = true
}

// isPinned reports whether one of an image's names is among those that the
// configuration wants kept: a name as in a pull, or the beginning, the end or a
// part of one, with * for the rest.
func isPinned(patterns []string, names ...string) bool {
	for _, p := range patterns {
		if !strings.Contains(p, "*") {
			if n, err := reference.ParseNormalizedNamed(p); err == nil {
				if c, err := canonical(n); err == nil {
					p = c.String()
				}
			}
		}
		for _, n := range names {
			if matches(p, n) {
				return true
			}
		}
	}
	return false
}

func matches(pattern, name string) bool {
	begin, starBegin := strings.CutPrefix(pattern, "*")
	core, starEnd := strings.CutSuffix(begin, "*")
	switch {
	case starBegin && starEnd:
		return strings.Contains(name, core)
	case starBegin:
		return strings.HasSuffix(name, core)
	case starEnd:
		return strings.HasPrefix(name, core)
	}
	return name == pattern
}
