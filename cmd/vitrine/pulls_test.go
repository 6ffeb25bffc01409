package main

import (
	"strings"
	"testing"
	"time"

	"github.com/vitrine-runtime/vitrine/image"
)

func TestPullTable(t *testing.T) {
	at := time.Unix(100, 0)
	var out strings.Builder
	table := &pullTable{out: &out, now: func() time.Time { return at }}
	pulls := []image.PullProgress{{Ref: "registry.example/x:1", Since: time.Unix(97, 0), Layers: []image.LayerProgress{
		{Digest: "sha256:0123456789abcdef", State: image.LayerIsAvailable, Size: 1 << 20, Received: 1 << 20},
		{Digest: "sha256:fedcba9876543210", State: image.LayerComes, Size: 4 << 20, Received: 1 << 20},
	}}}
	show := func() string {
		t.Helper()
		out.Reset()
		if err := table.print(pulls); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
	if got := show(); got != "registry.example/x:1  2.0 MiB of 5.0 MiB  3s  \n"+
		"  sha256:0123456789ab  done           1.0 MiB of    1.0 MiB  \n"+
		"  sha256:fedcba987654  downloading    1.0 MiB of    4.0 MiB  \n" {
		t.Errorf("first:\n%s", got)
	}
	at = at.Add(2 * time.Second)
	pulls[0].Layers[1].Received += 1 << 20
	if got := show(); !strings.Contains(got, "3.0 MiB of 5.0 MiB  5s  512.0 KiB/s\n") || !strings.Contains(got, "2.0 MiB of    4.0 MiB  512.0 KiB/s\n") {
		t.Errorf("second:\n%s", got)
	}
	pulls = nil
	if got := show(); got != "no pulls\n" {
		t.Errorf("at the end: %q", got)
	}
}
