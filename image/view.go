package image

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/storage"
)

// Image is one image as the CRI shows it.
type Image struct {
	// ID is "sha256:" and 64 digits, the digest of the image's config, which is
	// the same for the same image from any registry.
	ID string
	// RepoTags holds every "repo:tag" that was pulled and still means this image.
	RepoTags []string
	// RepoDigests holds "repo@digest": what a registry served under a tag, or
	// the reference of a pull by digest.
	RepoDigests []string
	// Size is what the unpacked layers and the metadata hold, in bytes, shared
	// layers counted in full.
	Size uint64
	// User is the config's USER, unparsed.
	User string
	// UID is the number of a numeric USER; Username is the name of any other one.
	// Both are empty for an image without USER, that is root. See splitUser for
	// numbers out of range.
	UID      *int64
	Username string
	// Annotations are the manifest's. They are data from a stranger and select
	// nothing.
	Annotations map[string]string
	// Pinned keeps the kubelet's garbage collection away.
	Pinned bool
	// Config is what the image says about its process. It is data from a
	// stranger.
	Config ocispec.ImageConfig
	// Created is the build time by the image's own word, or zero.
	Created time.Time
}

// entry is an image with what the store needs to know about it.
type entry struct {
	Image
	key     string   // the id without "sha256:", as the library wants it
	layers  []string // directories in Root/overlay, top first
	digests []string // repo@digest that hold, beyond RepoDigests
}

// view is a snapshot of the images. It is immutable.
type view struct {
	images []*entry // by id
	byID   map[string]*entry
	byName map[string]*entry
}

// find looks for an image by id, then by names, then by the beginning of an id,
// among those that visible accepts.
func (v *view) find(ref string, names []reference.Named, visible func(id string) bool) (*entry, error) {
	id, _ := strings.CutPrefix(ref, idPrefix)
	if e := v.byID[id]; e != nil {
		if visible(e.key) {
			return e, nil
		}
		return nil, nil
	}
	for _, n := range names {
		if e := v.byName[n.String()]; e != nil && visible(e.key) {
			return e, nil
		}
	}
	if len(id) < minShortID || len(id) >= idDigits || !isHex(id) {
		return nil, nil
	}
	i, _ := slices.BinarySearchFunc(v.images, id, func(e *entry, id string) int { return cmp.Compare(e.key, id) })
	var found *entry
	for ; i < len(v.images) && strings.HasPrefix(v.images[i].key, id); i++ {
		if !visible(v.images[i].key) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("%w: several ids begin so", ErrInvalidReference)
		}
		found = v.images[i]
	}
	return found, nil
}

// reload replaces the snapshot by what the library has now. Its callers changed
// something and hold no lock but the image's.
func (s *Store) reload() error {
	s.refresh.Lock()
	defer s.refresh.Unlock()
	images, err := s.store.Images()
	if err != nil {
		return fmt.Errorf("list images: %w", err)
	}
	pinned := map[string]bool{}
	for i := range images {
		pinned[pinnedImage(&images[i])] = true
	}
	old := s.current()
	next := &view{byID: map[string]*entry{}, byName: map[string]*entry{}}
	for i := range images {
		// Without a pin it is a pin itself, or a pull is not done with it: who
		// cannot see it does not remove it under the pull's hands.
		if !pinned[images[i].ID] {
			continue
		}
		e, err := s.describe(&images[i], old.byID[images[i].ID])
		if err != nil {
			// An image that cannot be run is not listed: the kubelet would
			// count on it instead of pulling it again.
			continue
		}
		next.add(e)
	}
	slices.SortFunc(next.images, func(a, b *entry) int { return cmp.Compare(a.key, b.key) })
	next.addDigests()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.view = next
	return nil
}

// current returns the snapshot.
func (s *Store) current() *view {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.view
}

func (v *view) add(e *entry) {
	v.images = append(v.images, e)
	v.byID[e.key] = e
	for _, n := range e.RepoTags {
		v.byName[n] = e
	}
	for _, n := range e.RepoDigests {
		v.byName[n] = e
	}
}

// addDigests makes images findable by further digests of their manifests (the
// one for this platform, beside that of the index), below true names.
func (v *view) addDigests() {
	for _, e := range v.images {
		for _, n := range e.digests {
			if v.byName[n] == nil {
				v.byName[n] = e
			}
		}
	}
}

// describe makes an entry. Everything but the names follows from the id, so it
// is taken from old if there is one.
func (s *Store) describe(img *storage.Image, old *entry) (*entry, error) {
	e := &entry{}
	if old != nil {
		*e = *old
	} else if err := s.inspect(e, img); err != nil {
		return nil, fmt.Errorf("read image %s: %w", img.ID, err)
	}
	e.RepoTags, e.RepoDigests, e.digests = nil, nil, nil
	repos := map[string]bool{}
	for _, name := range img.Names {
		named, err := reference.ParseNormalizedNamed(name)
		if err != nil {
			continue
		}
		if _, ok := named.(reference.Digested); ok {
			e.RepoDigests = append(e.RepoDigests, name)
			repos[named.Name()] = true
			continue
		}
		e.RepoTags = append(e.RepoTags, name)
		repos[named.Name()] = repos[named.Name()] || false
	}
	for repo, known := range repos {
		// A crash between naming the tag and naming its digest leaves the
		// former alone; the platform's own manifest is in the same repository.
		if !known && img.Digest != "" {
			e.RepoDigests = append(e.RepoDigests, repo+"@"+img.Digest.String())
		}
		for _, d := range img.Digests {
			e.digests = append(e.digests, repo+"@"+d.String())
		}
	}
	slices.Sort(e.RepoTags)
	slices.Sort(e.RepoDigests)
	e.Pinned = isPinned(s.config.Pinned, append(slices.Clone(e.RepoTags), e.RepoDigests...)...)
	return e, nil
}

// inspect fills in what follows from the image's id.
func (s *Store) inspect(e *entry, img *storage.Image) error {
	raw, err := s.store.ImageBigData(img.ID, idPrefix+img.ID)
	if err != nil {
		return err
	}
	// The id must be what it claims: containers are started by it.
	if digest.FromBytes(raw).Encoded() != img.ID {
		return errors.New("its id is not the digest of its config")
	}
	var config struct {
		Created *time.Time          `json:"created"`
		Config  ocispec.ImageConfig `json:"config"`
	}
	if err := json.Unmarshal(raw, &config); err != nil {
		return fmt.Errorf("%w: decode config: %w", ErrUnsupported, err)
	}
	e.key, e.ID = img.ID, idPrefix+img.ID
	e.Config, e.User = config.Config, config.Config.User
	e.UID, e.Username = splitUser(e.User)
	if config.Created != nil {
		e.Created = *config.Created
	}
	if raw, err := s.store.ImageBigData(img.ID, storage.ImageDigestBigDataKey); err == nil {
		var m struct {
			Annotations map[string]string `json:"annotations"`
		}
		if json.Unmarshal(raw, &m) == nil {
			e.Annotations = m.Annotations
		}
	}
	return s.inspectLayers(e, img)
}

// inspectLayers walks from the top layer down.
func (s *Store) inspectLayers(e *entry, img *storage.Image) error {
	var size int64
	known := true
	for id := img.TopLayer; id != ""; {
		l, err := s.store.Layer(id)
		if err != nil {
			return err
		}
		e.layers = append(e.layers, l.ID)
		known = known && l.UncompressedDigest != "" && l.UncompressedSize >= 0
		size += l.UncompressedSize
		id = l.Parent
	}
	for _, n := range img.BigDataSizes {
		size += n
	}
	if !known {
		var err error
		if size, err = s.store.ImageSize(img.ID); err != nil {
			return err
		}
	}
	e.Size = uint64(max(size, 0))
	return nil
}
