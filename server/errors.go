package server

import (
	"context"
	"errors"
	"strings"
	"syscall"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/vitrine-runtime/vitrine/image"
	"github.com/vitrine-runtime/vitrine/sandbox"
)

// kinds gives each kind of error its code. The first that matches counts, so what
// says more about the cause stands first.
var kinds = []struct {
	err  error
	code codes.Code
}{
	{context.Canceled, codes.Canceled},
	{context.DeadlineExceeded, codes.DeadlineExceeded},

	{sandbox.ErrInvalid, codes.InvalidArgument},
	{sandbox.ErrNotFound, codes.NotFound},
	{sandbox.ErrExists, codes.AlreadyExists},
	{sandbox.ErrState, codes.FailedPrecondition},
	{sandbox.ErrExhausted, codes.ResourceExhausted},
	{sandbox.ErrUnavailable, codes.Unavailable},
	{sandbox.ErrUnimplemented, codes.Unimplemented},

	{image.ErrInvalidReference, codes.InvalidArgument},
	{image.ErrNotFound, codes.NotFound},
	{image.ErrDenied, codes.PermissionDenied},
	{image.ErrSignature, codes.PermissionDenied},
	{image.ErrUnavailable, codes.Unavailable},
	{image.ErrUnmeasured, codes.Unavailable},
	{image.ErrLimit, codes.ResourceExhausted},
	{image.ErrCorrupt, codes.DataLoss},
	{image.ErrUnsupported, codes.FailedPrecondition},
	{image.ErrInvalidAuth, codes.InvalidArgument},

	// What the node has run out of, wherever it was noticed. EAGAIN is what fork
	// says at pids.max.
	{syscall.ENOSPC, codes.ResourceExhausted},
	{syscall.EDQUOT, codes.ResourceExhausted},
	{syscall.ENOMEM, codes.ResourceExhausted},
	{syscall.EMFILE, codes.ResourceExhausted},
	{syscall.ENFILE, codes.ResourceExhausted},
	{syscall.EAGAIN, codes.ResourceExhausted},
}

// prefixes are the words by which the kubelet tells some failures of a pull apart.
var prefixes = []struct{ err, word error }{
	{image.ErrUnavailable, crierrors.ErrRegistryUnavailable},
	{image.ErrSignature, crierrors.ErrSignatureValidationFailed},
	{sandbox.ErrImageVolume, crierrors.ErrImageVolumeMountFailed}, // last, and so the first word
}

// toStatus gives an error its gRPC code and text. It is the only place that does.
// The code is never Unknown: an error of no known kind is our bug, and Internal.
// ctx is the request's: where it has ended, that is the cause of what looks like
// a bug.
func toStatus(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if st, ok := status.FromError(err); ok && st.Code() != codes.Unknown {
		return st.Err()
	}
	code := codeOf(err)
	if code == codes.Internal && ctx.Err() != nil {
		code = codeOf(ctx.Err())
	}
	return status.Error(code, message(err))
}

func codeOf(err error) codes.Code {
	for _, k := range kinds {
		if errors.Is(err, k.err) {
			return k.code
		}
	}
	return codes.Internal
}

// maxMessage bounds what goes into a header of the answer: some plugins put their
// whole output into an error.
const maxMessage = 4096

func message(err error) string {
	text := strings.ToValidUTF8(err.Error(), "?")
	for _, p := range prefixes {
		if errors.Is(err, p.err) && !strings.HasPrefix(text, p.word.Error()) {
			text = p.word.Error() + ": " + text
		}
	}
	if len(text) <= maxMessage {
		return text
	}
	end := maxMessage
	for end > 0 && !utf8.RuneStart(text[end]) {
		end--
	}
	return text[:end] + "..."
}

// gone is for verbs that succeed where there is nothing to do: Stop and Remove of
// what is not there.
func gone(err error) error {
	if errors.Is(err, sandbox.ErrNotFound) || errors.Is(err, image.ErrNotFound) {
		return nil
	}
	return err
}
