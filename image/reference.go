package image

import (
	"fmt"
	"strings"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/shortnames"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"
)

const (
	idPrefix = "sha256:"
	idDigits = 64
	// maxReference is far above any valid one: a name has at most 255 bytes, a
	// tag 128.
	maxReference = 1024
	// minShortID keeps a single letter from naming (and removing) an image.
	minShortID = 4
)

// pullCandidates returns the full references that a pull of ref may try, in
// order. registries.conf decides what an unqualified one means: an alias, or its
// search registries. If it lists several of those in the mode "enforcing" the
// reference is refused: the mode wants a person asked, and there is none here.
func pullCandidates(sys *types.SystemContext, ref string) ([]reference.Named, error) {
	if err := checkReference(ref); err != nil {
		return nil, err
	}
	mode, err := sysregistriesv2.GetShortNameMode(sys)
	if err != nil {
		return nil, fmt.Errorf("read registries.conf: %w", err)
	}
	quiet := *sys
	disabled := types.ShortNameModeDisabled // the library would prompt on a terminal otherwise
	quiet.ShortNameMode = &disabled
	resolved, err := shortnames.Resolve(&quiet, ref)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalidReference, err)
	}
	if len(resolved.PullCandidates) > 1 && mode == types.ShortNameModeEnforcing {
		return nil, fmt.Errorf("%w: short name %q fits several search registries and short-name-mode is enforcing: write the registry too", ErrInvalidReference, ref)
	}
	var names []reference.Named
	for _, c := range resolved.PullCandidates {
		named, err := canonical(c.Value)
		if err != nil {
			return nil, err
		}
		names = append(names, named)
	}
	return names, nil
}

// checkReference refuses what the parser would misread: an image id is also a
// valid short name with a tag.
func checkReference(ref string) error {
	if ref == "" {
		return fmt.Errorf("%w: it is empty", ErrInvalidReference)
	}
	if len(ref) > maxReference {
		return fmt.Errorf("%w: it is longer than %d bytes", ErrInvalidReference, maxReference)
	}
	if id, _ := strings.CutPrefix(ref, idPrefix); len(id) == idDigits && isHex(id) {
		return fmt.Errorf("%w: %q is an image id, not a name", ErrInvalidReference, ref)
	}
	return nil
}

// canonical gives a name exactly one of tag and digest: ":latest" where it has
// neither, and the digest alone where it has both, since the digest decides.
func canonical(named reference.Named) (reference.Named, error) {
	if d, ok := named.(reference.Digested); ok {
		c, err := reference.WithDigest(reference.TrimNamed(named), d.Digest())
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrInvalidReference, err)
		}
		return c, nil
	}
	return reference.TagNameOnly(named), nil
}

// localCandidates returns the full references that ref may stand for among the
// images that are here. What cannot be parsed stands for none.
func localCandidates(sys *types.SystemContext, ref string) []reference.Named {
	if len(ref) > maxReference {
		return nil
	}
	found, err := shortnames.ResolveLocally(sys, ref)
	if err != nil {
		return nil
	}
	var names []reference.Named
	for _, n := range found {
		if c, err := canonical(n); err == nil {
			names = append(names, c)
		}
	}
	return names
}

// isHex reports whether s consists of lower-case hexadecimal digits.
func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }
