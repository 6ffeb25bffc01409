package spec

import (
	"errors"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// quantities are texts and what Kubernetes reads from them, rounded up; -1 for what is none.
var quantities = map[string]int64{
	"0": 0, "10": 10, "+5": 5, "-5": -5, "007": 7, "10.": 10, ".5": 1, "1.5": 2, "-2.5": -2, "1.0000": 1, "-0": 0,
	"1k": 1e3, "10M": 1e7, "1.5G": 1_500_000_000, "2T": 2e12, "1P": 1e15, "1E": 1e18, "1001m": 2, "1u": 1, "3000000001n": 4,
	"1Ki": 1 << 10, "1.5Mi": 3 << 19, "2Gi": 2 << 30, "1Ti": 1 << 40, "1Pi": 1 << 50, "1Ei": 1 << 60, "0.1Ki": 103,
	"1e3": 1e3, "1E3": 1e3, "12e+2": 1200, "1500e-3": 2, "1.25e1": 13, "1e-99999999": 1, "0e99999999": 0,

	"": -1, " ": -1, "M": -1, ".": -1, "+": -1, "-": -1, "1.2.3": -1, "1 M": -1, " 1M": -1, "1M ": -1, "1M\n": -1, "+-1": -1, "--1": -1, "10Mbit": -1, "1K": -1, "1mi": -1,
	"1MI": -1, "1B": -1, "1e": -1, "1eM": -1, "1e1.5": -1, "1e3k": -1, "1e1_0": -1, "0x10": -1, "1_000": -1, "Inf": -1, "NaN": -1, "1/2": -1, "1,5": -1,
	"١": -1, "1e99999999999999999999": -1, "1\x00": -1, "1\xff": -1, "1" + strings.Repeat("0", maxQuantity): -1,
}

func TestQuantity(t *testing.T) {
	for text, want := range quantities {
		got, ok := quantity(text)
		if ok == (want == -1) || ok && got.Int64() != want {
			t.Errorf("%q: %v, %v, want %d", text, got, ok, want)
		}
	}
	if got, ok := quantity("1e99999999"); !ok || got.BitLen() > 400 {
		t.Errorf("a power of ten is computed: %d bits", got.BitLen())
	}
}

// TestBandwidth: both annotations by their names, and what is refused with that name.
func TestBandwidth(t *testing.T) {
	of := func(annotations map[string]string) *runtimeapi.PodSandboxConfig {
		c := podConfig()
		c.Annotations = annotations
		return c
	}
	for _, c := range []struct {
		annotations map[string]string
		want        Bandwidth
	}{
		{nil, Bandwidth{}},
		{map[string]string{"kubernetes.io/ingress": "1M", "ingress-bandwidth": "x"}, Bandwidth{}},
		{map[string]string{"kubernetes.io/ingress-bandwidth": "10M"}, Bandwidth{Ingress: 1e7}},
		{map[string]string{"kubernetes.io/egress-bandwidth": "1Mi"}, Bandwidth{Egress: 1 << 20}},
		{map[string]string{IngressBandwidth: "1k", EgressBandwidth: "1P"}, Bandwidth{Ingress: 1e3, Egress: 1e15}},
		{map[string]string{IngressBandwidth: "999.5"}, Bandwidth{Ingress: 1e3}},
	} {
		got, err := BandwidthOf(of(c.annotations))
		if err != nil || (got == nil) != (c.want == Bandwidth{}) || got != nil && *got != c.want {
			t.Errorf("%v: %v, %v", c.annotations, got, err)
		}
	}
	for _, name := range []string{IngressBandwidth, EgressBandwidth} {
		for _, value := range []string{"", "10Mbit", "0", "-1M", "999", "1.1P", "1E", "1e400000000", strings.Repeat("9", 1<<18)} {
			cfg := of(map[string]string{IngressBandwidth: "1M", EgressBandwidth: "1M", name: value})
			_, err := BandwidthOf(cfg)
			var fe *FieldError
			if !errors.As(err, &fe) || fe.Field != "annotations["+name+"]" || !errors.Is(err, ErrInvalid) || len(err.Error()) > 700 {
				t.Errorf("%s %.40q: %.800v", name, value, err)
			}
			nsOptions(cfg).Network = runtimeapi.NamespaceMode_NODE
			if b, err := BandwidthOf(cfg); b != nil || err != nil {
				t.Errorf("in the host's network %s %.40q is %v, %v", name, value, b, err)
			}
		}
	}
}
