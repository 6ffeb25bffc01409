// Package image keeps the images of a node: it pulls them from registries,
// lists and removes them as the CRI asks, and gives each container a root
// filesystem made of an image's layers and a directory of its own.
//
//	registry ──Pull──> go.podman.io/image ──> go.podman.io/storage
//	                     registries.conf         Root/overlay/<layer>/diff
//	                     policy.json                      │ lowerdir+ (by descriptor)
//	                                                      ▼
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
// # Layers in use
//
// The storage library knows nothing of our containers, and it deletes an image's
// layers with the image, sometimes on its own account (a pull that fails while
// it renames an image that was there before). So each image has a twin in the
// library's table, the pin, that refers to the same top layer. The library never
// deletes a layer that another image needs; the pin goes when neither the image
// nor a root filesystem of it exists:
//
//	image record   pin   rootfs records
//	     x          x         any         listed, may be given to containers
//	     -          x         1..n        removed, its layers are kept
//	     -          x         0           the pin and then the layers are deleted
//
// # Policy
//
// The files are those of containers-registries.conf(5),
// containers-policy.json(5) and containers-auth.json(5), read again for every
// pull. Where no policy.json exists at all, every image is accepted
// ("insecureAcceptAnything"), as container engines ship it. A path that was
// asked for and does not exist is an error: a typing mistake must not switch
// signatures off. Neither storage.conf nor anything in $HOME is read.
package image
