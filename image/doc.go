// Package image keeps the images of a node: it pulls them from registries,
// lists and removes them as the CRI asks, and gives each container a root
// filesystem made of an image's layers and a directory of its own.
//
//	registry ── manifest, config ──> checked: recipe       registries.conf, policy.json (go.podman.io/image)
//	   │                                │
//	   └── blob ──> file ──> vitrine-inflate ──> tar ──> vitrine-unpack ──> tmp/layer-… ──> Root/overlay/<layer>/diff
//	           digest, size,   headers, sizes,    the same,      (go.podman.io/storage)     │
//	           rate            counts             digest, tar-split                         │ lowerdir+ (by descriptor)
//	                                                                                        ▼
//	NewRootfs ──> Containers/<id>/{rootfs.json,upper,work} ──> overlay ──Mount──> detached mount
//
// # Images and ids
//
// An image's id is "sha256:" and the digest of its config, the same one from
// Pull, List, Status and Resolve, whatever registry it came from. Its names are
// full references: "repo:tag" for every tag that was pulled and "repo@digest"
// for what the registry served under it. Reads come from a snapshot in memory
// that every Pull and Remove replaces before it returns; they never wait for the
// disk or for a running pull. The daemon must be the only writer of Root.
//
// # Pulls
//
// What is said about an image comes first and is checked whole (manifest.go): one
// reading, digests that are digests, sizes and counts within bounds, the signature
// policy. Then its blobs come, several at a time, each one once for all pulls that
// want it (blob.go), and its layers are unpacked beside each other while the blobs still
// come, and become the store's from the lowest up (layer.go, stage.go), each one once. Nothing of a layer stays unless blob and tar have
// their digests to the last byte. Of an interrupted pull the finished layers stay for
// the next one; a half blob does not, since the library offers no way to continue it in
// another process. A guard sees the URL of every request before it is sent (guard.go).
//
// Two children, copies of this program, meet a stranger's bytes first; what they may
// do is in confine.go, and every bound in limits.go. Errors name the bound.
//
// # Layers in use
//
// The storage library knows nothing of our containers, and it deletes an image's
// layers with the image. So each image has a twin in the library's table, the pin,
// that refers to the same top layer. The library never deletes a layer that another
// image needs; the pin goes when neither the image nor a root filesystem of it exists:
//
//	image record   pin   rootfs records
//	     x          x         any         listed, may be given to containers
//	     -          x         1..n        removed, its layers are kept
//	     -          x         0           the pin and then the layers are deleted
//
// # Crashes
//
// A kill at any moment leaves what Open takes away or completes: half layers are
// marked by the library, blobs have no names, records without their parts are deleted.
// An image whose layers are not there is never listed, and the next pull brings it
// again. Check (vitrine images fsck) also finds what only a disk or a hand can break.
//
// # User namespaces
//
// Mount with IDs makes a root filesystem whose files have the image's owners in a user
// namespace: each layer is mounted with mapped ids below the overlay (idmapped.go), and no file is
// changed. Whether and how the kernel can is tried when the store is opened.
//
// # Policy
//
// The files are those of containers-registries.conf(5),
// containers-policy.json(5) and containers-auth.json(5), read again for every
// pull, the policy also for every container (Permit). Where no policy.json exists at
// all, every image is accepted ("insecureAcceptAnything"), as container engines ship
// it. A path that was asked for and does not exist is an error: a typing mistake must
// not switch signatures off. Neither storage.conf nor anything in $HOME is read.
//
// # Limits of the libraries
//
//   - The tar of a layer is taken apart three times, by our check in both children and by the
//     library in the second one. No path may be there twice, since tar-split has no word for
//     it; so all names are in memory meanwhile: hence maxNames.
//   - Where a registry's name leads is not known before the connection is made: the
//     guard refuses addresses of the node that are written as such, not names of them.
package image
