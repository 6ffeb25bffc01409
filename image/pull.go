package image

import (
	"context"
	"errors"
	"fmt"

	"github.com/opencontainers/go-digest"
	"go.podman.io/image/v5/docker"
	"go.podman.io/image/v5/docker/reference"
	unparsed "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/image/v5/pkg/blobinfocache/none"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/signature"
	"go.podman.io/image/v5/types"
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
	return s.PullFor(ctx, "", ref, auth)
}

// PullFor is Pull for a pod of that namespace, which may have a signature policy of
// its own. Pulls under different policies share blobs and layers, and never a
// verdict.
func (s *Store) PullFor(ctx context.Context, namespace, ref string, auth *Auth) (string, error) {
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
	rules, err := s.policies.rules(&s.config, namespace)
	if err != nil {
		return "", fmt.Errorf("pull %q: %w", ref, err)
	}
	key := creds.digest() + rules.version
	for _, n := range names {
		key += " " + n.String()
	}
	id, err := s.flights.do(ctx, key, func(ctx context.Context) (string, error) {
		ctx, end := s.progress.begin(ctx, ref)
		defer end()
		return s.pullAny(ctx, sysctx, rules, names, creds)
	})
	if err != nil {
		return "", pullError(ref, err, creds.hidden())
	}
	return id, nil
}

// pullAny tries the candidates in order and returns the first success, or what
// the last one failed with.
func (s *Store) pullAny(ctx context.Context, sysctx *types.SystemContext, rules *rules, names []reference.Named, creds *credentials) (id string, err error) {
	for _, named := range names {
		own := *sysctx
		creds.apply(&own, named)
		if id, err = s.pull(ctx, &own, rules, named); err == nil {
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
func (s *Store) pull(ctx context.Context, sysctx *types.SystemContext, rules *rules, named reference.Named) (string, error) {
	for try := 1; ; try++ {
		before := s.deletions.Load()
		id, err := s.pullOnce(ctx, sysctx, rules, named)
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

func (s *Store) pullOnce(ctx context.Context, sysctx *types.SystemContext, rules *rules, named reference.Named) (string, error) {
	pc, err := signature.NewPolicyContext(rules.policy)
	if err != nil {
		return "", err
	}
	defer pc.Destroy() //nolint:errcheck // it has nothing to say
	ref, err := docker.NewReference(named)
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	sources, err := pullSources(sysctx, named)
	if err != nil {
		return "", err
	}
	own := *sysctx
	w, err := s.openWallet(ctx, &own, named, sources)
	if err != nil {
		return "", err
	}
	defer w.close()
	watch, err := newGuard(sysctx, sources, sysctx.DockerAuthConfig != nil || len(w.found) > 0, s.config.TokenHosts)
	if err != nil {
		return "", err
	}
	own.DockerProxy = watch.proxy
	id, err := s.pullFrom(ctx, &own, pc, ref, named, watch)
	return id, w.explain(err)
}

// pullFrom takes an image out of a registry or an archive: first all that is said
// about it, then its layers, then its record. named is what it will be called; nil
// for nothing. watch is nil for an archive.
func (s *Store) pullFrom(ctx context.Context, sysctx *types.SystemContext, pc *signature.PolicyContext, ref types.ImageReference, named reference.Named, watch *guard) (string, error) {
	ask, cancel := context.WithTimeoutCause(ctx, s.limits.answer, fmt.Errorf("%w: no answer in %v", ErrUnavailable, s.limits.answer))
	defer cancel()
	src, err := ref.NewImageSource(ask, sysctx)
	if err != nil {
		return "", answerError(ctx, ask, err)
	}
	defer src.Close()
	r, signatures, err := s.readRecipe(ask, sysctx, pc, src)
	if err != nil {
		return "", answerError(ctx, ask, err)
	}
	watch.layersNext()
	if r.files != nil {
		err = s.fetchArtifact(ctx, src, r)
	} else {
		progressOf(ctx).plan(r.layers)
		err = s.fetchLayers(ctx, src, r)
	}
	if err != nil {
		return "", err
	}
	return s.commit(r, signatures, named)
}

// answerError says that it was our own deadline for answers that ended a request.
func answerError(ctx, ask context.Context, err error) error {
	if ctx.Err() == nil && ask.Err() != nil {
		return fmt.Errorf("%w: %s", context.Cause(ask), err.Error())
	}
	return err
}

// readRecipe reads and checks what the registry says about an image, the signature
// policy included, before anything large is fetched.
func (s *Store) readRecipe(ctx context.Context, sysctx *types.SystemContext, pc *signature.PolicyContext, src types.ImageSource) (*recipe, []storedSignature, error) {
	img := unparsed.UnparsedInstance(src, nil)
	raw, said, err := img.Manifest(ctx) // of the digest in the reference, if one is there
	if err != nil {
		return nil, nil, err
	}
	kind, err := kindOf(raw, said)
	if err != nil {
		return nil, nil, err
	}
	r := &recipe{raw: raw, top: digest.FromBytes(raw)}
	if manifest.MIMETypeIsMultiImage(kind) {
		chosen, err := chooseInstance(raw, kind, sysctx)
		if err != nil {
			return nil, nil, err
		}
		img = unparsed.UnparsedInstance(src, &chosen)
		r.list = raw
		if r.raw, said, err = img.Manifest(ctx); err != nil {
			return nil, nil, err
		}
		if kind, err = kindOf(r.raw, said); err != nil {
			return nil, nil, err
		}
	}
	r.instance = digest.FromBytes(r.raw)
	// Signatures that cannot be had are no verdict on them.
	signatures, err := readSignatures(ctx, img)
	if err != nil {
		return nil, nil, err
	}
	if err := allow(ctx, pc, img); err != nil {
		return nil, nil, err
	}
	info, layers, err := r.readManifest(kind, s.limits.image)
	if err != nil {
		return nil, nil, err
	}
	if r.files != nil {
		return r, signatures, nil
	}
	config, err := s.fetchConfig(ctx, src, info)
	if err != nil {
		return nil, nil, fmt.Errorf("config: %w", err)
	}
	if err := r.readConfig(config, layers); err != nil {
		return nil, nil, err
	}
	return r, signatures, nil
}

// fetchConfig returns a config from the image that is here already, or fetches it.
func (s *Store) fetchConfig(ctx context.Context, src types.ImageSource, info types.BlobInfo) ([]byte, error) {
	if here, err := s.store.ImageBigData(info.Digest.Encoded(), info.Digest.String()); err == nil && digest.FromBytes(here) == info.Digest && int64(len(here)) == info.Size {
		return here, nil
	}
	body, _, err := src.GetBlob(ctx, types.BlobInfo{Digest: info.Digest, Size: info.Size}, none.NoCache)
	if err != nil {
		return nil, err
	}
	config, err := readAll(ctx, body, info)
	if cerr := body.Close(); err == nil {
		err = cerr
	}
	return config, err
}

// commit records the image, names it by what the registry served, pins its layers,
// and shows it.
func (s *Store) commit(r *recipe, signatures []storedSignature, named reference.Named) (string, error) {
	unlock := s.images.lock(r.id)
	defer unlock()
	names, err := r.names(named)
	if err != nil {
		return "", err
	}
	failPoint()
	img, err := s.record(r, signatures)
	if err != nil {
		return r.id, err
	}
	failPoint()
	if err := s.pin(img); err != nil {
		return "", err
	}
	failPoint()
	if len(names) > 0 {
		if err := s.store.AddNames(r.id, names); err != nil {
			return "", err
		}
	}
	failPoint()
	if err := s.reload(); err != nil {
		return "", err
	}
	if s.current().byID[r.id] == nil {
		// The same again says why it is not listed.
		if _, err = s.describe(img, nil); err == nil {
			err = errTakenAway
		}
		return "", errors.Join(err, s.removeLocked(r.id))
	}
	return idPrefix + r.id, nil
}

// names returns what an image is called that was pulled as named.
func (r *recipe) names(named reference.Named) ([]string, error) {
	if named == nil {
		return nil, nil
	}
	names := []string{named.String()}
	if _, tagged := named.(reference.Tagged); tagged {
		served, err := reference.WithDigest(reference.TrimNamed(named), r.top)
		if err != nil {
			return nil, err
		}
		names = append(names, served.String())
	}
	return names, nil
}
