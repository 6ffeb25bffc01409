package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"go.podman.io/storage"
)

// Remove removes the image that ref names, in any form that Status takes, with
// all its names. It is gone for every other call when Remove returns, and a
// Remove of an image that is unknown or that another call is removing succeeds
// at once. Layers that containers or other images use stay. The work is not
// interrupted by ctx.
func (s *Store) Remove(_ context.Context, ref string) error {
	e, err := s.find(ref)
	if e == nil {
		return err
	}
	s.mu.Lock()
	if s.removing[e.key] {
		s.mu.Unlock()
		return nil
	}
	s.removing[e.key] = true // from here on no new container gets it
	s.mu.Unlock()
	unlock := s.images.lock(e.key)
	err = s.removeLocked(e.key)
	// Before the lock goes: a pull that waits for it shows the image again.
	s.mu.Lock()
	delete(s.removing, e.key)
	s.mu.Unlock()
	unlock()
	// Who removes images wants space.
	s.blobs.dropAll()
	if err = errors.Join(err, s.flights.idle(s.sweep)); err != nil {
		return fmt.Errorf("remove image %s: %w", e.ID, err)
	}
	return nil
}

// removeLocked deletes an image's record, its pin if no container needs it, and
// the layers that nobody refers to any more. Preconditions: the image's lock is held.
func (s *Store) removeLocked(id string) error {
	if err := s.delete(id); err != nil {
		return errors.Join(err, s.reload())
	}
	return errors.Join(s.unpinLocked(id), s.reload())
}

// delete deletes an image or a pin with the layers that nobody else needs.
func (s *Store) delete(id string) error {
	failPoint()
	s.deleting.Add(1)
	_, err := s.store.DeleteImage(id, true)
	s.deletions.Add(1)
	s.deleting.Add(-1)
	failPoint()
	if errors.Is(err, storage.ErrImageUnknown) || errors.Is(err, storage.ErrNotAnImage) {
		return nil
	}
	return err
}

// pinPrefix begins the metadata of a pin; the image's id follows.
const pinPrefix = "vitrine pin of "

// pinID is the id of an image's pin. It is fixed, so that there is only one.
func pinID(id string) string {
	sum := sha256.Sum256([]byte(pinPrefix + id))
	return hex.EncodeToString(sum[:])
}

// pinnedImage returns the id of the image that img is the pin of, or "".
func pinnedImage(img *storage.Image) string {
	id, ok := strings.CutPrefix(img.Metadata, pinPrefix)
	if !ok || img.ID != pinID(id) { // an image's own metadata must not hide it
		return ""
	}
	return id
}

// pin keeps an image's layers until unpinLocked. Preconditions: the image's lock
// is held.
func (s *Store) pin(img *storage.Image) error {
	_, err := s.store.CreateImage(pinID(img.ID), nil, img.TopLayer, pinPrefix+img.ID, &storage.ImageOptions{})
	if err != nil && !errors.Is(err, storage.ErrDuplicateID) {
		return fmt.Errorf("pin layers of image %s: %w", img.ID, err)
	}
	return nil
}

// unpinLocked deletes the pin of an image, and with it the layers, if neither
// the image nor a container needs it. Preconditions: the image's lock is held.
func (s *Store) unpinLocked(id string) error {
	s.mu.RLock()
	// A record that cannot be read may mean any image.
	used := s.users[id] > 0 || len(s.broken) > 0
	s.mu.RUnlock()
	if used {
		return nil
	}
	if _, err := s.store.Image(id); err == nil {
		return nil
	} else if !errors.Is(err, storage.ErrImageUnknown) {
		return err
	}
	if err := s.delete(pinID(id)); err != nil {
		return fmt.Errorf("delete layers of image %s: %w", id, err)
	}
	return nil
}

// repairPins brings pins and images together after a crash between two steps.
func (s *Store) repairPins() error {
	images, err := s.store.Images()
	if err != nil {
		return err
	}
	for i := range images {
		img := &images[i]
		id := pinnedImage(img)
		unlock := s.images.lock(id)
		if id != "" {
			err = s.unpinLocked(id)
		} else {
			err = s.pin(img)
		}
		unlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// sweep deletes the layers that belong to no image: what pulls finished before
// they failed or were cancelled. Preconditions: no pull runs.
func (s *Store) sweep() error {
	used, err := s.layersInUse()
	if err != nil || used == nil {
		return err
	}
	layers, err := s.store.Layers()
	if err != nil {
		return err
	}
	parent := map[string]string{}
	children := map[string]int{}
	for i := range layers {
		parent[layers[i].ID] = layers[i].Parent
		children[layers[i].Parent]++
	}
	for id := range parent {
		// From a leaf down to the first layer that somebody needs.
		for id != "" && children[id] == 0 && !used[id] {
			failPoint()
			if err := s.store.DeleteLayer(id); err != nil {
				return fmt.Errorf("delete layer %s: %w", id, err)
			}
			s.deletions.Add(1)
			children[id] = -1 // done
			id = parent[id]
			children[id]--
		}
	}
	return nil
}

// layersInUse returns the layers of all images and containers, or nil if that
// cannot be told because a record is broken.
func (s *Store) layersInUse() (map[string]bool, error) {
	used := map[string]bool{}
	images, err := s.store.Images()
	if err != nil {
		return nil, err
	}
	for i := range images {
		for id := images[i].TopLayer; id != "" && !used[id]; {
			used[id] = true
			l, err := s.store.Layer(id)
			if errors.Is(err, storage.ErrLayerUnknown) {
				break // lost, or removed with the image meanwhile: what is below it is not this one's any more
			}
			if err != nil {
				return nil, err
			}
			id = l.Parent
		}
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.broken) > 0 {
		return nil, nil
	}
	for _, rec := range s.rootfses {
		for _, id := range rec.layers() {
			used[id] = true
		}
	}
	return used, nil
}
