package stage

import (
	"context"
	"errors"
	"os"
)

// Configure gives the daemon a configuration file beside the flags that it has here, and starts it anew. The empty
// text is what it has at first.
func (s *Stage) Configure(ctx context.Context, text string) error {
	if err := os.WriteFile(base+"/vitrine.toml", []byte(text), 0o644); err != nil {
		return err
	}
	var err error
	if s.daemon != nil {
		err = s.daemon.Stop()
	}
	_, serr := s.StartDaemon(ctx)
	return errors.Join(err, serr)
}
