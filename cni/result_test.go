package cni

import (
	"context"
	"encoding/json"
	"testing"

	"github.com/containernetworking/cni/pkg/invoke"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/types/create"
	"github.com/containernetworking/cni/pkg/version"
)

// printer is a plugin that prints this.
type printer struct {
	version.PluginDecoder
	out []byte
}

func (p *printer) ExecPlugin(context.Context, string, []byte, []string) ([]byte, error) {
	return p.out, nil
}
func (p *printer) FindInPath(string, []string) (string, error) { return "/x", nil }

// roundTrip does with a plugin's output what Add and Del do.
func roundTrip(t *testing.T, out []byte) {
	for _, conf := range []string{"1.0.0", "0.4.0", "0.2.0"} {
		raw, err := invoke.ExecPluginWithResult(t.Context(), "/x", []byte(`{"cniVersion":"`+conf+`"}`), &invoke.Args{}, &printer{out: out})
		if err != nil {
			continue
		}
		if kept, err := json.Marshal(raw); err == nil {
			if again, err := create.CreateFromBytes(kept); err == nil {
				_, _ = again.GetAsVersion(conf)
			}
		}
		res, err := types100.NewResultFromResult(raw)
		if err != nil {
			continue
		}
		if got, err := convert("test", res); err == nil && (len(got.IPs) == 0 || !got.IPs[0].IsValid()) {
			t.Fatalf("%s makes %+v", out, got)
		}
	}
}
