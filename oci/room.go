package oci

import "sync"

// rooms hold encoded programs until they are sent: some 60 KB for a container, which to
// allocate takes longer than to fill.
var rooms sync.Pool

// largeRoom is more than an ordinary program needs; what is larger does not lie around.
const largeRoom = 256 << 10

func getRoom() []byte {
	if b, ok := rooms.Get().(*[]byte); ok {
		return (*b)[:0]
	}
	return nil
}

// putRoom gives room back. What a spec has said is not kept in it.
func putRoom(b []byte) {
	if cap(b) == 0 || cap(b) > largeRoom {
		return
	}
	clear(b)
	rooms.Put(&b)
}
