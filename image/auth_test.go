package image

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

const (
	testUser     = "mallory"
	testPassword = "p:ss w%rd-secret"
	testToken    = "registry-token-secret"
)

func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// demand makes the registry ask for the header value want. Its refusals say
// back what they were sent, as a hostile registry would.
func demand(scheme, want string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		got := r.Header.Get("Authorization")
		if got == want {
			return false
		}
		w.Header().Set("WWW-Authenticate", scheme)
		w.WriteHeader(http.StatusUnauthorized)
		dec, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(got, "Basic "))
		_ = json.NewEncoder(w).Encode(map[string]any{"errors": []any{map[string]string{"code": "UNAUTHORIZED", "message": got + " " + string(dec)}}})
		return true
	}
}

func TestCredentials(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	basicOnly := demand(`Basic realm="test"`, "Basic "+basic(testUser, testPassword))
	for name, c := range map[string]struct {
		auth *Auth
		want error
	}{
		"none":                    {nil, ErrDenied},
		"empty":                   {&Auth{}, ErrDenied},
		"user and password":       {&Auth{Username: testUser, Password: testPassword}, nil},
		"auth":                    {&Auth{Auth: basic(testUser, testPassword)}, nil},
		"auth and the same":       {&Auth{Username: testUser, Password: testPassword, Auth: basic(testUser, testPassword)}, nil},
		"for this server":         {&Auth{Username: testUser, Password: testPassword, ServerAddress: "http://" + e.reg.host + "/v2/"}, nil},
		"for another server":      {&Auth{Username: testUser, Password: testPassword, ServerAddress: "https://elsewhere.example"}, ErrDenied},
		"wrong":                   {&Auth{Username: testUser, Password: "wrong-secret"}, ErrDenied},
		"wrong auth":              {&Auth{Auth: basic(testUser, "wrong-secret")}, ErrDenied},
		"not base64":              {&Auth{Auth: "%%%secret"}, ErrInvalidAuth},
		"no colon":                {&Auth{Auth: base64.StdEncoding.EncodeToString([]byte("secret"))}, ErrInvalidAuth},
		"contradiction":           {&Auth{Username: "other", Auth: basic(testUser, testPassword)}, ErrInvalidAuth},
		"auth and identity token": {&Auth{Auth: basic(testUser, testPassword), IdentityToken: "secret"}, ErrInvalidAuth},
		"auth and registry token": {&Auth{Auth: basic(testUser, testPassword), RegistryToken: "secret"}, ErrInvalidAuth},
		"line break":              {&Auth{Username: "a\r\nX-Evil: 1", Password: "secret"}, ErrInvalidAuth},
		"colon in user name":      {&Auth{Username: "a:b", Password: "secret"}, ErrInvalidAuth},
		"a megabyte":              {&Auth{Auth: strings.Repeat("secret", 1<<18)}, ErrInvalidAuth},
	} {
		t.Run(name, func(t *testing.T) {
			e.reg.setHook(basicOnly)
			_, err := e.Pull(soon(t), e.reg.host+"/x", c.auth)
			if c.want == nil {
				must(t, err)
				return
			}
			wantErr(t, name, err, c.want)
			text := fmt.Sprintf("%v %+v %#v", err, err, err)
			for _, secret := range []string{"secret", testPassword, basic(testUser, testPassword), basic(testUser, "wrong-secret")} {
				if strings.Contains(text, secret) {
					t.Fatalf("%q is in the error %s", secret, text)
				}
			}
		})
	}
	if text := fmt.Sprintf("%v %+v %#v", Auth{Password: "secret"}, &Auth{Password: "secret"}, Auth{Password: "secret"}); strings.Contains(text, "secret") {
		t.Fatal(text)
	}
}

func TestRegistryToken(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	e.reg.setHook(demand(`Bearer realm="http://`+e.reg.host+`/token",service="s"`, "Bearer "+testToken))
	_, err := e.Pull(soon(t), e.reg.host+"/x", &Auth{RegistryToken: testToken})
	must(t, err)
	_, err = e.Pull(soon(t), e.reg.host+"/x", &Auth{RegistryToken: "wrong-secret"})
	wantErr(t, "wrong token", err, ErrDenied)
	if strings.Contains(err.Error(), "wrong-secret") {
		t.Fatal(err)
	}
}

func TestIdentityToken(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	ask := demand(`Bearer realm="http://`+e.reg.host+`/token",service="s"`, "Bearer "+testToken)
	e.reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/token" {
			return ask(w, r)
		}
		if r.FormValue("refresh_token") != "identity-secret" {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		fmt.Fprintf(w, `{"access_token":%q,"token":%q}`, testToken, testToken)
		return true
	})
	_, err := e.Pull(soon(t), e.reg.host+"/x", &Auth{IdentityToken: "identity-secret"})
	must(t, err)
	_, err = e.Pull(soon(t), e.reg.host+"/x", &Auth{IdentityToken: "wrong-secret"})
	wantErr(t, "wrong token", err, ErrDenied)
}

func TestAuthFile(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	e.reg.setHook(demand(`Basic realm="test"`, "Basic "+basic(testUser, testPassword)))
	// A file in $HOME is not ours to use.
	home := t.TempDir()
	t.Setenv("HOME", home)
	t.Setenv("XDG_RUNTIME_DIR", home)
	t.Setenv("DOCKER_CONFIG", home)
	auths := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, e.reg.host, basic(testUser, testPassword))
	e.write(filepath.Join(home, "config.json"), auths)
	_, err := e.Pull(soon(t), e.reg.host+"/x", nil)
	wantErr(t, "file in HOME", err, ErrDenied)

	path := filepath.Join(t.TempDir(), "auth.json")
	e.write(path, auths)
	e.conf.AuthFile = path
	e.restart()
	_, err = e.Pull(soon(t), e.reg.host+"/x", nil)
	must(t, err)
}

// Credentials for a registry must not reach its mirror on another host, be the
// mirror one that asks for a token or one that offers to sell some.
func TestCredentialsStayFromMirrors(t *testing.T) {
	e := newEnv(t)
	e.reg.push(t, "x", simple(t, "x"))
	var mu sync.Mutex
	var seen []string
	mirror := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		seen = append(seen, r.Header.Get("Authorization")+r.FormValue("password"))
		w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="mirror"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	defer mirror.Close()
	e.write(e.conf.RegistriesConf, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n",
		e.reg.host, strings.TrimPrefix(mirror.URL, "http://")))
	for _, a := range []*Auth{{Username: testUser, Password: testPassword}, {RegistryToken: testToken}} {
		_, err := e.Pull(soon(t), e.reg.host+"/x", a)
		must(t, err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(seen) < 2 {
		t.Fatal("the mirror was not asked")
	}
	for _, h := range seen {
		if h != "" && h != "Basic "+basic("", "") {
			t.Fatalf("the mirror was sent %q", h)
		}
	}
}
