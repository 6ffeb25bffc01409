package integration

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vitrine-runtime/vitrine/conformance/matrix"
)

// TestMatrix is B-126 against the real daemon: every RPC of CRI, and every field of its request changed, one leaf at a time. Each
// request has one of the documented codes within a second and a text that names the field, or stands on the list of what may be
// accepted; then it is carried out, started if it is a container, and taken back. Nothing is left after any of them: a refused request
// leaves no directory, and each RPC ends with the leak check.
//
// VITRINE_MATRIX=all sends all of it. Else, of those RunPodSandbox and CreateContainer that may be accepted, which take nearly all
// of the time, one in twelve is sent, and of what must be refused everything.
func TestMatrix(t *testing.T) {
	if place == nil {
		t.Skip("needs root: starts pods in private namespaces")
	}
	if err := place.EnsureDaemon(t.Context()); err != nil {
		t.Fatal(err)
	}
	s := &scene{Stage: place, T: t} // without a connection, which the RPCs' leak checks would find
	tally, excused := matrixTally{}, 0
	from := s.logSize()
	for _, service := range []protoreflect.FullName{"runtime.v1.RuntimeService", "runtime.v1.ImageService"} {
		d, err := protoregistry.GlobalFiles.FindDescriptorByName(service)
		if err != nil {
			t.Fatal(err)
		}
		methods := d.(protoreflect.ServiceDescriptor).Methods()
		for i := range methods.Len() {
			rpc := methods.Get(i)
			t.Run(string(rpc.Name()), func(t *testing.T) {
				(&mutator{scene: openFor(t, 20*time.Minute), rpc: rpc, tally: tally, excused: &excused}).all()
			})
		}
	}
	s.nothingBroke(from)
	if excused > mostExcused {
		t.Errorf("%d requests took more than a second each time: a busy machine is no excuse for so many", excused)
	}
	t.Logf("%d requests, codes by kind of change:\n%s", tally.requests(), tally)
}

// sampled is how many of the requests that may be accepted and cost a container or a pod there are to one that is sent.
const sampled = 12

// mutator sends the requests of one RPC, with a pod of its own.
type mutator struct {
	*scene
	rpc   protoreflect.MethodDescriptor
	tally matrixTally
	// excused counts the requests of all RPCs that were slow each time, on a machine that was busy.
	excused *int
	conn    *grpc.ClientConn
	cast    *cast
	worst   time.Duration
	slow    string // what took so long
}

// all sends the valid requests of the RPC, and everything that becomes of them.
func (x *mutator) all() {
	conn, err := grpc.NewClient("unix://"+x.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		x.Fatal(err)
	}
	defer conn.Close()
	x.conn, x.cast = conn, newCast(x.scene)
	x.before["path /sys/fs/cgroup/vitrine"] = 1 // stays, once a pod had no parent
	name := string(x.rpc.Name())
	valids := validRequests[name]
	if valids == nil && x.rpc.Input().Fields().Len() > 0 {
		x.Fatal("there is no valid request for it in validRequests")
	}
	if valids == nil {
		valids = []valid{{make: func(*cast) proto.Message { return newMessage(x.rpc.Input()) }}}
	}
	changed := map[string]bool{}
	for _, v := range valids {
		x.unchanged(v)
		for _, m := range matrix.Mutations(v.make(x.cast)) {
			changed[m.Field] = changed[m.Field] || v.changes(m.Field)
			if v.changes(m.Field) && !x.leftOut(name, m) {
				x.send(name, v, m)
			}
		}
	}
	x.Logf("the slowest took %v: %s", x.worst.Round(time.Millisecond), x.slow)
	x.allChanged(changed)
}

// allChanged fails the test for each field of the request's descriptor, at any depth, that was in no valid request and so never changed.
func (x *mutator) allChanged(changed map[string]bool) {
	for _, field := range matrix.Fields(x.rpc.Input()) {
		if !changed[field] {
			x.Errorf("%s: no valid request has what it is in, so nothing was changed in it", field)
		}
	}
}

// leftOut reports whether a mutation is not in the sample. The choice is by its name, so it is the same on each run.
func (x *mutator) leftOut(rpc string, m matrix.Mutation) bool {
	if os.Getenv("VITRINE_MATRIX") == "all" || rpc != "RunPodSandbox" && rpc != "CreateContainer" || matrix.Reason(rpc, m) == "" {
		return false
	}
	h := fnv.New32a()
	h.Write([]byte(rpc + " " + m.Field + " " + m.Kind))
	return h.Sum32()%sampled != 0
}

// unchanged sends a request as it is: it must be right, or what is changed in it shows nothing.
func (x *mutator) unchanged(v valid) {
	x.Helper()
	q := v.make(x.cast)
	_, err := x.request(q)
	if want := unserved[string(x.rpc.Name())]; status.Code(err) != want {
		x.Fatalf("unchanged: %v, want %v", err, want)
	}
}

// unserved are the RPCs that answer Unimplemented to whatever they are sent.
var unserved = map[string]codes.Code{"CheckpointContainer": codes.Unimplemented, "CheckpointPod": codes.Unimplemented, "RestorePod": codes.Unimplemented}

// mostExcused is how many requests may be slow each time, where the machine is busy.
const mostExcused = 3

// tries is how often a request may be slow: a machine that does something else for a second does not do so each time.
const tries = 3

// send sends one changed request, and judges the answer.
func (x *mutator) send(rpc string, v valid, m matrix.Mutation) {
	x.Helper()
	var err error
	for try := range tries {
		q := m.Of(v.make(x.cast))
		before := x.objects()
		began := time.Now()
		var undo time.Duration
		undo, err = x.request(q)
		took := time.Since(began) - undo
		if err != nil {
			if left := slices.DeleteFunc(x.objects(), func(o string) bool { return slices.Contains(before, o) }); len(left) > 0 {
				x.Errorf("%s %s: refused (%v), and left %v", m.Field, m.Kind, err, left)
			}
		}
		if took > x.worst {
			x.worst, x.slow = took, m.Field+" "+m.Kind
		}
		if took < x.Scale(time.Second) {
			break
		}
		if try == tries-1 {
			if probe := x.probe(); probe < calm {
				x.Errorf("%s %s took %v", m.Field, m.Kind, took)
			} else {
				x.Logf("%s %s took %v, and a Version of 1 MiB takes %v: the machine is busy", m.Field, m.Kind, took, probe)
				*x.excused++
			}
		}
	}
	st := status.Convert(err)
	x.tally.add(m.Kind, st.Code())
	switch {
	case err == nil && matrix.Reason(rpc, m) == "":
		x.Errorf("%s %s: accepted, and not on the list", m.Field, m.Kind)
	case st.Code() == unserved[rpc]: // OK where it is not in that table
	case (m.Field == "config.command" || m.Field == "config.args") && st.Code() == codes.FailedPrecondition && strings.HasPrefix(st.Message(), "start container ") &&
		matrix.Reason(rpc, m) != "":
		// It was accepted, and then the kernel would not execute it.
	case !matrixCodes[st.Code()]:
		x.Errorf("%s %s: %v", m.Field, m.Kind, err)
	case !matrix.NamedBy(m, st.Message()) && !(st.Code() == codes.NotFound && names(m, st.Message())):
		x.Errorf("%s %s: %v %q does not name the field", m.Field, m.Kind, st.Code(), st.Message())
	}
}

// calm is how long a Version with a text of 1 MiB takes at most where nothing else has the processors; it takes 3 ms.
const calm = 25 * time.Millisecond

// probe returns how long the quickest of three such requests took.
func (x *mutator) probe() time.Duration {
	quickest := time.Hour
	for range 3 {
		began := time.Now()
		if _, err := runtimeapi.NewRuntimeServiceClient(x.conn).Version(x.ctx, &runtimeapi.VersionRequest{Version: strings.Repeat("v", 1<<20)}); err != nil {
			x.Fatal(err)
		}
		quickest = min(quickest, time.Since(began))
	}
	return quickest
}

// matrixCodes are the documented answers to what is wrong with one field: by itself, on this node, in the place where it is asked
// for; and NotFound for the name of something.
var matrixCodes = map[codes.Code]bool{codes.InvalidArgument: true, codes.FailedPrecondition: true, codes.Unimplemented: true, codes.NotFound: true}

// names reports whether an error that is about something that there is not says what that is: by the last element of its path, or by
// the value.
func names(m matrix.Mutation, text string) bool {
	if strings.Contains(text, m.Leaf()) {
		return true
	}
	for _, value := range []string{"../../etc/shadow", "%n%s", `a\nb`} { // as matrix has them
		if strings.Contains(text, value) {
			return true
		}
	}
	return false
}

// request sends a request and takes back what came of it. It returns how long that took.
func (x *mutator) request(q proto.Message) (time.Duration, error) {
	reply, err := x.invoke(q)
	began := time.Now()
	if undo := undos[string(x.rpc.Name())]; err == nil && undo != nil {
		err = undo(x, q, reply)
	}
	return time.Since(began), err
}

// matrixPatience is after what time a request hangs, which is told by its code.
const matrixPatience = 30 * time.Second

// invoke calls the RPC by its descriptor; of a stream it reads all answers, and returns the last.
func (x *mutator) invoke(q proto.Message) (proto.Message, error) {
	path := "/" + string(x.rpc.Parent().FullName()) + "/" + string(x.rpc.Name())
	reply := newMessage(x.rpc.Output())
	ctx, cancel := context.WithTimeout(x.ctx, x.Scale(matrixPatience))
	defer cancel()
	if !x.rpc.IsStreamingServer() {
		return reply, x.conn.Invoke(ctx, path, q, reply)
	}
	st, err := x.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, path)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(st.SendMsg(q), st.CloseSend()); err != nil {
		return nil, err
	}
	if x.rpc.Name() == "GetContainerEvents" { // has no end
		_, err := st.Header()
		return nil, err
	}
	for {
		if err := st.RecvMsg(reply); errors.Is(err, io.EOF) {
			return reply, nil
		} else if err != nil {
			return nil, err
		}
	}
}

// objects lists what a refused request must not leave: directories of pods and containers, and network namespaces.
func (x *mutator) objects() []string {
	pods, _ := filepath.Glob(x.RunDir + "/pods/*/*")
	pins, _ := filepath.Glob("/run/netns/*")
	return append(pods, pins...)
}

func newMessage(d protoreflect.MessageDescriptor) proto.Message {
	t, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	return t.New().Interface()
}

// logSize returns how much the daemon has logged.
func (s *scene) logSize() int64 {
	st, err := os.Stat(s.Daemon().LogPath)
	if err != nil {
		s.Fatal(err)
	}
	return st.Size()
}

// nothingBroke fails the test if the daemon has logged, since its log had a size, a panic or something that it could not undo.
func (s *scene) nothingBroke(since int64) {
	text, err := os.ReadFile(s.Daemon().LogPath)
	if err != nil || int64(len(text)) < since {
		s.Errorf("the daemon's log: %d bytes, %v", len(text), err)
		return
	}
	for _, line := range strings.Split(string(text[since:]), "\n") {
		if strings.Contains(line, "panic") || strings.Contains(line, "half undone") || strings.Contains(line, "DATA RACE") {
			s.Errorf("the daemon says: %.1000s", line)
		}
	}
}

// matrixTally counts codes by the kind of change.
type matrixTally map[string]map[codes.Code]int

func (t matrixTally) add(kind string, code codes.Code) {
	if t[kind] == nil {
		t[kind] = map[codes.Code]int{}
	}
	t[kind][code]++
}

// requests returns how many there were.
func (t matrixTally) requests() (n int) {
	for _, line := range t {
		for _, of := range line {
			n += of
		}
	}
	return n
}

// String returns the table, with a line for each kind and one for all.
func (t matrixTally) String() string {
	sum := map[codes.Code]int{}
	for _, line := range t {
		for c, n := range line {
			sum[c] += n
		}
	}
	head := slices.Sorted(maps.Keys(sum))
	var b strings.Builder
	row := func(name string, of func(codes.Code) string) {
		fmt.Fprintf(&b, "%-20s", name)
		for _, c := range head {
			fmt.Fprintf(&b, "%20s", of(c))
		}
		b.WriteByte('\n')
	}
	row("", codes.Code.String)
	for _, kind := range slices.Sorted(maps.Keys(t)) {
		row(kind, func(c codes.Code) string { return strconv.Itoa(t[kind][c]) })
	}
	row("all", func(c codes.Code) string { return strconv.Itoa(sum[c]) })
	return b.String()
}
