package image

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	unparsed "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/signature"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
)

// permits remembers which images the rules allow, so that a container's start does
// not wait for signatures to be verified again.
type permits struct {
	mu      sync.Mutex
	verdict map[string]bool // by version of the rules, image and name; only what is allowed
}

// Permit says whether the signature policy lets a container of that namespace's pod
// be made from an image that is here, whoever pulled it and under whatever policy.
// asked is what the pod calls it. Where that is a name, the image has to be accepted
// under that name; where it is an id or nothing, under one of those that it has. Errors match
// ErrSignature or ErrNotFound.
func (s *Store) Permit(ctx context.Context, namespace, imageID, asked string) error {
	img, err := s.Resolve(ctx, imageID)
	if err != nil {
		return err
	}
	names, err := s.namesToJudge(img, asked)
	if err != nil {
		return err
	}
	rules, err := s.policies.rules(&s.config, namespace)
	if err != nil {
		return err
	}
	err = fmt.Errorf("%w: it has no name that the policy could be about", ErrSignature)
	for _, n := range names {
		key := rules.version + " " + img.ID + " " + n.String()
		if s.permits.has(key) {
			return nil
		}
		if err = s.judge(ctx, rules, img, n); err == nil {
			s.permits.keep(key)
			return nil
		}
	}
	return fmt.Errorf("use image %s: %w", img.ID, err)
}

// namesToJudge returns the names of img that asked stands for, or, where it stands
// for none of them, what else it means: a tag that has moved on is judged as what it is called.
func (s *Store) namesToJudge(img *Image, asked string) ([]reference.Named, error) {
	have := append(slices.Clone(img.RepoTags), img.RepoDigests...)
	sysctx, err := s.config.systemContext()
	if err != nil {
		return nil, err
	}
	meant := localCandidates(sysctx, asked)
	for _, n := range meant {
		if slices.Contains(have, n.String()) {
			return []reference.Named{n}, nil
		}
	}
	if id, _ := strings.CutPrefix(asked, idPrefix); !isHex(id) {
		return meant, nil
	}
	var names []reference.Named
	for _, text := range have {
		if n, err := reference.ParseNormalizedNamed(text); err == nil {
			names = append(names, n)
		}
	}
	return names, nil
}

// judge asks the rules about an image as if it came from a registry under that name
// now, with a manifest and the signatures that it came with. It may have come with
// several manifests, as its layers can be compressed in several ways; one that is accepted will
// do, since each of them names the same config and so the same content.
func (s *Store) judge(ctx context.Context, rules *rules, img *Image, named reference.Named) error {
	pc, err := signature.NewPolicyContext(rules.policy)
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
	last := digest.FromBytes(raw)
	err = allow(ctx, pc, unparsed.UnparsedInstanceWithReference(unparsed.UnparsedInstance(src, &last), there))
	for _, d := range manifestsOf(record) {
		if err == nil {
			return nil
		}
		if raw, kind, rerr := src.GetManifest(ctx, &d); d == last || rerr != nil || !isInstance(raw, kind, record.ID) {
			continue
		}
		if allow(ctx, pc, unparsed.UnparsedInstanceWithReference(unparsed.UnparsedInstance(src, &d), there)) == nil {
			return nil
		}
	}
	return err
}

// allow asks the policy about an image.
func allow(ctx context.Context, pc *signature.PolicyContext, img types.UnparsedImage) error {
	if allowed, err := pc.IsRunningImageAllowed(ctx, img); !allowed {
		return errors.Join(ErrSignature, err)
	}
	return nil
}

// manifestsOf lists the manifests and indexes that came with an image, by digest.
func manifestsOf(record *storage.Image) (all []digest.Digest) {
	for _, name := range record.BigDataNames {
		text, ok := strings.CutPrefix(name, storage.ImageDigestManifestBigDataNamePrefix+"-")
		if d, err := digest.Parse(text); ok && err == nil {
			all = append(all, d)
		}
	}
	return all
}

// isInstance reports whether a manifest is one of the image with that config. An artifact's says nothing of the config that it was
// given here; it stands in the record because its files had that.
func isInstance(raw []byte, kind, config string) bool {
	if manifest.MIMETypeIsMultiImage(manifest.GuessMIMEType(raw)) {
		return false
	}
	m, err := manifest.FromBlob(raw, manifest.NormalizedMIMEType(kind))
	return err == nil && (m.ConfigInfo().Digest.Encoded() == config || !isImageConfig(m.ConfigInfo().MediaType))
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
