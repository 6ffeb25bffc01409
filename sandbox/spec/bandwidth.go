package spec

import (
	"math/big"
	"strconv"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Annotations of a pod that limit its traffic, by Kubernetes' names. Values are quantities of bits per second, such as 10M.
const (
	IngressBandwidth = "kubernetes.io/ingress-bandwidth" // what the pod receives
	EgressBandwidth  = "kubernetes.io/egress-bandwidth"  // what it sends
)

// Rates that may be asked for, 1k to 1P bits per second. They are those of the kubelet of before and of other runtimes.
const (
	minBandwidth = 1_000
	maxBandwidth = 1_000_000_000_000_000
)

// Bandwidth limits a pod's traffic, in bits per second; 0 is no limit.
type Bandwidth struct {
	Ingress, Egress uint64
}

// BandwidthOf judges the annotations about bandwidth and returns nil without any. In the host's network nothing is read from them:
// the traffic is the host's. It is no part of [PodOf], which a pod that is there has to pass again after a restart of the daemon:
// the network keeps what it was told.
func BandwidthOf(cfg *runtimeapi.PodSandboxConfig) (*Bandwidth, error) {
	if cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		return nil, nil
	}
	var b Bandwidth
	for _, d := range []struct {
		annotation string
		rate       *uint64
	}{{IngressBandwidth, &b.Ingress}, {EgressBandwidth, &b.Egress}} {
		value, asked := cfg.GetAnnotations()[d.annotation]
		if !asked {
			continue
		}
		var problem string
		if *d.rate, problem = bandwidth(value); problem != "" {
			return nil, Invalid("annotations["+d.annotation+"]", value, "%s", problem)
		}
	}
	if b == (Bandwidth{}) {
		return nil, nil
	}
	return &b, nil
}

// bandwidth reads one rate, or says what is wrong with it.
func bandwidth(text string) (rate uint64, problem string) {
	n, ok := quantity(text)
	switch {
	case !ok:
		return 0, "want a quantity of bits per second, such as 10M"
	case n.Cmp(big.NewInt(minBandwidth)) < 0 || n.Cmp(big.NewInt(maxBandwidth)) > 0:
		return 0, "outside 1k..1P"
	}
	return n.Uint64(), ""
}

// Bounds of what a quantity is computed from. The text is a tenant's, and an exponent of nine digits would be a number of as many.
const (
	maxQuantity = 64
	maxExponent = 100
)

// decimal are the powers of ten of the suffixes, and binary those of 1024.
var (
	decimal = map[string]int{"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}
	binary  = map[string]uint{"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
)

// quantity reads a quantity as Kubernetes writes them: a decimal number and a suffix of either kind or an exponent. A fraction is
// rounded up, as there.
func quantity(text string) (*big.Int, bool) {
	number := strings.TrimLeft(text, "+-")
	if len(text) > maxQuantity || len(text)-len(number) > 1 {
		return nil, false
	}
	end := strings.IndexFunc(number, func(r rune) bool { return r != '.' && (r < '0' || r > '9') })
	if end < 0 {
		end = len(number)
	}
	number, suffix := number[:end], number[end:]
	if strings.Count(number, ".") > 1 || strings.Trim(number, ".") == "" {
		return nil, false
	}
	scale, ok := scaleOf(suffix)
	if !ok {
		return nil, false
	}
	value, ok := new(big.Rat).SetString(strings.TrimSuffix(number, "."))
	if !ok {
		return nil, false
	}
	value.Mul(value, scale)
	if strings.HasPrefix(text, "-") {
		value.Neg(value)
	}
	rounded, rest := new(big.Int).DivMod(value.Num(), value.Denom(), new(big.Int))
	if rest.Sign() > 0 {
		rounded.Add(rounded, big.NewInt(1))
	}
	return rounded, true
}

// scaleOf is what a suffix multiplies by. E alone is exa, with a number behind it an exponent.
func scaleOf(suffix string) (*big.Rat, bool) {
	if n, ok := binary[suffix]; ok {
		return new(big.Rat).SetInt(new(big.Int).Lsh(big.NewInt(1), 10*n)), true
	}
	n, ok := decimal[suffix]
	if !ok {
		if suffix[0] != 'e' && suffix[0] != 'E' {
			return nil, false
		}
		var err error
		if n, err = strconv.Atoi(suffix[1:]); err != nil {
			return nil, false
		}
		n = min(max(n, -maxExponent), maxExponent) // either is outside of every range, but for a number of 0
	}
	power := new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(max(n, -n))), nil)
	if n < 0 {
		return new(big.Rat).SetFrac(big.NewInt(1), power), true
	}
	return new(big.Rat).SetInt(power), true
}
