package integration

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/dynamicpb"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// refusedCalls are those that the daemon does not serve, and says so itself.
var refusedCalls = map[string]bool{"CheckpointContainer": true, "CheckpointPod": true, "RestorePod": true}

// TestEveryCallIsServed: whatever call the CRI describes, the daemon has an answer of its own to it, and grpc never has to say for it that
// there is no such method: clients take that for a promise.
func TestEveryCallIsServed(t *testing.T) {
	s := open(t)
	conn := s.bareConn()
	calls := 0
	services := runtimeapi.File_staging_src_k8s_io_cri_api_pkg_apis_runtime_v1_api_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			calls++
			err := s.callEmpty(conn, m)
			text, code, name := status.Convert(err).Message(), status.Code(err), string(m.Name())
			switch {
			case refusedCalls[name]:
				if code != codes.Unimplemented || !strings.HasPrefix(text, name+" is not served by this version of Vitrine: ") {
					t.Errorf("%s: %v", name, err)
				}
			case code != codes.OK && code != codes.InvalidArgument:
				t.Errorf("%s: %v", name, err)
			}
			for _, bare := range []string{"unknown method", "unknown service", "not implemented"} {
				if strings.Contains(text, bare) {
					t.Errorf("%s is answered by grpc: %v", name, err)
				}
			}
		}
	}
	if calls != 43 {
		t.Errorf("%d calls, want 43", calls)
	}
	// What it looks like when there is nobody.
	err := conn.Invoke(s.ctx, "/runtime.v1.RuntimeService/Nope", &runtimeapi.VersionRequest{}, &runtimeapi.VersionResponse{})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "unknown method") {
		t.Errorf("a call that there is not: %v", err)
	}
}

// callEmpty makes a call with an empty request and returns what comes of it. A stream without an end is ended.
func (s *scene) callEmpty(conn *grpc.ClientConn, m protoreflect.MethodDescriptor) error {
	path := "/" + string(m.Parent().FullName()) + "/" + string(m.Name())
	in, out := dynamicpb.NewMessage(m.Input()), dynamicpb.NewMessage(m.Output())
	if !m.IsStreamingServer() {
		return conn.Invoke(s.ctx, path, in, out)
	}
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	st, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err != nil {
		return err
	}
	_ = st.SendMsg(in)
	_ = st.CloseSend()
	if m.Name() == "GetContainerEvents" {
		_, err := st.Header() // comes once it is served
		time.AfterFunc(100*time.Millisecond, cancel)
		if rerr := st.RecvMsg(out); err == nil && status.Code(rerr) != codes.Canceled {
			err = rerr
		}
		return err
	}
	if err = st.RecvMsg(out); err != nil && strings.Contains(err.Error(), "EOF") {
		return nil
	}
	return err
}

// TestDevicePermissions: a device may be used as the request says, and in no other way.
func TestDevicePermissions(t *testing.T) {
	s := open(t)
	p := s.runPod("permissions")
	// Nobody drives it: whoever may open it is told so, and whoever may not is told that.
	const none, denied = "No such device or address", "Operation not permitted"
	node := filepath.Join(s.Scratch, "device")
	if err := unix.Mknod(node, unix.S_IFCHR|0o666, int(unix.Mkdev(1, 2))); err != nil {
		t.Fatal(err)
	}
	defer os.Remove(node)
	ids, wants := map[string]string{}, map[string][2]string{"r": {none, denied}, "w": {denied, none}, "rwm": {none, none}, "m": {denied, denied}}
	for perm := range wants {
		ids[perm] = p.run(perm, "sleep 1000", func(c *runtimeapi.ContainerConfig) {
			c.Devices = []*runtimeapi.Device{{HostPath: node, ContainerPath: "/dev/mine", Permissions: perm}}
		})
	}
	check := func(when string) {
		t.Helper()
		for perm, want := range wants {
			for i, try := range []string{"cat /dev/mine", "echo x >/dev/mine"} {
				// The shell's own words are longer, and say the same for the first.
				out := strings.ReplaceAll(s.exec(ids[perm], "("+try+") 2>&1; true"), "nonexistent directory", none)
				if !strings.Contains(out, want[i]) {
					t.Errorf("%s, %q, %s: %q, want %q", when, perm, try, out, want[i])
				}
			}
		}
	}
	check("created")
	events := s.under()
	for _, event := range slices.Sorted(maps.Keys(events)) {
		events[event]()
		check("after " + event)
	}
}
