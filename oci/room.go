package oci

import "sync"

// rooms hold encoded programs until they are sent: some 60 KB for a container, which to
// allocate takes longer than to fill. Two lie around at most.
var rooms struct {
	sync.Mutex
	free [][]byte
}

// largeRoom is more than an ordinary program needs; what is larger does not lie around.
const largeRoom = 256 << 10

func getRoom() []byte {
	rooms.Lock()
	defer rooms.Unlock()
	n := len(rooms.free)
	if n == 0 {
		return nil
	}
	b := rooms.free[n-1]
	rooms.free = rooms.free[:n-1]
	return b[:0]
}

// putRoom gives room back. What a spec has said is not kept in it.
func putRoom(b []byte) {
	if cap(b) == 0 || cap(b) > largeRoom {
		return
	}
	clear(b)
	rooms.Lock()
	defer rooms.Unlock()
	if len(rooms.free) < 2 {
		rooms.free = append(rooms.free, b)
	}
}
