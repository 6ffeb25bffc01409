package sandbox

import (
	"context"
	"errors"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/internal/sys"
	"github.com/vitrine-runtime/vitrine/sandbox/spec"
)

// resolveVolumes finds the images that the container mounts, each of them allowed by the policy as one that runs.
func (c *Container) resolveVolumes(ctx context.Context) error {
	for i, m := range c.config.GetMounts() {
		if !spec.IsImageVolume(m) {
			continue
		}
		field := fmt.Sprintf("config.mounts[%d].image", i)
		id, err := c.resolveVolume(ctx, field, m.GetImage())
		if err != nil {
			return fmt.Errorf("%w: %s: %w", ErrImageVolume, field, err)
		}
		c.record.Volumes = append(c.record.Volumes, volumeRecord{Mount: i, ID: id})
	}
	return nil
}

func (c *Container) resolveVolume(ctx context.Context, field string, s *runtimeapi.ImageSpec) (string, error) {
	images := c.pod.m.cfg.Images
	if s.GetImage() == "" {
		return "", spec.Invalid(field+".image", "", "empty")
	}
	img, err := images.Resolve(ctx, s.GetImage())
	if err != nil {
		return "", fmt.Errorf("resolve image %.256q: %w", s.GetImage(), imageError(err))
	}
	if ref := s.GetImageRef(); ref != "" && ref != img.ID && !slices.Contains(img.RepoDigests, ref) {
		return "", spec.Invalid(field+".image_ref", ref, "not the image that image means, which is %s", img.ID)
	}
	asked := s.GetUserSpecifiedImage()
	if asked == "" {
		asked = s.GetImage()
	}
	return img.ID, images.Permit(ctx, c.pod.config.GetMetadata().GetNamespace(), img.ID, asked)
}

// volumeImages returns the ids of all images that the container mounts.
func (c *Container) volumeImages() []string {
	var ids []string
	for _, v := range c.record.Volumes {
		ids = append(ids, v.ID)
	}
	return ids
}

// volumesByMount returns the ids of the images by the index of their mounts.
func (c *Container) volumesByMount() map[int]string {
	ids := make(map[int]string, len(c.record.Volumes))
	for _, v := range c.record.Volumes {
		ids[v.Mount] = v.ID
	}
	return ids
}

// openers open what the container mounts and is not a path of the host. user is the pod's user namespace, or nil.
func (c *Container) openers(user *sys.FD) openers {
	asked := map[place]bool{}
	for _, r := range c.config.GetMounts() {
		asked[volumeOf(r)] = true
	}
	return openers{own: c.pod.dir, user: user, there: c.cdiSources(), asked: asked, image: func(ctx context.Context, m specs.Mount) (*sys.FD, error) {
		for _, v := range c.record.Volumes {
			sub := c.config.GetMounts()[v.Mount].GetImageSubPath()
			if m.Source != spec.ImageVolumeSource(v.ID, sub) {
				continue
			}
			fd, err := c.pod.m.cfg.Images.MountVolume(ctx, c.id, v.ID, sub, c.volumeView(user, m))
			if errors.Is(err, image.ErrSubPath) {
				err = spec.Invalid(fmt.Sprintf("config.mounts[%d].image_sub_path", v.Mount), sub, "%v", err)
			}
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrImageVolume, imageError(err))
			}
			return fd, nil
		}
		return nil, fmt.Errorf("%w: %s is not in the request", ErrImageVolume, m.Source)
	}}
}

// mountsShown are the mounts of the request; those of images say what image it was.
func (c *Container) mountsShown() []*runtimeapi.Mount {
	mounts := c.config.GetMounts()
	if len(c.record.Volumes) == 0 {
		return mounts
	}
	mounts = slices.Clone(mounts)
	for _, v := range c.record.Volumes {
		if m, ok := proto.Clone(mounts[v.Mount]).(*runtimeapi.Mount); ok {
			m.Image.ImageRef = v.ID
			mounts[v.Mount] = m
		}
	}
	return mounts
}
