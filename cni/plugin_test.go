package cni

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containernetworking/cni/pkg/types"
)

// What plugins answer to ADD, and what comes of it. After every failure DEL was
// called and nothing is left.
func TestAnswers(t *testing.T) {
	ns := newNetNS(t)
	tests := []struct {
		name, add string
		ips, err  string // one of them
	}{
		{"one address", `answer "$(ip 10.1.2.3/24)"`, "[10.1.2.3]", ""},
		{"two addresses", `answer "$(ip 10.1.2.3/24),$(ip fd00::3/64)"`, "[10.1.2.3 fd00::3]", ""},
		{"IPv6 first", `answer "$(ip fd00::3/64),$(ip 10.1.2.3/24)"`, "[fd00::3 10.1.2.3]", ""},
		{"IPv6 only", `answer "$(ip fd00::3/64)"`, "[fd00::3]", ""},
		{"no interface named", `echo '{"ips":[{"address":"10.1.2.3/24"}]}'`, "[10.1.2.3]", ""},
		{"host's end", `answer '{"interface":0,"address":"10.9.9.9/24"},'"$(ip 10.1.2.3/24)"`, "[10.1.2.3]", ""},
		{"host's eth0, too", `echo '{"interfaces":[{"name":"eth0"},{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0,"address":"10.9.9.9/24"},{"interface":1,"address":"10.1.2.3/24"}]}'`, "[10.1.2.3]", ""},
		{"sandbox left out", `echo '{"interfaces":[{"name":"eth0"}],"ips":[{"interface":0,"address":"10.1.2.3/24"}]}'`, "[10.1.2.3]", ""},
		{"version 0.4.0", `echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.1.2.3/24"}]}'`, "[10.1.2.3]", ""},
		{"version 0.2.0", `echo '{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24"}}'`, "[10.1.2.3]", ""},
		{"talks on stderr", `echo hello >&2; answer "$(ip 10.1.2.3/24)"`, "[10.1.2.3]", ""},
		{"ten thousand routes", `printf '{"ips":[{"address":"10.1.2.3/24"}],"routes":['; i=0; while [ $i -lt 9999 ]; do printf '{"dst":"10.2.0.0/16"},'; i=$((i+1)); done; echo '{"dst":"10.2.0.0/16"}]}'`, "[10.1.2.3]", ""},

		{"error as JSON", `echo '{"cniVersion":"1.0.0","code":11,"msg":"no more addresses","details":"range full"}'; exit 1`, "", "no more addresses; range full"},
		{"error as text", `echo oh dear >&2; exit 3`, "", `exit status 3: "oh dear"`},
		{"error on stdout", `echo oh dear; exit 3`, "", "oh dear"},
		{"silent failure", `exit 3`, "", "exit status 3"},
		{"killed", `kill -9 $$`, "", "signal: killed"},
		{"garbage", `echo hello`, "", "invalid character"},
		{"empty", ``, "", "unexpected end of JSON input"},
		{"null", `echo null`, "", "no address for eth0"},
		{"a list", `echo '[]'`, "", "cannot unmarshal array"},
		{"no address", `answer`, "", "no address for eth0"},
		{"only the host's", `answer '{"interface":0,"address":"10.9.9.9/24"}'`, "", "no address for eth0"},
		{"address of nothing", `answer '{"interface":7,"address":"10.9.9.9/24"}'`, "", "interface 7 of 2"},
		{"address of minus one", `answer '{"interface":-1,"address":"10.9.9.9/24"}'`, "", "interface -1 of 2"},
		{"broken address", `answer "$(ip 10.1.2/24)"`, "", "invalid CIDR"},
		{"address missing", `answer '{"interface":1}'`, "", `address "<nil>"`},
		{"unspecified address", `answer "$(ip 0.0.0.0/0)"`, "", `address "0.0.0.0/0"`},
		{"multicast address", `answer "$(ip ff02::1/64)"`, "", `address "ff02::1/64"`},
		{"loopback address", `answer "$(ip 127.0.0.1/8)"`, "", `address "127.0.0.1/8"`},
		{"null address", `answer null`, "", "null"},
		{"null interface", `echo '{"cniVersion":"0.4.0","interfaces":[null],"ips":[{"version":"4","address":"10.1.2.3/24"}]}'`, "", "null"},
		{"version of the future", `echo '{"cniVersion":"99.0.0","ips":[]}'`, "", "99.0.0"},
		{"2 MB of blanks", `answer "$(ip 10.1.2.3/24)"; yes '' | head -c 2000000`, "", "more than 1048576 bytes"},
		{"long complaint", `yes | head -c 100000 >&2; exit 1`, "", "exit status 1"},
		{"long complaint as JSON", `printf '{"code":1,"msg":"'; head -c 300000 /dev/zero | tr '\0' x; echo '"}'; exit 1`, "", "xxxxx"},
		{"broken address of 300 kB", `printf '{"ips":[{"address":"'; head -c 300000 /dev/zero | tr '\0' x; echo '"}]}'`, "", "invalid CIDR"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t)
			n.fake(tt.add, "")
			res, err := n.Add(within(t, 20*time.Second), pod("p", ns))
			if tt.err == "" {
				must(t, err)
				if got := fmt.Sprint(res.IPs); got != tt.ips {
					t.Errorf("addresses %s, want %s", got, tt.ips)
				}
				must(t, n.Del(t.Context(), "p"))
			} else {
				if err == nil {
					t.Fatalf("no error but %+v", res)
				}
				has(t, err.Error(), tt.err, "test")
				if len(err.Error()) > 8<<10 {
					t.Errorf("%d bytes of error", len(err.Error()))
				}
			}
			if want := "ADD p ns=" + ns + "\nDEL p ns=" + ns + "\n"; n.calls() != want {
				t.Errorf("calls %q, want %q", n.calls(), want)
			}
			n.nothingLeft()
		})
	}
}

// The code of a plugin's error is kept for who wants to look.
func TestErrorKeepsItsCode(t *testing.T) {
	n := newNetwork(t)
	n.fake(`echo '{"code":11,"msg":"later"}'; exit 1`, "")
	_, err := n.Add(t.Context(), pod("p", newNetNS(t)))
	if e := (*types.Error)(nil); !errors.As(err, &e) || e.Code != types.ErrTryAgainLater {
		t.Fatalf("%#v", err)
	}
}

// A hundred megabytes are read, so that the plugin ends, and not kept.
func TestFloodIsBounded(t *testing.T) {
	ns := newNetNS(t)
	for name, add := range map[string]string{
		"stdout": `head -c 104857600 /dev/zero`,
		"stderr": `head -c 104857600 /dev/zero >&2; exit 1`,
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			n.fake(add, "")
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err := n.Add(within(t, time.Minute), pod("p", ns))
			runtime.ReadMemStats(&after)
			if err == nil {
				t.Fatal("no error")
			}
			if grown := (after.TotalAlloc - before.TotalAlloc) >> 20; grown > 16 {
				t.Errorf("%d MiB were allocated", grown)
			}
			n.nothingLeft()
		})
	}
}

// A plugin that hangs is killed with its child when the context ends, which the
// error says; DEL follows.
func TestHangingAdd(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`sleep 1000 & echo $! > $DIR/child; echo $$ > $DIR/self; wait`, "")
	for _, tt := range []struct {
		want error
		ctx  func(hangs <-chan struct{}) context.Context
	}{
		{context.DeadlineExceeded, func(<-chan struct{}) context.Context { return within(t, 3*time.Second) }}, // a plugin may need one to begin
		{context.Canceled, func(hangs <-chan struct{}) context.Context {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-hangs; cancel() }()
			return ctx
		}},
		{errTest, func(hangs <-chan struct{}) context.Context {
			ctx, cancel := context.WithCancelCause(t.Context())
			go func() { <-hangs; cancel(errTest) }()
			return ctx
		}},
	} {
		for _, f := range []string{"/calls", "/self", "/child"} {
			_ = os.Remove(n.dir + f)
		}
		ctx := tt.ctx(n.hangs())
		over := make(chan time.Time, 1)
		defer context.AfterFunc(ctx, func() { over <- time.Now() })()
		_, err := n.Add(ctx, pod("p", ns))
		if !errors.Is(err, tt.want) {
			t.Errorf("got %v, want %v", err, tt.want)
		}
		if d := time.Since(<-over); d > 4700*time.Millisecond {
			t.Errorf("took %v", d)
		}
		for _, f := range []string{"/self", "/child"} {
			eventually(t, f+" is killed", func() bool { return !alive(t, n.dir+f) })
		}
		if want := "ADD p ns=" + ns + "\nDEL p ns=" + ns + "\n"; n.calls() != want {
			t.Errorf("calls %q, want %q", n.calls(), want)
		}
		n.nothingLeft()
	}
}

var errTest = errors.New("the test says so")

// hangs is closed when the plugin of TestHangingAdd hangs.
func (n *network) hangs() <-chan struct{} {
	c := make(chan struct{})
	go func() { // ends with the plugin's beginning, at the latest after a minute
		defer close(c)
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Millisecond) {
			if b, err := os.ReadFile(n.dir + "/self"); err == nil && strings.HasSuffix(string(b), "\n") {
				return
			}
		}
	}()
	return c
}

// Others are connected while one plugin hangs, and a Del for the same pod waits
// no longer than it was told to.
func TestHangingAddHoldsNobody(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`test $CNI_CONTAINERID = slow && { : > $DIR/hangs; sleep 1000; }; answer "$(ip 10.0.0.1/8)"`, "")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := n.Add(ctx, pod("slow", ns))
		done <- err
	}()
	eventually(t, "slow hangs", func() bool { _, err := os.Stat(n.dir + "/hangs"); return err == nil })
	_, err := n.Add(within(t, 5*time.Second), pod("other", ns))
	must(t, err, n.Del(t.Context(), "other"), n.Status(t.Context()))
	start := time.Now()
	if err := n.Del(within(t, 100*time.Millisecond), "slow"); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > 3*time.Second {
		t.Errorf("Del: %v after %v", err, time.Since(start))
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("Add: %v", err)
	}
	n.nothingLeft()
	if len(n.turns.m) != 0 {
		t.Errorf("%d turns are left", len(n.turns.m))
	}
}

// A request that is over before it began runs nothing.
func TestEndedContext(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`answer "$(ip 10.0.0.1/8)"`, "")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for range 20 {
		if _, err := n.Add(ctx, pod("p", ns)); !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	if n.calls() != "" {
		t.Errorf("calls %q", n.calls())
	}
	n.nothingLeft()
}

// A plugin that fails, or whose child keeps its output open, leaves no process.
func TestChildrenOfAFailedPlugin(t *testing.T) {
	ns := newNetNS(t)
	for name, add := range map[string]string{
		"output kept open": `sleep 1000 & echo $! > $DIR/child; answer "$(ip 10.0.0.1/8)"`,
		"failure":          `sleep 1000 >/dev/null 2>&1 & echo $! > $DIR/child; exit 1`,
	} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			n.fake(add, "")
			if _, err := n.Add(within(t, 20*time.Second), pod("p", ns)); err == nil {
				t.Error("no error")
			}
			if alive(t, n.dir+"/child") { // DEL has come meanwhile
				t.Error("the child lives")
			}
			n.nothingLeft()
		})
	}
}

// When DEL fails after a failed ADD the intent stays, also for the next daemon.
func TestFailedUndo(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake("echo add broke >&2; exit 1", `test -e $DIR/mended || { echo del broke >&2; exit 1; }`)
	_, err := n.Add(t.Context(), pod("p", ns))
	has(t, fmt.Sprint(err), "add broke", "del broke")
	for range 3 {
		n.pending("p")
		has(t, fmt.Sprint(n.Del(t.Context(), "p")), "del broke")
		n.restart()
	}
	must(t, os.WriteFile(n.dir+"/mended", nil, 0o600), n.Del(t.Context(), "p"))
	n.nothingLeft()
}

func TestHangingDel(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`answer "$(ip 10.0.0.1/8)"`, `test -e $DIR/mended || sleep 1000`)
	_, err := n.Add(t.Context(), pod("p", ns))
	must(t, err)
	if err := n.Del(within(t, 200*time.Millisecond), "p"); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatal(err)
	}
	n.pending("p")
	must(t, os.WriteFile(n.dir+"/mended", nil, 0o600), n.Del(t.Context(), "p"))
	n.nothingLeft()
}

// In a chain the second plugin's failure undoes the first, in reverse order, and
// each gets the result of the one before.
func TestChain(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.script("first", `echo "first $CNI_COMMAND" >> $DIR/order; test $CNI_COMMAND = ADD && answer "$(ip 10.0.0.1/8)"; exit 0`)
	n.script("second", `echo "second $CNI_COMMAND" >> $DIR/order; test $CNI_COMMAND = ADD && exit 1; exit 0`)
	n.list("1.0.0", "first", "second")
	if _, err := n.Add(t.Context(), pod("p", ns)); err == nil {
		t.Fatal("no error")
	}
	order, err := os.ReadFile(n.dir + "/order")
	must(t, err)
	if want := "first ADD\nsecond ADD\nsecond DEL\nfirst DEL\n"; string(order) != want {
		t.Errorf("order %q", order)
	}
	stdin, err := os.ReadFile(n.dir + "/stdin.ADD")
	must(t, err)
	has(t, string(stdin), `"prevResult"`, "10.0.0.1/8")
	n.nothingLeft()
}

// What a pod asks for reaches the plugins that know it, at ADD and at DEL, also
// by the daemon after.
func TestRuntimeConfig(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`env > $DIR/env; answer "$(ip 10.0.0.1/8)"`, "")
	n.list("1.0.0", `{"type":"fake","capabilities":{"portMappings":true,"bandwidth":true}}`)
	p := pod("p", ns)
	p.PortMappings = []PortMapping{{Protocol: "udp", HostIP: "10.7.7.7", HostPort: 53, ContainerPort: 5353}, {Protocol: "tcp", HostPort: 80, ContainerPort: 8080}}
	p.Bandwidth = &Bandwidth{IngressRate: 1, IngressBurst: 2, EgressRate: 18446744073709551615, EgressBurst: 4}
	_, err := n.Add(t.Context(), p)
	must(t, err)
	n.restart()
	must(t, n.Del(t.Context(), "p"))
	for _, verb := range []string{"ADD", "DEL"} {
		stdin, err := os.ReadFile(n.dir + "/stdin." + verb)
		must(t, err)
		has(t, string(stdin), `"runtimeConfig":{`,
			`"portMappings":[{"protocol":"udp","hostIP":"10.7.7.7","hostPort":53,"containerPort":5353},{"protocol":"tcp","hostPort":80,"containerPort":8080}]`,
			`"bandwidth":{"ingressRate":1,"ingressBurst":2,"egressRate":18446744073709551615,"egressBurst":4}`)
	}
	env, err := os.ReadFile(n.dir + "/env")
	must(t, err)
	has(t, string(env), "CNI_IFNAME=eth0\n", "CNI_PATH="+n.dir+"/bin\n", "CNI_CONTAINERID=p\n", "CNI_NETNS="+ns+"\n",
		"CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=name-p;K8S_POD_INFRA_CONTAINER_ID=p;K8S_POD_UID=uid-p\n")

	n.list("1.0.0", "fake") // no capabilities: nothing is passed on
	_, err = n.Add(t.Context(), p)
	must(t, err, n.Del(t.Context(), "p"))
	stdin, _ := os.ReadFile(n.dir + "/stdin.ADD")
	if strings.Contains(string(stdin), "runtimeConfig") {
		t.Errorf("input %s", stdin)
	}
}

// An add-on that updates itself is writing the plugin's file.
func TestBusyPlugin(t *testing.T) {
	n, ns := newNetwork(t), newNetNS(t)
	n.fake(`answer "$(ip 10.0.0.1/8)"`, "")
	write := func(d time.Duration) {
		f, err := os.OpenFile(n.dir+"/bin/fake", os.O_WRONLY, 0)
		must(t, err)
		time.AfterFunc(d, func() { f.Close() })
	}
	write(600 * time.Millisecond)
	if _, err := n.Add(within(t, 200*time.Millisecond), pod("p", ns)); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, syscall.ETXTBSY) {
		t.Fatal(err)
	}
	n.nothingLeft() // DEL waited for it, too
	write(300 * time.Millisecond)
	_, err := n.Add(t.Context(), pod("p", ns))
	must(t, err, n.Del(t.Context(), "p"))
	n.nothingLeft()
}

// FuzzResult lets a plugin print anything: no panic, and an address or an error.
// What was accepted is accepted again from the cache, at DEL.
func FuzzResult(f *testing.F) {
	for _, s := range []string{
		`{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"interface":0,"address":"10.1.2.3/24","gateway":"10.1.2.1"}],"routes":[{"dst":"0.0.0.0/0"},null],"dns":{}}`,
		`{"cniVersion":"0.4.0","interfaces":[{"name":"eth0"},null],"ips":[{"version":"6","address":"fd00::1/64"},null],"routes":[null]}`,
		`{"cniVersion":"0.2.0","ip4":{"ip":"10.1.2.3/24","routes":[{"dst":"::/0"}]},"ip6":null}`, `{"cniVersion":null}`, `null`, `[]`, `{"ips":null}`,
		`{"ips":[null],"IPS":[]}`, `{"cniVersion":"0.3.1","Interfaces":[null],"interfaces":[],"IPS":[null]}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, out []byte) {
		if checkOutput(out) != nil {
			return
		}
		roundTrip(t, out)
	})
}
