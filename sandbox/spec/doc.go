// Package spec turns what the kubelet asks for into what the kernel is to do: CRI messages in, a
// runtime-spec out. It is pure. It opens no file, asks no kernel and keeps no state, so that every rule
// can be tried without root and every result can be compared with a golden file.
//
//	PodSandboxConfig ---- PodOf -----> *Pod        (namespaces, hostname, resolv.conf, ports, sysctls)
//	                                     |
//	ContainerConfig ---.                 v
//	image config -------+-- Build -> *specs.Spec   (one rule per file, applied in kernel order)
//	User, Host, Files --'
//
// What the rules need from the machine (the devices of the host, the capabilities that the kernel knows,
// the hard limit on open files) is gathered by package sandbox and handed over in [Host]; what has to be
// read from the container's root file system (passwd, group) comes in as bounded readers, see
// [ResolveUser]. Values that come from an image are data: they may fill a field that the request left
// empty and nothing else.
//
// A request that cannot be honoured is refused with a [FieldError] which names the field. It is an
// [ErrInvalid] where the value is bad by itself and an [ErrUnimplemented] where it is legal CRI that this
// version does not do. Nothing is ignored in silence, with the one exception of fields that belong to
// Windows.
package spec
