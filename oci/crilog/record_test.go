package crilog

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestFormatIsExact(t *testing.T) {
	for _, tt := range []struct {
		at   string
		want string
	}{
		{"2026-03-01T12:00:00Z", "2026-03-01T12:00:00.000000000Z stdout F hi\n"},
		{"2026-12-31T23:59:59.999999999Z", "2026-12-31T23:59:59.999999999Z stdout F hi\n"},
		{"2038-01-19T03:14:08.000000007Z", "2038-01-19T03:14:08.000000007Z stdout F hi\n"},
		{"1970-01-01T00:00:00.5Z", "1970-01-01T00:00:00.500000000Z stdout F hi\n"},
		{"1969-07-20T20:17:40Z", "1970-01-01T00:00:00.000000000Z stdout F hi\n"},
	} {
		at, err := time.Parse(time.RFC3339Nano, tt.at)
		if err != nil {
			t.Fatal(err)
		}
		var s stamp
		s.append(nil, at.UnixNano()+5e9) // another second is in the cache
		if got := string(appendRecord(nil, &s, at.UnixNano(), "stdout", tagFull, []byte("hi"))); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.at, got, tt.want)
		}
		// The layout that CRI names gives the same text in UTC.
		if at.UnixNano() >= 0 {
			if text := at.UTC().Format("2006-01-02T15:04:05.000000000Z07:00"); !strings.HasPrefix(tt.want, text+" ") {
				t.Errorf("layout gives %s, table %s", text, tt.want)
			}
		}
	}
	if n := len(appendRecord(nil, new(stamp), 1, "stderr", tagPartial, nil)); n != headerLen {
		t.Errorf("an empty record has %d bytes, headerLen is %d", n, headerLen)
	}
}

func TestStampIncreases(t *testing.T) {
	var s stamp
	for _, tt := range []struct{ now, want int64 }{
		{1e12, 1e12},
		{1e12, 1e12 + 1},               // the same read
		{1e12 - 5e8, 1e12 + 2},         // slewed back by half a second
		{1e12 + 7, 1e12 + 7},           // goes on
		{1e12 - 3600e9, 1e12 - 3600e9}, // set back by an hour: believed
		{1e12 - 3600e9, 1e12 - 3600e9 + 1},
	} {
		if got := s.next(tt.now); got != tt.want {
			t.Errorf("next(%d) = %d, want %d", tt.now, got, tt.want)
		}
	}
}

func TestCut(t *testing.T) {
	const max = 8
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"\n", "F()"},
		{"a\nb\n", "F(a) F(b)"},
		{"1234567\n", "F(1234567)"},
		{"12345678\n", "F(12345678)"},
		{"123456789\n", "P(12345678) F(9)"},
		{"12345678", "+(12345678)"},
		{"123456789", "P(12345678) +(9)"},
		{"1234567812345678\n", "P(12345678) F(12345678)"},
		{"12345678\n\n", "F(12345678) F()"},
		{"\x00\xff\r\n\x00", "F(\x00\xff\r) +(\x00)"},
	} {
		var got []string
		data := []byte(tt.in)
		for {
			content, tag, rest := cut(data, max)
			if tag == 0 {
				if len(rest) > 0 {
					got = append(got, fmt.Sprintf("+(%s)", rest))
				}
				break
			}
			got = append(got, fmt.Sprintf("%c(%s)", tag, content))
			data = rest
		}
		if s := strings.Join(got, " "); s != tt.want {
			t.Errorf("%q: %q, want %q", tt.in, s, tt.want)
		}
	}
}

// FuzzSplit feeds a stream in pieces of every size and takes it out of the log
// again with the tests' own parser: content must come back byte for byte, no
// record may be longer than the limit, and P must be followed by more.
func FuzzSplit(f *testing.F) {
	f.Add([]byte("hello\nworld"), uint16(3), uint8(4))
	f.Add([]byte("\n\n\x00\xff\r\n"), uint16(1), uint8(1))
	f.Add(bytes.Repeat([]byte("x"), 300), uint16(7), uint8(16))
	f.Add([]byte("12345678\n123456789\n"), uint16(8), uint8(8))
	f.Add([]byte("2026-03-01T12:00:00.000000001Z stdout P \nx"), uint16(50), uint8(20))
	f.Fuzz(func(t *testing.T, in []byte, piece uint16, limit uint8) {
		if len(in) > 1<<16 {
			return
		}
		size, maxLine := int(piece)+1, int(limit)+1
		w := newQueue(maxLine)
		s := &stream{name: "stdout"}
		for data := in; len(data) > 0; {
			n := min(size, len(data))
			w.consume(s, append(bytes.Clone(s.rest), data[:n]...))
			data = data[n:]
		}
		if len(s.rest) > maxLine {
			t.Fatalf("keeps %d bytes of a line, limit %d", len(s.rest), maxLine)
		}
		if len(s.rest) > 0 {
			w.putLocked(s, s.rest, tagFull, 1)
		}
		recs := parse(t, w.pending)
		want := in
		if len(in) > 0 && in[len(in)-1] != '\n' {
			want = append(bytes.Clone(in), '\n')
		}
		if got := joined(recs, "stdout"); !bytes.Equal(got, want) {
			t.Fatalf("got %q, want %q", got, want)
		}
		for i, r := range recs {
			if len(r.content) > maxLine || r.tag == tagPartial && (len(r.content) != maxLine || i == len(recs)-1) {
				t.Fatalf("record %d: %c with %d bytes, limit %d", i, r.tag, len(r.content), maxLine)
			}
		}
	})
}

// FuzzDrop squeezes two streams through a queue that is emptied at random while
// the disk counts as failed: whatever is dropped, no line in the log may hold
// bytes of two lines, and the counters must account for every line.
func FuzzDrop(f *testing.F) {
	f.Add([]byte("aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\nbb\ncccc\n"), uint16(90), uint8(3), uint8(4))
	f.Add(bytes.Repeat([]byte("0123456789\n"), 50), uint16(200), uint8(9), uint8(5))
	f.Add(bytes.Repeat([]byte("012345678901234567890123456789\n"), 50), uint16(100), uint8(40), uint8(5))
	f.Fuzz(func(t *testing.T, in []byte, room uint16, every uint8, limit uint8) {
		if len(in) > 1<<14 || bytes.IndexByte(in, '#') >= 0 {
			return
		}
		w := newQueue(int(limit) + 1)
		w.limit, w.failing = reserve+int(room), true
		s := &stream{name: "stdout"}
		var log []byte
		for i, line := range bytes.SplitAfter(in, []byte{'\n'}) {
			w.consume(s, append(bytes.Clone(s.rest), line...))
			if len(w.pending) > w.limit {
				t.Fatalf("queue holds %d, limit %d", len(w.pending), w.limit)
			}
			if i%(int(every)+1) == 0 {
				log = append(log, w.pending...)
				w.pending = w.pending[:0]
			}
		}
		log = append(log, w.pending...)
		checkDropped(t, parse(t, log), in, s, w.stats.DroppedLines)
	})
}

// checkDropped matches the lines of a log with those of the input: each is
// whole or the beginning of its line, in order.
func checkDropped(t *testing.T, recs []record, in []byte, s *stream, dropped uint64) {
	t.Helper()
	lines := bytes.Split(in, []byte{'\n'})
	lines = lines[:len(lines)-1] // the last has no newline: it is in s.rest
	var line []byte
	whole, next := 0, 0
	for i, r := range recs {
		line = append(line, r.content...)
		if r.tag == tagPartial {
			if i == len(recs)-1 && !s.open {
				t.Fatal("the log ends with P and nothing will follow")
			}
			continue
		}
		// P is always followed by at least one byte, so this marks a drop.
		lost := len(r.content) == 0 && len(line) > 0
		for ; next < len(lines); next++ {
			if lost && bytes.HasPrefix(lines[next], line) || !lost && bytes.Equal(lines[next], line) {
				break
			}
		}
		if next == len(lines) && !(lost && bytes.HasPrefix(s.tail(in), line)) {
			t.Fatalf("line %q (lost its tail: %v) is not in the input, or not in this order", line, lost)
		}
		if !lost {
			whole++
		}
		next, line = min(next+1, len(lines)), line[:0]
	}
	lost := len(lines) - whole
	if d := int(dropped); d != lost && d != lost+1 { // one more: the line that has no end yet
		t.Fatalf("%d lines, %d whole in the log, %d counted as dropped", len(lines), whole, dropped)
	}
}

// tail is the input's last line, which has no newline.
func (s *stream) tail(in []byte) []byte { return in[bytes.LastIndexByte(in, '\n')+1:] }

// newQueue makes a Writer without a file and without a flusher.
func newQueue(maxLine int) *Writer {
	w := &Writer{maxLine: maxLine, limit: 1 << 30, stall: time.Second, clock: func() int64 { return 1 }}
	w.data = make(chan struct{}, 1)
	w.streams = map[*stream]struct{}{}
	return w
}
