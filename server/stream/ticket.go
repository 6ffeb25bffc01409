package stream

import (
	"crypto/rand"
	"encoding/base64"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

const (
	tokenBytes  = 16 // 128 bits
	ticketLife  = time.Minute
	maxTickets  = 1000
	tokenLength = (tokenBytes*8 + 5) / 6 // in base64 without padding
)

// tickets are the requests that somebody is expected to come for. They are kept in memory
// only: after a restart the client asks anew.
type tickets struct {
	mu   sync.Mutex
	life time.Duration
	m    map[string]*ticket
}

type ticket struct {
	request proto.Message
	expiry  *time.Timer
}

func newTickets() *tickets { return &tickets{life: ticketLife, m: map[string]*ticket{}} }

// add returns the token for a request.
func (t *tickets) add(request proto.Message) (token string, err error) {
	b := make([]byte, tokenBytes)
	rand.Read(b) // never fails
	token = base64.RawURLEncoding.EncodeToString(b)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.m) >= maxTickets {
		return "", status.Errorf(codes.ResourceExhausted, "%d streams are waiting for their clients; they have %v to come", maxTickets, t.life)
	}
	t.m[token] = &ticket{request, time.AfterFunc(t.life, func() { t.take(token) })}
	return token, nil
}

// take returns the request for a token, once, or nil.
func (t *tickets) take(token string) proto.Message {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.m[token]
	if k == nil {
		return nil
	}
	k.expiry.Stop()
	delete(t.m, token)
	return k.request
}
