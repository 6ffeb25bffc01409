package image

import (
	"net/url"
	"testing"
)

// What the node says about signatures counts more than what keeps registries from
// sending us around, and less than what keeps credentials.
func TestGuardOfSignatures(t *testing.T) {
	const aside = "http://localhost:5000/sigs/x@sha256=0/signature-1"
	for _, c := range []struct {
		urls []string
		good bool // the last one
	}{
		{[]string{"https://registry.example/v2/", "https://registry.example/v2/x/manifests/1", aside}, true},
		{[]string{"https://registry.example/v2/", "https://registry.example/v2/x/manifests/1", "http://localhost:5000/sigs/y@sha256=0/signature-1"}, false},
		{[]string{"https://registry.example/v2/", "https://registry.example/v2/x/manifests/1", "http://localhost:5000/token"}, false},
		{[]string{"https://registry.example/v2/", "https://registry.example/v2/x/manifests/1", "https://localhost:5000/sigs/x@sha256=0/signature-1"}, false},
		{[]string{"https://registry.example/v2/", aside}, false}, // the registry calls it the place for tokens
	} {
		where, err := url.Parse("http://localhost:5000/sigs/x")
		must(t, err)
		g := &guard{endpoints: map[string]endpoint{"registry.example:443": {}}, secret: true, naming: map[string]bool{}, realms: map[string]bool{}, signatures: []*url.URL{where}}
		if err := askAll(t, g, c.urls); (err == nil) != c.good {
			t.Errorf("%v: %v", c.urls, err)
		}
	}
}

// A mirror that is down names no realm, so that the registry behind it may.
func TestGuardAfterADeadMirror(t *testing.T) {
	for range 20 { // maps have no order
		g := &guard{endpoints: map[string]endpoint{"mirror.test:443": {}, "registry.example:443": {}}, secret: true, naming: map[string]bool{}, realms: map[string]bool{}}
		must(t, askAll(t, g, []string{"https://mirror.test/v2/", "https://registry.example/v2/", "https://auth.registry.example/token"}))
		g.realms = map[string]bool{}
		if err := askAll(t, g, []string{"https://mirror.test/v2/", "https://registry.example/v2/", "https://auth.mirror.test/token"}); err == nil {
			t.Fatal("a realm of the dead mirror's is taken")
		}
	}
}

// askAll returns what the guard says about the last URL.
func askAll(t *testing.T, g *guard, urls []string) (err error) {
	t.Helper()
	for _, text := range urls {
		u, perr := url.Parse(text)
		must(t, perr)
		_, err = g.proxy(u)
	}
	return err
}
