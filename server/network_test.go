package server

import (
	"context"
	"errors"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// networkReady asks Status for the network's condition.
func networkReady(t *testing.T, c *client) (bool, string) {
	t.Helper()
	st, err := c.RuntimeServiceClient.Status(context.Background(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	n := st.GetStatus().GetConditions()[1]
	return n.GetStatus(), n.GetMessage()
}

// A kubelet starts no pod on a node whose network is not ready: a plugin that is slow once must not cause that, and its
// question must not be asked again while it is still at it.
func TestSlowNetworkKeepsItsLastWord(t *testing.T) {
	c, f := serve(t, nil)
	if ok, why := networkReady(t, c); !ok {
		t.Fatal(why)
	}
	asked, answer := make(chan struct{}, 10), make(chan error)
	f.do = func(ctx context.Context, call string) error {
		if call != "NetworkStatus" {
			return nil
		}
		asked <- struct{}{}
		select {
		case err := <-answer:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for range 2 {
		start := time.Now()
		if ok, why := networkReady(t, c); !ok {
			t.Errorf("a slow plugin made the network unready: %s", why)
		}
		if d := time.Since(start); d > networkPatience+time.Second {
			t.Errorf("took %v", d)
		}
	}
	if len(asked) != 1 {
		t.Errorf("asked %d times", len(asked))
	}
	// Its late answer counts for those who ask next, if the next is late too.
	answer <- errors.New("no subnet yet")
	if ok, why := networkReady(t, c); ok || why != "no subnet yet" {
		t.Errorf("after a late no: %v %q", ok, why)
	}
}

func TestPanicOfNetworkIsAnAnswer(t *testing.T) {
	c, f := serve(t, nil)
	f.do = func(_ context.Context, call string) error {
		if call == "NetworkStatus" {
			panic("in a plugin's result")
		}
		return nil
	}
	if ok, why := networkReady(t, c); ok || why == "" {
		t.Errorf("%v %q", ok, why)
	}
}
