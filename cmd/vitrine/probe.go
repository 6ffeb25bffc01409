package main

import (
	"golang.org/x/sys/unix"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// recursiveReadOnly tries on a detached copy of /, which vanishes with its
// descriptor, whether a whole tree of mounts can be made read-only.
func recursiveReadOnly() bool {
	tree, err := sys.OpenTree(unix.AT_FDCWD, "/", unix.OPEN_TREE_CLONE)
	if err != nil {
		return false
	}
	defer tree.Close()
	return sys.MountSetattr(tree.Int(), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}) == nil
}
