package server

import (
	"context"
	"slices"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/image"
)

// PullImage fetches an image and answers with its id, the same one that all other
// messages call it by.
func (s *Server) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	if err := s.checkPullImage(r); err != nil {
		return nil, err
	}
	defer s.pulls.begin()()
	id, err := s.cfg.Images.PullFor(ctx, r.GetSandboxConfig().GetMetadata().GetNamespace(), r.GetImage().GetImage(), auth(r.GetAuth()))
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PullImageResponse{ImageRef: id}, nil
}

// ListImages lists all images, or the one that the filter names. A name that
// nothing has, or that nothing can have, gives an empty list.
func (s *Server) ListImages(ctx context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	list, err := s.images(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: list}, nil
}

// StreamImages is ListImages in as many messages as it takes.
func (s *Server) StreamImages(r *runtimeapi.StreamImagesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	list, err := s.images(out.Context(), r.GetFilter())
	if err != nil {
		return err
	}
	for part := range slices.Chunk(list, perMessage) {
		if err := out.Send(&runtimeapi.StreamImagesResponse{Images: part}); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) images(ctx context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	ref := filter.GetImage().GetImage()
	if ref != "" && reference(ref) != "" {
		return nil, nil
	}
	list, err := s.cfg.Images.List(ctx, ref)
	if err != nil {
		return nil, err
	}
	out := make([]*runtimeapi.Image, len(list))
	for i := range list {
		out[i] = imageOf(&list[i])
	}
	return out, nil
}

// ImageStatus describes one image. For an unknown one the answer has no image, and
// there is no error.
func (s *Server) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	if err := first(shape(r), at("image", s.checkImage(r.GetImage()))); err != nil {
		return nil, err
	}
	img, err := s.cfg.Images.Status(ctx, r.GetImage().GetImage())
	if gone(err) != nil {
		return nil, err
	}
	if img == nil {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	resp := &runtimeapi.ImageStatusResponse{Image: imageOf(img)}
	if r.GetVerbose() {
		// As other runtimes have it, and crictl's users look for it.
		resp.Info, err = documents(map[string]any{"info": map[string]any{"imageSpec": map[string]any{"created": img.Created, "config": img.Config}}})
	}
	return resp, err
}

// RemoveImage removes an image with all its names, whichever of them is given. An
// unknown image is a removed one.
func (s *Server) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if err := first(shape(r), at("image", s.checkImage(r.GetImage()))); err != nil {
		return nil, err
	}
	if err := gone(s.cfg.Images.Remove(ctx, r.GetImage().GetImage())); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo says what images and the writable layers of containers use, as two filesystems, which they may be.
func (s *Server) ImageFsInfo(ctx context.Context, _ *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	images, containers, err := s.cfg.Images.FsInfo(ctx)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ImageFsInfoResponse{
		ImageFilesystems:     []*runtimeapi.FilesystemUsage{usage(images)},
		ContainerFilesystems: []*runtimeapi.FilesystemUsage{usage(containers)},
	}, nil
}

func usage(u image.Measured) *runtimeapi.FilesystemUsage {
	return &runtimeapi.FilesystemUsage{
		Timestamp:  u.At.UnixNano(),
		FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: u.Mountpoint},
		UsedBytes:  &runtimeapi.UInt64Value{Value: u.UsedBytes},
		InodesUsed: &runtimeapi.UInt64Value{Value: u.Inodes},
	}
}

func auth(a *runtimeapi.AuthConfig) *image.Auth {
	if a == nil {
		return nil
	}
	return &image.Auth{
		Username:      a.GetUsername(),
		Password:      a.GetPassword(),
		Auth:          a.GetAuth(),
		ServerAddress: a.GetServerAddress(),
		IdentityToken: a.GetIdentityToken(),
		RegistryToken: a.GetRegistryToken(),
	}
}

func imageOf(i *image.Image) *runtimeapi.Image {
	img := &runtimeapi.Image{
		Id:          i.ID,
		RepoTags:    i.RepoTags,
		RepoDigests: i.RepoDigests,
		Size:        i.Size,
		Username:    i.Username,
		Spec:        &runtimeapi.ImageSpec{Image: i.ID, Annotations: i.Annotations},
		Pinned:      i.Pinned,
	}
	if i.UID != nil {
		img.Uid = &runtimeapi.Int64Value{Value: *i.UID}
	}
	return img
}
