package nri

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	nrilog "github.com/containerd/nri/pkg/log"
	"github.com/containerd/nri/pkg/stub"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/proto"
)

// plugin is a real one: the library's stub over a socket, in this process. Fields are set before it connects.
type plugin struct {
	run    func(ctx context.Context) error
	create func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error)
	evict  string        // what it evicts with each request of its own and with each creation
	sync   time.Duration // how long it takes for its first look

	stub   stub.Stub
	closed chan struct{}

	mu     sync.Mutex
	synced []string // guarded by mu: ids
	heard  []string // guarded by mu
}

// note notes an event.
func (p *plugin) note(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.heard = append(p.heard, what)
}

func (p *plugin) Synchronize(ctx context.Context, pods []*api.PodSandbox, containers []*api.Container) ([]*api.ContainerUpdate, error) {
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(p.sync):
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pod := range pods {
		p.synced = append(p.synced, pod.GetId())
	}
	for _, c := range containers {
		p.synced = append(p.synced, c.GetId())
	}
	return nil, nil
}

func (p *plugin) RunPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	p.note("run " + pod.GetId())
	if p.run != nil {
		return p.run(ctx)
	}
	return nil
}

func (p *plugin) StopPodSandbox(ctx context.Context, pod *api.PodSandbox) error {
	p.note("stop " + pod.GetId())
	if p.run != nil {
		return p.run(ctx)
	}
	return nil
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	p.note("create " + c.GetId())
	if p.create != nil {
		return p.create(c)
	}
	return nil, nil, nil
}

// state is a Runtime with two things in it, which notes what plugins want.
type state struct {
	mu   sync.Mutex
	want []string // guarded by mu
}

func (s *state) State() ([]*api.PodSandbox, []*api.Container) {
	return []*api.PodSandbox{{Id: "pod"}}, []*api.Container{{Id: "old"}}
}

func (s *state) Update(_ context.Context, u *api.ContainerUpdate) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want = append(s.want, "update "+u.GetContainerId())
	if u.GetContainerId() == "none" {
		return errors.New("no such container")
	}
	return nil
}

func (s *state) Evict(_ context.Context, e *api.ContainerEviction) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.want = append(s.want, "evict "+e.GetContainerId())
	return nil
}

// quiet drops a log.
type quiet struct{ nrilog.Logger }

func (quiet) Debugf(context.Context, string, ...any) {}
func (quiet) Infof(context.Context, string, ...any)  {}
func (quiet) Warnf(context.Context, string, ...any)  {}
func (quiet) Errorf(context.Context, string, ...any) {}

// listen starts Plugins on a socket of the test's.
func listen(t *testing.T, timeout time.Duration, required ...string) (*Plugins, *state) {
	t.Helper()
	p, err := Open(Config{
		Version: "1", Socket: filepath.Join(t.TempDir(), "s"), RegistrationTimeout: 30 * time.Second, RequestTimeout: timeout, Required: required, Log: quiet{},
	})
	if err != nil {
		t.Fatal(err)
	}
	s := &state{}
	if err := p.Start(s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p, s
}

// connect connects a plugin and returns when requests reach it.
func connect(t *testing.T, p *Plugins, idx, name string, pl *plugin) *plugin {
	t.Helper()
	pl.closed = make(chan struct{})
	// The stub has no words for evictions.
	ask := func(ctx context.Context, req *ttrpc.Request, resp *ttrpc.Response, info *ttrpc.UnaryClientInfo, invoke ttrpc.Invoker) error {
		if info.FullMethod == updateContainers && pl.evict != "" {
			m := &api.UpdateContainersRequest{}
			if err := proto.Unmarshal(req.GetPayload(), m); err != nil {
				return err
			}
			m.Evict = []*api.ContainerEviction{{ContainerId: pl.evict}}
			req.Payload, _ = proto.Marshal(m)
		}
		return invoke(ctx, req, resp)
	}
	answer := func(ctx context.Context, u ttrpc.Unmarshaler, _ *ttrpc.UnaryServerInfo, method ttrpc.Method) (any, error) {
		r, err := method(ctx, u)
		if c, ok := r.(*api.CreateContainerResponse); ok && pl.evict != "" && c != nil {
			c.Evict = []*api.ContainerEviction{{ContainerId: pl.evict}}
		}
		return r, err
	}
	var err error
	pl.stub, err = stub.New(pl, stub.WithPluginIdx(idx), stub.WithPluginName(name), stub.WithSocketPath(p.cfg.Socket), stub.WithLogger(quiet{}),
		stub.WithOnClose(func() { close(pl.closed) }),
		stub.WithTTRPCOptions([]ttrpc.ClientOpts{ttrpc.WithUnaryClientInterceptor(ask)}, []ttrpc.ServerOpt{ttrpc.WithUnaryServerInterceptor(answer)}))
	if err != nil {
		t.Fatal(err)
	}
	if err := pl.stub.Start(context.Background()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(pl.stub.Stop)
	until(t, "plugin is synchronised", func() bool { return p.has(idx + "-" + name) })
	return pl
}

// has tells whether a plugin is connected.
func (p *Plugins) has(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.linksLocked(), func(l *link) bool { return l.name == name })
}

// until waits for something that has to come true.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// TestSlowFirstLook: a plugin has longer for its first look than for an answer, and misses nothing that is asked for meanwhile.
func TestSlowFirstLook(t *testing.T) {
	p, _ := listen(t, 100*time.Millisecond)
	pl := &plugin{sync: 500 * time.Millisecond}
	asked := make(chan error, 1)
	go func() { // ends with the answer
		time.Sleep(200 * time.Millisecond)
		asked <- run(p, "meanwhile")
	}()
	connect(t, p, "10", "slow", pl)
	if err := <-asked; err != nil {
		t.Fatal(err)
	}
	pl.mu.Lock()
	defer pl.mu.Unlock()
	if !slices.Contains(pl.heard, "run meanwhile") {
		t.Errorf("it heard %q", pl.heard)
	}
}

func run(p *Plugins, id string) error {
	return p.RunPodSandbox(context.Background(), &api.PodSandbox{Id: id}, func() {})
}

func create(p *Plugins, c *api.Container) (*Answer, error) {
	return p.CreateContainer(context.Background(), &api.PodSandbox{Id: "pod"}, c, func() {})
}

// hang keeps a plugin from answering until the test ends.
func hang(t *testing.T) func(context.Context) error {
	end := make(chan struct{})
	t.Cleanup(func() { close(end) })
	return func(context.Context) error {
		<-end
		return nil
	}
}

// TestRequiredIsNotThere: a required plugin that is not connected fails what would be made, by either of its names, before
// any other plugin hears of it; what cannot be undone goes on.
func TestRequiredIsNotThere(t *testing.T) {
	p, _ := listen(t, 30*time.Second, "guard", "07-watch")
	other := connect(t, p, "00", "other", &plugin{})
	refused := func(who string) {
		t.Helper()
		began := false
		err := p.RunPodSandbox(context.Background(), &api.PodSandbox{Id: "a"}, func() { began = true })
		if !errors.Is(err, ErrNoAnswer) || !strings.Contains(err.Error(), who) || began {
			t.Errorf("without %s: %v, begun %v", who, err, began)
		}
	}
	refused("guard")
	connect(t, p, "99", "guard", &plugin{})
	refused("07-watch")
	connect(t, p, "08", "watch", &plugin{})
	refused("07-watch")
	if err := p.Tell(context.Background(), api.Event_STOP_POD_SANDBOX, &api.PodSandbox{Id: "a"}, nil, func() {}); err != nil {
		t.Errorf("stop: %v", err)
	}
	watch := connect(t, p, "07", "watch", &plugin{})
	if err := run(p, "b"); err != nil {
		t.Errorf("with all: %v", err)
	}
	watch.stub.Stop()
	until(t, "its end is noticed", func() bool { return !p.has("07-watch") })
	refused("07-watch")
	if want := []string{"stop a", "run b"}; !slices.Equal(other.heard, want) {
		t.Errorf("the other heard %q, want %q", other.heard, want)
	}
}

// TestRequiredHangs: a required plugin that does not answer in time fails the request, where the adaptation alone goes on
// without it (nri#316), and so does what comes after it.
func TestRequiredHangs(t *testing.T) {
	p, _ := listen(t, time.Second, "guard")
	guard := connect(t, p, "10", "guard", &plugin{run: hang(t)})
	for range 2 {
		if err := run(p, "a"); !errors.Is(err, ErrNoAnswer) || !strings.Contains(err.Error(), "guard") || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("run: %v", err)
		}
	}
	<-guard.closed
}

// TestRequiredHangsUp: a required plugin that ends amid a request fails it.
func TestRequiredHangsUp(t *testing.T) {
	p, _ := listen(t, time.Minute, "guard")
	pl := &plugin{}
	pl.run = func(context.Context) error {
		go pl.stub.Stop()
		<-pl.closed
		return nil
	}
	connect(t, p, "10", "guard", pl)
	if err := run(p, "a"); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("run: %v", err)
	}
}

// TestOptionalHangs: a plugin that is not required costs its time once.
func TestOptionalHangs(t *testing.T) {
	const timeout = 2 * time.Second
	p, _ := listen(t, timeout)
	connect(t, p, "10", "slow", &plugin{run: hang(t)})
	after := connect(t, p, "20", "after", &plugin{})
	for _, id := range []string{"a", "b", "c", "d", "e"} {
		begin := time.Now()
		if err := run(p, id); err != nil {
			t.Errorf("run: %v", err)
		}
		if d := time.Since(begin); id != "a" && d > timeout {
			t.Errorf("run %s took %v, after the plugin was dropped", id, d)
		}
	}
	if want := []string{"run a", "run b", "run c", "run d", "run e"}; !slices.Equal(after.heard, want) {
		t.Errorf("the next one heard %q, want %q", after.heard, want)
	}
}

// TestPluginSaysNo: the error of a plugin is the request's, without its code.
func TestPluginSaysNo(t *testing.T) {
	p, _ := listen(t, time.Minute)
	connect(t, p, "10", "no", &plugin{run: func(context.Context) error { return fmt.Errorf("not today") }})
	if err := run(p, "a"); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "plugin 10-no: not today") {
		t.Errorf("run: %v", err)
	}
}

// TestOrderAndConflict: plugins are asked by index, each sees what those before it did, and two that set the same thing are
// refused.
func TestOrderAndConflict(t *testing.T) {
	p, _ := listen(t, time.Minute)
	var mu sync.Mutex
	var order []string
	set := func(name, key string) *plugin {
		return &plugin{create: func(c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
			mu.Lock()
			defer mu.Unlock()
			order = append(order, fmt.Sprint(name, len(c.GetEnv())))
			a := &api.ContainerAdjustment{}
			a.AddEnv(key, name)
			return a, nil, nil
		}}
	}
	connect(t, p, "30", "c", set("c", "C"))
	connect(t, p, "10", "a", set("a", "A"))
	connect(t, p, "20", "b", set("b", "B"))
	answer, err := create(p, &api.Container{Id: "x"})
	if err != nil || len(answer.Adjust.GetEnv()) != 3 || !slices.Equal(order, []string{"a0", "b1", "c2"}) {
		t.Fatalf("create: %v, %v, in the order %q", answer, err, order)
	}
	connect(t, p, "40", "thief", set("thief", "A"))
	if _, err := create(p, &api.Container{Id: "y"}); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "thief") {
		t.Errorf("conflict: %v", err)
	}
}

// TestRemovals: what a plugin takes away of the container's own reaches us, which the adaptation's answer does not say; a variable also
// where the request did not name it.
func TestRemovals(t *testing.T) {
	p, _ := listen(t, time.Minute)
	connect(t, p, "10", "a", &plugin{create: func(*api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
		a := &api.ContainerAdjustment{}
		a.RemoveEnv("GONE")
		a.RemoveEnv("UNTOLD")
		a.RemoveDevice("/dev/gone")
		a.RemoveNamespace(&api.LinuxNamespace{Type: "cgroup"})
		return a, nil, nil
	}})
	answer, err := create(p, &api.Container{Id: "x", Env: []string{"GONE=1", "KEPT=1"}, Linux: &api.LinuxContainer{
		Devices: []*api.LinuxDevice{{Path: "/dev/gone"}, {Path: "/dev/kept"}}, Namespaces: []*api.LinuxNamespace{{Type: "cgroup"}, {Type: "pid"}}}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range answer.Adjust.GetEnv() {
		got = append(got, e.GetKey())
	}
	for _, d := range answer.Adjust.GetLinux().GetDevices() {
		got = append(got, d.GetPath())
	}
	for _, n := range answer.Adjust.GetLinux().GetNamespaces() {
		got = append(got, n.GetType())
	}
	if want := []string{"-GONE", "-UNTOLD", "-/dev/gone", "-cgroup"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestSynchronize: a plugin that connects late is told what there is.
func TestSynchronize(t *testing.T) {
	p, _ := listen(t, time.Minute)
	pl := connect(t, p, "10", "late", &plugin{})
	if want := []string{"pod", "old"}; !slices.Equal(pl.synced, want) {
		t.Errorf("got %q, want %q", pl.synced, want)
	}
}

// TestUnsolicited: a plugin changes and evicts containers when it likes, and hears what could not be changed.
func TestUnsolicited(t *testing.T) {
	p, s := listen(t, time.Minute)
	pl := connect(t, p, "10", "a", &plugin{evict: "old"})
	failed, err := pl.stub.UpdateContainers([]*api.ContainerUpdate{{ContainerId: "one"}, {ContainerId: "none"}})
	if err != nil || len(failed) != 1 || failed[0].GetContainerId() != "none" {
		t.Errorf("not changed: %v, %v", failed, err)
	}
	if want := []string{"update one", "update none", "evict old"}; !slices.Equal(s.want, want) {
		t.Errorf("got %q, want %q", s.want, want)
	}
	answer, err := create(p, &api.Container{Id: "x"})
	if err != nil || len(answer.Evict) != 1 || answer.Evict[0].GetContainerId() != "old" {
		t.Errorf("eviction with a creation: %v, %v", answer, err)
	}
}

// TestSocket: it is for its owner, nobody's socket is taken away, and one that a killed daemon left is replaced.
func TestSocket(t *testing.T) {
	p, _ := listen(t, time.Minute)
	if info, err := os.Stat(p.cfg.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode of the socket: %v, %v", info.Mode(), err)
	}
	if _, err := Open(Config{Socket: p.cfg.Socket}); err == nil {
		t.Error("a socket that is listened on was taken away")
	}
	file := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Socket: file}); err == nil {
		t.Error("a file was taken away")
	}
	stale := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := Open(Config{Socket: stale}); err != nil {
		t.Errorf("a socket that nobody listens on: %v", err)
	}
}

// TestDirectories: plugins that others can replace are not started.
func TestDirectories(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(t.TempDir(), "s")
	if err := os.WriteFile(filepath.Join(dir, "10-a"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Socket: socket, PluginDir: dir}); err != nil {
		t.Errorf("a directory of ours: %v", err)
	}
	if err := os.Chmod(filepath.Join(dir, "10-a"), 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Socket: socket, PluginDir: dir}); err == nil || !strings.Contains(err.Error(), "10-a") {
		t.Errorf("a plugin that anybody writes: %v", err)
	}
}

// TestMain makes this program a plugin where the adaptation starts it as one: it writes down what it hears in the file that
// its configuration names.
func TestMain(m *testing.M) {
	if os.Getenv(api.PluginNameEnvVar) == "" {
		os.Exit(m.Run())
	}
	pl := &launched{}
	s, err := stub.New(pl)
	if err == nil {
		err = s.Run(context.Background())
	}
	if err != nil {
		os.Exit(1)
	}
}

// launched is the plugin that this program is.
type launched struct{ file string }

func (l *launched) Configure(_ context.Context, config, runtime, _ string) (api.EventMask, error) {
	l.file = strings.TrimSpace(config)
	return 0, l.write("configured by " + runtime)
}

func (l *launched) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return l.write(fmt.Sprint("run ", pod.GetId(), " as ", os.Getpid()))
}

func (l *launched) write(line string) error {
	return os.WriteFile(l.file, []byte(line), 0o600)
}

// TestLaunched: a plugin of the directory is started with us and given its configuration, is asked as others are, and ends with
// us.
func TestLaunched(t *testing.T) {
	dir := t.TempDir()
	heard := filepath.Join(dir, "heard")
	for _, d := range []string{"bin", "conf"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "bin", "05-own"), self, 0o700), os.WriteFile(filepath.Join(dir, "conf", "own.conf"), []byte(heard), 0o600)); err != nil {
		t.Fatal(err)
	}
	p, err := Open(Config{
		Socket: filepath.Join(dir, "s"), PluginDir: filepath.Join(dir, "bin"), ConfigDir: filepath.Join(dir, "conf"),
		RegistrationTimeout: time.Minute, RequestTimeout: time.Minute, Required: []string{"own"},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.Start(&state{}); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(heard); err != nil || string(b) != "configured by vitrine" {
		t.Errorf("at its start: %q, %v", b, err)
	}
	if err := run(p, "a"); err != nil {
		t.Error(err)
	}
	b, _ := os.ReadFile(heard)
	var pid int
	if n, err := fmt.Sscanf(string(b), "run a as %d", &pid); n != 1 {
		t.Fatalf("it heard %q: %v", b, err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
	if err := syscall.Kill(pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("the plugin afterwards: %v", err)
	}
}

// TestNoPlugins: without plugins nothing is asked, and what is begun is begun.
func TestNoPlugins(t *testing.T) {
	var p *Plugins
	began := false
	if err := p.RunPodSandbox(context.Background(), nil, func() { began = true }); err != nil || !began {
		t.Errorf("run: %v, begun %v", err, began)
	}
}
