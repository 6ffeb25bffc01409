package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/vitrine-runtime/vitrine/conformance/vm/link"
)

// Runner runs commands in a guest: a Machine's client, or one that came over the holder's socket.
type Runner interface {
	Run(context.Context, link.Command, link.Streams) (link.Result, error)
}

// Output runs a command and returns its standard output. A non-zero exit code is an error that carries standard error.
func Output(ctx context.Context, r Runner, args ...string) (string, error) {
	var out, complaints bytes.Buffer
	res, err := r.Run(ctx, link.Command{Args: args}, link.Streams{Stdout: &out, Stderr: &complaints})
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("run %s: exit code %d: %s", args[0], res.Code, tail(append(out.Bytes(), complaints.Bytes()...), 10))
	}
	return out.String(), err
}

// Put unpacks a tar stream below dir in the guest, which is made.
func Put(ctx context.Context, r Runner, dir string, tarball io.Reader) error {
	var complaints bytes.Buffer
	res, err := r.Run(ctx, link.Command{Args: []string{"sh", "-c", `mkdir -p "$0" && exec tar -C "$0" -xf - --overwrite`, dir}}, link.Streams{Stdin: tarball, Stderr: &complaints})
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("unpack in %s: exit code %d: %s", dir, res.Code, tail(complaints.Bytes(), 5))
	}
	return err
}

// Get writes a tar stream of dir in the guest to w.
func Get(ctx context.Context, r Runner, dir string, w io.Writer) error {
	var complaints bytes.Buffer
	res, err := r.Run(ctx, link.Command{Args: []string{"tar", "-C", dir, "-cf", "-", "."}}, link.Streams{Stdout: w, Stderr: &complaints})
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("pack %s: exit code %d: %s", dir, res.Code, tail(complaints.Bytes(), 5))
	}
	return err
}

// Ready waits until systemd has reached its default target: D-Bus answers and units can be started. It asks again and again, each time with
// a deadline: what waits in the guest for the end of the boot may miss it.
func Ready(ctx context.Context, r Runner) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	for {
		// "degraded" is ready too: some unit of the distribution failed, which is for a test to judge.
		once, stop := context.WithTimeout(ctx, readyTime/6)
		state, err := Output(once, r, "sh", "-c", "systemctl is-system-running || true")
		stop()
		switch state = strings.TrimSpace(state); {
		case err == nil && (state == "running" || state == "degraded"):
			return nil
		case ctx.Err() != nil:
			jobs, _ := Output(context.WithoutCancel(ctx), r, "timeout", "10", "systemctl", "--no-pager", "list-jobs") // more words, if it can
			return errors.Join(fmt.Errorf("await the end of the boot: systemd is %q: %w\n%s", state, ctx.Err(), jobs), err)
		case errors.Is(err, link.ErrGone):
			return err
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// JumpClock moves the guest's wall clock by d; its monotonic clock goes on.
func JumpClock(ctx context.Context, r Runner, d time.Duration) error {
	now, err := Output(ctx, r, "date", "+%s.%N")
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseFloat(now[:len(now)-1], 64)
	if err != nil {
		return fmt.Errorf("read the guest's clock: %w", err)
	}
	_, err = Output(ctx, r, "date", "-s", fmt.Sprintf("@%.3f", seconds+d.Seconds()))
	return err
}
