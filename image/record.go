package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/opencontainers/go-digest"
	unparsed "go.podman.io/image/v5/image"
	"go.podman.io/image/v5/manifest"
	"go.podman.io/storage"
)

// An image's record is in the library's own form, down to the names of its parts,
// so that the library reads it as its own, signatures included:
//
//	sha256:<config>        the config
//	manifest               the manifest of this platform
//	manifest-<digest>      the same, and each index that led to it
//	signature-<digest>     signatures of the manifest, one behind the other
//	metadata               {"signatures-sizes": {<digest>: [their lengths]}}

// storedSignature is a signature in the form in which the library keeps it.
type storedSignature []byte

// recordMetadata is the library's.
type recordMetadata struct {
	SignatureSizes  []int                   `json:"signature-sizes,omitempty"`
	SignaturesSizes map[digest.Digest][]int `json:"signatures-sizes,omitempty"`
}

// readSignatures returns the signatures that came with a manifest.
func readSignatures(ctx context.Context, img *unparsed.UnparsedImage) ([]storedSignature, error) {
	found, err := img.UntrustedSignatures(ctx)
	if err != nil {
		err = fmt.Errorf("read signatures: %w", err)
		if ctx.Err() == nil && classify(err) == nil { // they came, and are none
			err = fmt.Errorf("%w: %w", ErrSignature, err)
		}
		return nil, err
	}
	var all []storedSignature
	for _, s := range found {
		switch s := any(s).(type) {
		case interface{ UntrustedSignature() []byte }:
			// With its kind before it: a registry may call anything a signature, and
			// what the library would have to guess it may refuse, with all others.
			all = append(all, append([]byte("\x00simple-signing\n"), s.UntrustedSignature()...))
		case interface {
			UntrustedMIMEType() string
			UntrustedPayload() []byte
			UntrustedAnnotations() map[string]string
		}:
			chunk, err := json.Marshal(struct {
				MIMEType    string            `json:"mimeType"`
				Payload     []byte            `json:"payload"`
				Annotations map[string]string `json:"annotations"`
			}{s.UntrustedMIMEType(), s.UntrustedPayload(), s.UntrustedAnnotations()})
			if err != nil {
				return nil, err
			}
			all = append(all, append([]byte("\x00sigstore-json\n"), chunk...))
		}
	}
	return all, nil
}

// parts returns what the record holds besides the names.
func (r *recipe) parts(signatures []storedSignature) []storage.ImageBigDataOption {
	parts := []storage.ImageBigDataOption{{Key: idPrefix + r.id, Data: r.config, Digest: digest.FromBytes(r.config)}}
	if r.list != nil {
		parts = append(parts, storage.ImageBigDataOption{Key: manifestKey(r.top), Data: r.list, Digest: r.top})
	}
	parts = append(parts,
		storage.ImageBigDataOption{Key: manifestKey(r.instance), Data: r.raw, Digest: r.instance},
		storage.ImageBigDataOption{Key: storage.ImageDigestBigDataKey, Data: r.raw, Digest: r.instance})
	if len(signatures) > 0 {
		var all []byte
		for _, s := range signatures {
			all = append(all, s...)
		}
		parts = append(parts, storage.ImageBigDataOption{Key: signatureKey(r.instance), Data: all, Digest: digest.FromBytes(all)})
	}
	return parts
}

func manifestKey(d digest.Digest) string {
	return storage.ImageDigestManifestBigDataNamePrefix + "-" + d.String()
}

// A manifest keeps at most that many signatures, and bytes of them: whoever serves it
// under some name may add some.
const (
	maxSignatures     = 128
	maxSignatureBytes = 4 << 20
)

// withEarlier adds to signatures those that earlier pulls brought of the same
// manifest: another name of it, signed there, must not stop being so because of where it was
// pulled from last. The newest come first and are kept.
func (s *Store) withEarlier(r *recipe, meta *recordMetadata, signatures []storedSignature) []storedSignature {
	all := signatures
	// Without them, or where a kill left half of them, there is nothing to add.
	data, _ := s.store.ImageBigData(r.id, signatureKey(r.instance))
	for _, n := range meta.SignaturesSizes[r.instance] {
		if n < 0 || n > len(data) {
			break
		}
		all, data = append(all, data[:n]), data[n:]
	}
	var kept []storedSignature
	total := 0
	for _, one := range all {
		if len(kept) == maxSignatures || total+len(one) > maxSignatureBytes || slices.ContainsFunc(kept, func(k storedSignature) bool { return bytes.Equal(k, one) }) {
			continue
		}
		kept, total = append(kept, one), total+len(one)
	}
	return kept
}

func signatureKey(d digest.Digest) string { return "signature-" + d.Encoded() }

// record writes the image's record. What an earlier pull of the same image brought
// stays. Preconditions: the image's lock is held.
func (s *Store) record(r *recipe, signatures []storedSignature) (*storage.Image, error) {
	var meta recordMetadata
	old, err := s.store.Image(r.id)
	if err == nil {
		_ = json.Unmarshal([]byte(old.Metadata), &meta)
	} else if !errors.Is(err, storage.ErrImageUnknown) {
		return nil, err
	}
	if meta.SignaturesSizes == nil {
		meta.SignaturesSizes = map[digest.Digest][]int{}
	}
	signatures = s.withEarlier(r, &meta, signatures)
	meta.SignatureSizes = nil // of no manifest in particular
	delete(meta.SignaturesSizes, r.instance)
	for _, sig := range signatures {
		meta.SignaturesSizes[r.instance] = append(meta.SignaturesSizes[r.instance], len(sig))
	}
	text, err := json.Marshal(meta)
	if err != nil {
		return nil, err
	}
	if old != nil && old.TopLayer != r.topLayer() {
		return nil, fmt.Errorf("image %s has other layers than its config says", r.id)
	}
	if old == nil {
		img, err := s.store.CreateImage(r.id, nil, r.topLayer(), string(text), &storage.ImageOptions{BigData: r.parts(signatures)})
		if errors.Is(err, storage.ErrLayerUnknown) {
			err = fmt.Errorf("%w: %w", errTakenAway, err)
		}
		return img, err
	}
	for _, p := range r.parts(signatures) {
		if err := s.store.SetImageBigData(r.id, p.Key, p.Data, manifest.Digest); err != nil {
			return nil, fmt.Errorf("write %s of image: %w", p.Key, err)
		}
	}
	return old, s.store.SetMetadata(r.id, string(text))
}
