// Package server is the door of the daemon: the Kubernetes Container Runtime
// Interface (k8s.io/cri-api, runtime.v1) on one unix socket.
//
// It speaks CRI on both sides and keeps no state. A request is decoded, its
// shape is checked, it is handed to the Manager, the image store or the network,
// and what they answer is translated back; that is all.
//
//	kubelet, crictl, critest
//	      |  gRPC, unix socket
//	      v
//	  interceptors     panic -> Internal, request log, ended context -> its code
//	      |
//	  shape.go         what holds for every field of every request
//	  check_*.go       what one field or two fields of one request must be
//	      |
//	      v
//	  Manager, Images, Network          (sandbox, image, cni)
//	      |
//	  errors.go        kinds of errors -> gRPC codes, never Unknown
//
// Three rules hold for every RPC:
//
//   - A request that is bad by itself is answered with InvalidArgument before
//     anything happens, in the form `field: rule, got "value"`, the field written
//     as in api.proto and at most 256 bytes of the value quoted. Secrets are named
//     and never quoted.
//   - What a request asks for and Vitrine cannot do is refused by name. It is
//     never silently ignored.
//   - Stop and Remove of something unknown succeed; lists never fail because of
//     their filter.
package server
