package image

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.podman.io/image/v5/docker/reference"
	"go.podman.io/image/v5/pkg/docker/config"
	"go.podman.io/image/v5/pkg/sysregistriesv2"
	"go.podman.io/image/v5/types"

	"github.com/vitrine-runtime/vitrine/internal/sys"
)

// wallet is what the node itself has for one pull: the credentials for each place
// that the image may come from. The library would ask credential programs itself, but
// without a limit on time and output, and it puts their output into errors; so they are asked here,
// and the library gets a file that is only in memory.
type wallet struct {
	found map[string]types.DockerAuthConfig // by repository, as in registry.example/a/b
	// missing says which program had no answer. The pull goes on without, as the
	// image may be there for everybody.
	missing error
	file    *sys.FD // for the library; nil where there are none
}

// authFile is a containers-auth.json(5), or the config.json of Docker.
type authFile struct {
	Auths       json.RawMessage   `json:"auths,omitempty"`
	CredHelpers map[string]string `json:"credHelpers,omitempty"`
	CredsStore  string            `json:"credsStore,omitempty"`
}

// maxAuthFile bounds the node's auth file.
const maxAuthFile = 16 << 20

// openWallet looks up the credentials for the sources and puts them into sysctx. Those
// that the request brought are there already and come first. The caller closes the wallet when
// the pull is over.
func (s *Store) openWallet(ctx context.Context, sysctx *types.SystemContext, named reference.Named, sources []sysregistriesv2.PullSource) (*wallet, error) {
	w := &wallet{found: map[string]types.DockerAuthConfig{}}
	programs, err := sysregistriesv2.CredentialHelpers(sysctx)
	if err != nil {
		return nil, fmt.Errorf("read registries.conf: %w", err)
	}
	file, err := readAuthFile(s.config.AuthFile)
	if err != nil {
		return nil, fmt.Errorf("read auth file: %w", err)
	}
	given := sysctx.DockerAuthConfig != nil
	for _, src := range sources {
		place := src.Reference
		own := reference.Domain(place) == reference.Domain(named)
		if own && given {
			continue
		}
		found, err := s.lookUp(ctx, programs, file, place)
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		w.missing = errors.Join(w.missing, err)
		if found != (types.DockerAuthConfig{}) {
			w.found[place.Name()] = found
		}
		if slices.Equal(programs, []string{sysregistriesv2.AuthenticationFileHelper}) {
			continue
		}
		// The library asks the programs of registries.conf itself, and without limits,
		// wherever it is not told.
		if !own {
			return nil, fmt.Errorf("%w: credential-helpers of registries.conf, for %s: put them into the auth file, as credHelpers or credsStore", ErrUnsupported, reference.Domain(place))
		}
		if sysctx.DockerAuthConfig == nil {
			sysctx.DockerAuthConfig = &found
		}
	}
	return w, w.publish(sysctx)
}

// lookUp returns the credentials for a place from the first source that has some.
func (s *Store) lookUp(ctx context.Context, programs []string, file *authFile, place reference.Named) (found types.DockerAuthConfig, missing error) {
	for _, name := range programs {
		var err error
		if name == sysregistriesv2.AuthenticationFileHelper {
			found, err = s.lookUpFile(ctx, file, place)
		} else {
			found, err = askProgram(ctx, s.limits.program, name, reference.Domain(place))
		}
		if missing = errors.Join(missing, err); found != (types.DockerAuthConfig{}) {
			return found, nil
		}
	}
	return found, missing
}

// lookUpFile returns what the auth file has for a place: the program that it names for
// the registry, else an entry for the repository, a namespace or the registry, else what the
// program for everything says.
func (s *Store) lookUpFile(ctx context.Context, file *authFile, place reference.Named) (types.DockerAuthConfig, error) {
	host := reference.Domain(place)
	keys := []string{host}
	if host == "docker.io" {
		keys = append(keys, "index.docker.io", dockerHub)
	}
	for _, k := range keys {
		if name := file.CredHelpers[k]; name != "" {
			return askProgram(ctx, s.limits.program, name, host)
		}
	}
	if file.Auths != nil {
		fd, err := memoryFile(authFile{Auths: file.Auths})
		if err != nil {
			return types.DockerAuthConfig{}, err
		}
		defer fd.Close()
		found, err := config.GetCredentialsForRef(&types.SystemContext{
			AuthFilePath:                sys.ProcPath(fd.Int()),
			SystemRegistriesConfPath:    os.DevNull,
			SystemRegistriesConfDirPath: filepath.Join(s.config.Root, "empty"), // no programs
		}, place)
		if err != nil || found != (types.DockerAuthConfig{}) {
			return found, err
		}
	}
	if file.CredsStore == "" {
		return types.DockerAuthConfig{}, nil
	}
	return askProgram(ctx, s.limits.program, file.CredsStore, host)
}

// publish gives the library the credentials that were found, and no others.
func (w *wallet) publish(sysctx *types.SystemContext) (err error) {
	type entry struct {
		Auth  string `json:"auth"`
		Token string `json:"identitytoken,omitempty"`
	}
	auths := map[string]entry{}
	for repository, c := range w.found {
		auths[repository] = entry{base64.StdEncoding.EncodeToString([]byte(c.Username + ":" + c.Password)), c.IdentityToken}
	}
	text, err := json.Marshal(auths)
	if err != nil {
		return err
	}
	if w.file, err = memoryFile(authFile{Auths: text}); err != nil {
		return err
	}
	sysctx.AuthFilePath = sys.ProcPath(w.file.Int())
	return nil
}

func (w *wallet) close() { w.file.Close() }

// hidden returns what must not appear in an error.
func (w *wallet) hidden() (secrets []string) {
	for _, c := range w.found {
		one := &credentials{config: c}
		one.collectSecrets("")
		secrets = append(secrets, one.secrets...)
	}
	return secrets
}

// explain takes the node's credentials out of an error, and adds to a registry's
// refusal that a program had no answer: a retry may help.
func (w *wallet) explain(err error) error {
	err = withoutSecrets(err, w.hidden())
	if err != nil && w.missing != nil && (errors.Is(err, ErrDenied) || errors.Is(classify(err), ErrDenied)) {
		return fmt.Errorf("%w: %w; without credentials: %s", ErrUnavailable, w.missing, err.Error())
	}
	return err
}

func memoryFile(f authFile) (*sys.FD, error) {
	text, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	return sys.SealedMemfd("vitrine-auth", text, false)
}

// readAuthFile reads the node's auth file, which may be missing. Its errors quote none
// of it.
func readAuthFile(path string) (*authFile, error) {
	f := &authFile{}
	if path == "" {
		return f, nil
	}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f, nil
	}
	if err != nil {
		return nil, err
	}
	if len(data) > maxAuthFile {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxAuthFile)
	}
	if len(bytes.TrimSpace(data)) == 0 || json.Unmarshal(data, f) != nil {
		return nil, fmt.Errorf("%s: not the JSON of containers-auth.json(5)", path)
	}
	return f, nil
}
