package image

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/copy"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	istorage "go.podman.io/image/v5/storage"
	"go.podman.io/image/v5/types"
	"go.podman.io/storage"
)

// maxPullTries bounds how often a pull starts when removals take away layers that
// it was about to use.
const maxPullTries = 10

// errTakenAway: an image was removed while the pull that wanted it ran.
var errTakenAway = errors.New("image was removed during its pull")

// Pull makes the image that ref means available and returns its id. An image
// that is here already is compared with the registry's, so the tag moves if the
// registry's did. auth may be nil.
//
// Callers that want the same reference with the same credentials share one
// pull. When ctx ends, Pull returns its error at once; the pull goes on for
// whoever else waits, and is cancelled if nobody does. Layers that were
// finished by then stay and shorten the next attempt.
//
// Errors match ErrInvalidReference, ErrInvalidAuth, ErrNotFound, ErrDenied,
// ErrUnavailable, ErrSignature, ErrUnsupported or the context's; they never
// contain credentials.
func (s *Store) Pull(ctx context.Context, ref string, auth *Auth) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", fmt.Errorf("pull %q: %w", ref, err)
	}
	creds, err := auth.decode()
	if err != nil {
		return "", fmt.Errorf("pull %q: %w", ref, err)
	}
	sysctx, err := s.config.systemContext()
	if err != nil {
		return "", fmt.Errorf("pull %q: %w", ref, err)
	}
	// The library remembers registries.conf for good otherwise.
	if _, err := sysregistriesv2.TryUpdatingCache(sysctx); err != nil {
		return "", fmt.Errorf("read registries.conf: %w", err)
	}
	names, err := pullCandidates(sysctx, ref)
	if err != nil {
		return "", fmt.Errorf("pull %q: %w", ref, err)
	}
	key := creds.digest()
	for _, n := range names {
		key += " " + n.String()
	}
	id, err := s.flights.do(ctx, key, func(ctx context.Context) (string, error) {
		return s.pullAny(ctx, sysctx, names, creds)
	})
	if err != nil {
		return "", pullError(ref, err, creds.hidden())
	}
	return id, nil
}

// pullAny tries the candidates in order and returns the first success, or what
// the last one failed with.
func (s *Store) pullAny(ctx context.Context, sysctx *types.SystemContext, names []reference.Named, creds *credentials) (id string, err error) {
	for _, named := range names {
		own := *sysctx
		creds.apply(&own, named)
		if id, err = s.pull(ctx, &own, named); err == nil {
			return id, nil
		}
		if ctx.Err() != nil {
			break
		}
	}
	return "", err
}

// pull is one candidate, started over where a removal got in its way: the
// library finds the layers that it has at the beginning and is lost if they are
// gone at the end. It says so in many words, so any failure during which
// something was deleted counts.
func (s *Store) pull(ctx context.Context, sysctx *types.SystemContext, named reference.Named) (string, error) {
	for try := 1; ; try++ {
		before := s.deletions.Load()
		id, err := s.pullOnce(ctx, sysctx, named)
		switch {
		case err == nil || ctx.Err() != nil || (s.deleting.Load() == 0 && s.deletions.Load() == before):
			return id, err
		case try < maxPullTries:
		case id != "" && errors.Is(err, errTakenAway):
			// It was there, and somebody removes it as fast as it comes. That
			// is as good as a removal right after this call.
			return idPrefix + id, nil
		default:
			return "", err
		}
	}
}

func (s *Store) pullOnce(ctx context.Context, sysctx *types.SystemContext, named reference.Named) (string, error) {
	policy, err := s.config.policy()
	if err != nil {
		return "", err
	}
	pc, err := signature.NewPolicyContext(policy)
	if err != nil {
		return "", err
	}
	defer pc.Destroy() //nolint:errcheck // it has nothing to say
	src, err := docker.NewReference(named)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	dst, err := istorage.Transport.NewStoreReference(s.store, named, "")
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	before := s.current()
	var resolved types.ImageReference
	raw, err := copy.Image(ctx, pc, dst, src, &copy.Options{
		SourceCtx: sysctx, DestinationCtx: sysctx,
		ReportResolvedReference: &resolved,
	})
	if err != nil {
		return "", err
	}
	_, img, err := istorage.ResolveReference(resolved)
	if err != nil {
		return "", fmt.Errorf("%w: %w", errTakenAway, err)
	}
	if err := checkManifest(raw, img.ID); err != nil {
		return "", errors.Join(err, s.removeImage(img.ID))
	}
	top, err := s.servedDigest(ctx, sysctx, src, img, raw, before)
	if err != nil {
		return img.ID, err
	}
	return s.publish(img.ID, named, top)
}

// checkManifest accepts manifests whose image has its config's digest as id.
// Schema 1 has no config; its ids are made up by the library.
func checkManifest(raw []byte, id string) error {
	switch mime := manifest.GuessMIMEType(raw); mime {
	case manifest.DockerV2Schema2MediaType, "application/vnd.oci.image.manifest.v1+json":
		m, err := manifest.FromBlob(raw, mime)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrUnsupported, err)
		}
		if got := m.ConfigInfo().Digest; got != digest.NewDigestFromEncoded(digest.SHA256, id) {
			return fmt.Errorf("%w: the library gave it the id %s, its config has %s", ErrUnsupported, id, got)
		}
		return nil
	default:
		return fmt.Errorf("%w: manifest of type %s", ErrUnsupported, mime)
	}
}

// publish names the image by what the registry served, pins its layers, and
// shows it. A removal may have come between the copy and now; then errTakenAway.
func (s *Store) publish(id string, named reference.Named, top digest.Digest) (string, error) {
	unlock := s.images.lock(id)
	defer unlock()
	img, err := s.store.Image(id)
	if errors.Is(err, storage.ErrImageUnknown) {
		return id, errTakenAway
	}
	if err != nil {
		return "", err
	}
	if err := s.pin(img); err != nil {
		return "", err
	}
	if _, tagged := named.(reference.Tagged); tagged {
		served, err := reference.WithDigest(reference.TrimNamed(named), top)
		if err != nil {
			return "", err
		}
		if err := s.store.AddNames(id, []string{served.String()}); err != nil {
			return "", err
		}
	}
	if err := s.reload(); err != nil {
		return "", err
	}
	if s.current().byID[id] == nil {
		// The same again says why it is not listed.
		if _, err = s.describe(img, nil); err == nil {
			err = errTakenAway
		}
		return "", errors.Join(err, s.removeLocked(id))
	}
	return idPrefix + id, nil
}

// servedDigest returns the digest of what the registry served for src: the
// manifest that was copied, or the index that led to it. The library stores an
// index with the image but does not say which one came with this copy.
func (s *Store) servedDigest(ctx context.Context, sysctx *types.SystemContext, src types.ImageReference, img *storage.Image, raw []byte, before *view) (digest.Digest, error) {
	instance, err := manifest.Digest(raw)
	if err != nil {
		return "", err
	}
	lists, err := s.listsWith(img, instance)
	if err != nil || len(lists) == 0 {
		return instance, err
	}
	repo := src.DockerReference().Name() + "@"
	var fresh, named []digest.Digest
	for _, d := range lists {
		if old := before.byID[img.ID]; old == nil || !old.has(d) {
			fresh = append(fresh, d)
		} else if before.byName[repo+d.String()] == old {
			named = append(named, d)
		}
	}
	if len(fresh) == 1 {
		return fresh[0], nil
	}
	if len(fresh) == 0 && len(named) == 1 {
		return named[0], nil
	}
	// Several registries have this image in different indexes: ask this one.
	is, err := src.NewImageSource(ctx, sysctx)
	if err != nil {
		return "", err
	}
	defer is.Close()
	served, _, err := is.GetManifest(ctx, nil)
	if err != nil {
		return "", err
	}
	return manifest.Digest(served)
}

// listsWith returns the digests of the stored indexes that lead to instance.
func (s *Store) listsWith(img *storage.Image, instance digest.Digest) ([]digest.Digest, error) {
	var lists []digest.Digest
	for _, name := range img.BigDataNames {
		text, ok := strings.CutPrefix(name, storage.ImageDigestManifestBigDataNamePrefix+"-")
		if !ok || text == instance.String() {
			continue
		}
		raw, err := s.store.ImageBigData(img.ID, name)
		if err != nil {
			return nil, err
		}
		mime := manifest.GuessMIMEType(raw)
		if !manifest.MIMETypeIsMultiImage(mime) {
			continue
		}
		list, err := manifest.ListFromBlob(raw, mime)
		if err != nil {
			continue
		}
		for _, d := range list.Instances() {
			if d == instance {
				lists = append(lists, digest.Digest(text))
				break
			}
		}
	}
	return lists, nil
}

// has reports whether the image is known by a manifest or index of digest d.
func (e *entry) has(d digest.Digest) bool {
	for _, n := range e.digests {
		if strings.HasSuffix(n, "@"+d.String()) {
			return true
		}
	}
	return false
}
