package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// screen prints the visit: a title, lines of what was done, and, on a terminal only, colours and a line that moves while
// something is being done. Into a pipe or a file it writes plain lines.
type screen struct {
	out io.Writer
	tty bool

	mu      sync.Mutex
	current string // what is being done; "" when nothing is
	quit    chan struct{}
	done    chan struct{}
}

// newScreen starts the moving line if out is a terminal; stop ends it.
func newScreen(out *os.File) *screen {
	s := &screen{out: out, quit: make(chan struct{}), done: make(chan struct{})}
	_, err := unix.IoctlGetTermios(int(out.Fd()), unix.TCGETS)
	s.tty = err == nil && os.Getenv("TERM") != "dumb" && os.Getenv("NO_COLOR") == ""
	go s.move()
	return s
}

// move redraws the line of what is being done until stop is called.
func (s *screen) move() {
	defer close(s.done)
	if !s.tty {
		<-s.quit
		return
	}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	frames := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")
	for i := 0; ; i++ {
		select {
		case <-s.quit:
			return
		case <-tick.C:
			s.mu.Lock()
			if s.current != "" {
				fmt.Fprintf(s.out, "\r  %s %s …\x1b[K", s.paint(36, string(frames[i%len(frames)])), s.current)
			}
			s.mu.Unlock()
		}
	}
}

// stop ends the moving line; nothing moves after it.
func (s *screen) stop() {
	s.mu.Lock()
	s.clear()
	s.mu.Unlock()
	close(s.quit)
	<-s.done
}

// paint puts text in an ANSI colour on a terminal.
func (s *screen) paint(colour int, text string) string {
	if !s.tty {
		return text
	}
	return fmt.Sprintf("\x1b[%dm%s\x1b[0m", colour, text)
}

// clear takes the moving line away. Preconditions: s.mu is held.
func (s *screen) clear() {
	if s.tty && s.current != "" {
		fmt.Fprint(s.out, "\r\x1b[K")
	}
	s.current = ""
}

// doing names what is being done now.
func (s *screen) doing(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	s.current = what
}

// line prints one line in place of the moving one.
func (s *screen) line(text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintln(s.out, text)
}

func (s *screen) title(text string) { s.line("\n" + s.paint(1, text)) }

func (s *screen) did(what, format string, args ...any) {
	s.line(fmt.Sprintf("  %s %-13s %s", s.paint(32, "✓"), what, fmt.Sprintf(format, args...)))
}

func (s *screen) note(format string, args ...any) {
	s.line("  " + s.paint(33, "!") + " " + fmt.Sprintf(format, args...))
}

// show prints a heading and lines below it.
func (s *screen) show(what string, lines ...string) {
	s.line("  " + s.paint(36, what))
	for _, l := range lines {
		s.line("      " + l)
	}
}

func (s *screen) failed(err error) {
	s.line("\n  " + s.paint(31, "✗ "+err.Error()))
}
