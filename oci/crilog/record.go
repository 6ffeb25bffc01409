package crilog

import (
	"bytes"
	"time"
)

// The tags of CRI's format: the line ends here, or goes on.
const (
	tagFull    = 'F'
	tagPartial = 'P'
)

// cut takes the first record's content off the front of data. The tag is zero
// if the end of the line has not been read yet and data may still become a
// single record; data is then to be offered again with more behind it. A line
// of exactly limit bytes is one record, whether its newline is there yet or not.
func cut(data []byte, limit int) (content []byte, tag byte, rest []byte) {
	window := data[:min(len(data), limit+1)]
	if i := bytes.IndexByte(window, '\n'); i >= 0 {
		return data[:i], tagFull, data[i+1:]
	}
	if len(data) > limit {
		return data[:limit], tagPartial, data[limit:]
	}
	return nil, 0, data
}

// headerLen is the size of what appendRecord puts around content, newline
// included, for a stream name of six letters, which both names have.
const headerLen = len("2006-01-02T15:04:05.000000000Z stdout F \n")

// appendRecord adds one line of the log. ts is in ns since 1970.
func appendRecord(buf []byte, s *stamp, ts int64, stream string, tag byte, content []byte) []byte {
	buf = s.append(buf, ts)
	buf = append(buf, ' ')
	buf = append(buf, stream...)
	buf = append(buf, ' ', tag, ' ')
	buf = append(buf, content...)
	return append(buf, '\n')
}

// stamp formats times. It keeps the text of the last second, because working
// out a date costs more than all the rest of a short record.
type stamp struct {
	last  int64 // the latest time given out, ns
	known bool  // text is that of sec
	sec   int64
	text  [len("2006-01-02T15:04:05.")]byte
}

// next returns the time for a record read at now: at least one ns after the
// record before. A clock that was set back by more than a second is believed.
func (s *stamp) next(now int64) int64 {
	if now <= s.last && s.last-now < int64(time.Second) {
		now = s.last + 1
	}
	s.last = now
	return now
}

func (s *stamp) append(buf []byte, ts int64) []byte {
	ts = max(ts, 0) // a clock before 1970 would print garbage
	sec, ns := ts/1e9, ts%1e9
	if !s.known || sec != s.sec {
		s.known, s.sec = true, sec
		time.Unix(sec, 0).UTC().AppendFormat(s.text[:0], "2006-01-02T15:04:05.")
	}
	buf = append(buf, s.text[:]...)
	var digits [10]byte
	digits[9] = 'Z'
	for i := 8; i >= 0; i-- {
		digits[i] = byte('0' + ns%10)
		ns /= 10
	}
	return append(buf, digits[:]...)
}
