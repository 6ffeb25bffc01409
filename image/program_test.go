package image

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.podman.io/image/v5/docker/reference"
	"golang.org/x/sys/unix"
)

// programs is a directory of credential programs in PATH.
type programDir struct {
	*testing.T
	dir string
}

func newPrograms(t *testing.T) *programDir {
	t.Helper()
	p := &programDir{t, t.TempDir()}
	t.Setenv("PATH", p.dir+":"+os.Getenv("PATH"))
	return p
}

// add writes docker-credential-NAME, which notes what it is asked.
func (p *programDir) add(name, script string) {
	p.Helper()
	text := "#!/bin/sh\nread -r server\necho \"$1 $server\" >> " + p.dir + "/asked\n" + script + "\n"
	must(p.T, os.WriteFile(filepath.Join(p.dir, "docker-credential-"+name), []byte(text), 0o700))
}

// asked returns what the programs were asked since the last call.
func (p *programDir) asked() string {
	p.Helper()
	data, _ := os.ReadFile(p.dir + "/asked")
	must(p.T, os.RemoveAll(p.dir+"/asked"))
	return strings.TrimSpace(string(data))
}

// says is a script that prints credentials.
func says(user, secret string) string {
	return fmt.Sprintf("echo '{\"ServerURL\":\"x\",\"Username\":%q,\"Secret\":%q}'", user, secret)
}

const unknownHere = "echo 'credentials not found in native keychain'; exit 1"

// authEnv is an env with an auth file, whose registry wants testUser.
func authEnv(t *testing.T) (*env, func(string, ...any)) {
	t.Helper()
	e := newEnv(t)
	e.reg.push(t, "team/app/x", simple(t, "x"))
	e.reg.setHook(demand(`Basic realm="test"`, "Basic "+basic(testUser, testPassword)))
	e.conf.AuthFile = filepath.Join(t.TempDir(), "auth.json")
	e.restart()
	return e, func(format string, args ...any) { e.write(e.conf.AuthFile, fmt.Sprintf(format, args...)) }
}

// Programs that the auth file names, for a registry and for all of them.
func TestCredentialPrograms(t *testing.T) {
	e, auth := authEnv(t)
	p := newPrograms(t)
	p.add("good", says(testUser, testPassword))
	p.add("other", says("somebody", "else-secret"))
	p.add("unknown", unknownHere)
	ref, host := e.reg.host+"/team/app/x", e.reg.host
	entry := fmt.Sprintf(`%q:{"auth":%q}`, host, basic(testUser, testPassword))
	for _, c := range []struct {
		name, file string
		want       error
		asked      int
	}{
		{"for the registry", fmt.Sprintf(`{"credHelpers":{%q:"good"}}`, host), nil, 1},
		{"for all", `{"credsStore":"good"}`, nil, 1},
		{"for the registry before all", fmt.Sprintf(`{"credsStore":"other","credHelpers":{%q:"good"}}`, host), nil, 1},
		{"for another registry", `{"credHelpers":{"other.example":"good"}}`, ErrDenied, 0},
		{"that knows nothing", `{"credsStore":"unknown"}`, ErrDenied, 1},
		{"that is wrong", `{"credsStore":"other"}`, ErrDenied, 1},
		{"beside an entry", fmt.Sprintf(`{"auths":{%s},"credsStore":"other"}`, entry), nil, 0},
		{"with the empty entry that a login leaves", fmt.Sprintf(`{"auths":{%q:{}},"credsStore":"good"}`, host), nil, 1},
		{"none", `{}`, ErrDenied, 0},
	} {
		auth("%s", c.file)
		_, err := e.Pull(soon(t), ref, nil)
		wantErr(t, c.name, err, c.want)
		asked := p.asked()
		equal(t, c.name+": asked "+asked, strings.Count(asked, "get "+host), c.asked)
		if err != nil && strings.Contains(err.Error(), "else-secret") {
			t.Errorf("%s: %v", c.name, err)
		}
		// The request's own come first, and nobody is asked.
		_, err = e.Pull(soon(t), ref, &Auth{Username: testUser, Password: testPassword})
		must(t, err)
		equal(t, c.name+": asked beside the request", p.asked(), "")
	}
}

// Programs that have no answer, too late a one or too long a one, or one that is none.
func TestBadCredentialPrograms(t *testing.T) {
	e, auth := authEnv(t)
	e.limits.program = 3 * time.Second
	p := newPrograms(t)
	ref := e.reg.host + "/team/app/x"
	for name, c := range map[string]struct{ script, want string }{
		"hangs":    {"sleep 1000 & echo $! > " + p.dir + "/child; echo $$ > " + p.dir + "/self; wait", "no answer in 3s"},
		"deaf":     {"trap '' TERM INT; while :; do sleep 1; done", "no answer in 3s"},
		"leaves":   {"sleep 1000 & echo $! > " + p.dir + "/child; " + says(testUser, testPassword), "keeps its output open"},
		"endless":  {"yes the-secret", "printed more than"},
		"rubbish":  {"echo the-secret; head -c 1000 /dev/urandom", "JSON"},
		"nothing":  {":", "JSON"},
		"fails":    {"echo the-secret; echo the-secret >&2; exit 3", "exit status 3"},
		"list":     {"echo '[\"the-secret\"]'", "JSON"},
		"injected": {`printf '{"Username":"a","Secret":"the-secret\\r\\nX: y"}'`, "line break"},
		"missing":  {"", "not found"},
		"a/../b":   {"", "not a name"},
	} {
		if c.script != "" {
			p.add(name, c.script)
		}
		auth(`{"credsStore":%q}`, name)
		start := time.Now()
		_, err := e.Pull(soon(t), ref, nil)
		wantErr(t, name, err, ErrUnavailable)
		if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, "the-secret") || strings.Contains(text, testPassword) || !strings.Contains(text, c.want) {
			t.Errorf("%s: %s", name, text)
		}
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s: %v", name, d)
		}
		for _, file := range []string{"child", "self"} {
			p.wantGone(file)
		}
	}
	// What is there for everybody is there without credentials, too.
	e.reg.setHook(nil)
	auth(`{"credsStore":"fails"}`)
	_, err := e.Pull(soon(t), ref, nil)
	must(t, err)
	// A pull that is cancelled does not wait for a program.
	e.limits.program = time.Hour
	auth(`{"credsStore":"hangs"}`)
	start := time.Now()
	ctx, cancel := contextFor(t, 500*time.Millisecond)
	defer cancel()
	_, err = e.Pull(ctx, ref, nil)
	if err == nil || time.Since(start) > 10*time.Second {
		t.Errorf("cancelled: %v after %v", err, time.Since(start))
	}
	must(t, e.flights.idle(func() error { return nil }))
	e.flights.work.Wait()
	p.wantGone("child")
}

// wantGone wants the process dead whose number is in a file.
func (p *programDir) wantGone(file string) {
	p.Helper()
	data, err := os.ReadFile(filepath.Join(p.dir, file))
	if err != nil {
		return
	}
	must(p.T, os.Remove(filepath.Join(p.dir, file)))
	var pid int
	_, err = fmt.Sscan(string(data), &pid)
	must(p.T, err)
	for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		state, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(state), ") Z ") || unix.Kill(pid, 0) != nil {
			return
		}
	}
	p.Errorf("%s: process %d is alive", file, pid)
}

// Which entry of the auth file counts.
func TestAuthFileEntries(t *testing.T) {
	e, auth := authEnv(t)
	ref, host := e.reg.host+"/team/app/x", e.reg.host
	good, bad := basic(testUser, testPassword), basic("other", "other-secret")
	for _, c := range []struct {
		name, file string
		want       error
	}{
		{"registry", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, good), nil},
		{"namespace", fmt.Sprintf(`{"auths":{"%s/team":{"auth":%q},%q:{"auth":%q}}}`, host, good, host, bad), nil},
		{"deeper namespace", fmt.Sprintf(`{"auths":{"%s/team/app":{"auth":%q},"%s/team":{"auth":%q}}}`, host, good, host, bad), nil},
		{"repository", fmt.Sprintf(`{"auths":{"%s/team/app/x":{"auth":%q},"%s/team/app":{"auth":%q},%q:{"auth":%q}}}`, host, good, host, bad, host, bad), nil},
		{"another repository", fmt.Sprintf(`{"auths":{"%s/team/app/y":{"auth":%q}}}`, host, good), ErrDenied},
		{"half a name", fmt.Sprintf(`{"auths":{"%s/team/ap":{"auth":%q}}}`, host, good), ErrDenied},
		{"as Docker wrote it", fmt.Sprintf(`{"auths":{"https://%s/v1/":{"auth":%q}},"HttpHeaders":{"a":"b"}}`, host, good), nil},
		{"wrong", fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, bad), ErrDenied},
		{"not base64", fmt.Sprintf(`{"auths":{%q:{"auth":"other-secret"}}}`, host), ErrUnavailable},
	} {
		auth("%s", c.file)
		_, err := e.Pull(soon(t), ref, nil)
		wantErr(t, c.name, err, c.want)
		if err != nil && (strings.Contains(err.Error(), "other-secret") || strings.Contains(err.Error(), bad)) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	for name, file := range map[string]string{"no JSON": `{"auths":{"x":{"auth":"other-secret"`, "empty": "", "list": "[1]", "typed": `{"credHelpers":{"a":7}}`} {
		auth("%s", file)
		_, err := e.Pull(soon(t), ref, nil)
		if err == nil || !strings.Contains(err.Error(), "auth file") || strings.Contains(err.Error(), "other-secret") {
			t.Errorf("%s: %v", name, err)
		}
	}
	must(t, os.Remove(e.conf.AuthFile))
	wantErr(t, "no file", second(e.Pull(soon(t), ref, nil)), ErrDenied)
}

// The programs that registries.conf names.
func TestCredentialProgramsOfRegistriesConf(t *testing.T) {
	e, auth := authEnv(t)
	p := newPrograms(t)
	p.add("good", says(testUser, testPassword))
	p.add("unknown", unknownHere)
	p.add("hangs", "sleep 1000")
	e.limits.program = time.Second
	ref, host := e.reg.host+"/team/app/x", e.reg.host
	conf := registriesConf(host)
	auth(`{}`)
	for list, want := range map[string]error{
		`["good"]`: nil, `["unknown","good"]`: nil, `["containers-auth.json","good"]`: nil, `["hangs","good"]`: nil,
		`["unknown"]`: ErrDenied, `["hangs"]`: ErrUnavailable,
	} {
		e.write(e.conf.RegistriesConf, "credential-helpers = "+list+"\n"+conf)
		start := time.Now()
		wantErr(t, list, second(e.Pull(soon(t), ref, nil)), want)
		if d := time.Since(start); d > 20*time.Second {
			t.Errorf("%s: %v", list, d)
		}
	}
	// Elsewhere the library would ask them, without limits.
	e.write(e.conf.RegistriesConf, "credential-helpers = [\"good\"]\n"+conf)
	p.asked()
	_, err := e.Pull(soon(t), "registry.example/team/app/x", nil)
	wantErr(t, "another place", err, ErrUnsupported)
	if !strings.Contains(err.Error(), "credential-helpers") || strings.Count(p.asked(), "get") > 1 {
		t.Error(err)
	}
}

// Each place gets its own credentials, from its own source, and no others.
func TestCredentialsOfMirrors(t *testing.T) {
	e, auth := authEnv(t)
	p := newPrograms(t)
	p.add("mirror", says("mirror", "mirror-secret"))
	mirror := newRegistry(t)
	_, port, _ := strings.Cut(mirror.host, ":")
	at := "localhost:" + port // another host
	mirror.push(t, "team/app/x", simple(t, "x"))
	e.write(e.conf.RegistriesConf, fmt.Sprintf("[[registry]]\nlocation = %q\ninsecure = true\n[[registry.mirror]]\nlocation = %q\ninsecure = true\n", e.reg.host, at))
	auth(`{"auths":{"%s/team":{"auth":%q}},"credHelpers":{%q:"mirror"}}`, e.reg.host, basic(testUser, testPassword), at)
	var sent []string
	record := func(reg *testRegistry, want string) {
		reg.setHook(func(w http.ResponseWriter, r *http.Request) bool {
			sent = append(sent, r.Header.Get("Authorization"))
			return demand(`Basic realm="test"`, "Basic "+want)(w, r)
		})
	}
	origin := basic(testUser, testPassword)
	for _, request := range []*Auth{nil, {Username: testUser, Password: testPassword}} {
		record(mirror, basic("mirror", "mirror-secret"))
		record(e.reg, origin)
		sent = nil
		id, err := e.Pull(soon(t), e.reg.host+"/team/app/x", request)
		must(t, err)
		equal(t, "requests to the registry behind the mirror", e.reg.requests("/"), 0)
		for _, h := range sent {
			if h != "" && h != "Basic "+basic("mirror", "mirror-secret") {
				t.Errorf("the mirror was sent %q", h)
			}
		}
		e.remove(id)
		// A mirror that does not like them.
		record(mirror, "something else")
		id, err = e.Pull(soon(t), e.reg.host+"/team/app/x", request)
		must(t, err)
		e.remove(id)
	}
	// Nobody says what the node has.
	record(e.reg, "something else")
	_, err := e.Pull(soon(t), e.reg.host+"/team/app/x", nil)
	wantErr(t, "refused by all", err, ErrDenied)
	for _, secret := range []string{testPassword, origin, "mirror-secret", basic("mirror", "mirror-secret")} {
		if text := fmt.Sprintf("%v %+v %#v", err, err, err); strings.Contains(text, secret) {
			t.Errorf("%q is in %s", secret, text)
		}
	}
}

// TestWalletOfTheCancelled: a pull that is over before its credentials are looked up is over, and nothing is taken for a wallet.
func TestWalletOfTheCancelled(t *testing.T) {
	e := newEnv(t)
	named, err := reference.ParseNormalizedNamed("registry.example/x")
	must(t, err)
	sysctx, err := e.conf.systemContext()
	must(t, err)
	sources, err := pullSources(sysctx, named)
	must(t, err)
	gone := errors.New("nobody waits")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(gone)
	if w, err := e.openWallet(ctx, sysctx, named, sources); w != nil || !errors.Is(err, gone) {
		t.Errorf("%v, %v", w, err)
	}
}
