package crilog

import (
	"bytes"
	"os"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// BenchmarkLog pushes lines of 101 bytes through a real pipe into a file, as
// performance notes on other log writers do. MB/s counts the container's bytes;
// cpu-ms/MB is the whole process, of which the producer is one write(2) per 64 KiB.
func BenchmarkLog(b *testing.B) {
	for _, bb := range []struct {
		name string
		line int
	}{{"1", 0}, {"101", 100}, {"16K", 16 << 10}} {
		b.Run(bb.name, func(b *testing.B) {
			line := append(bytes.Repeat([]byte{'x'}, bb.line), '\n')
			chunk := bytes.Repeat(line, (64<<10)/len(line))
			_, dir := tempDir(b)
			w := open(b, dir, nil)
			p := pipe(b, w, "stdout")
			b.SetBytes(int64(len(chunk)))
			before := cpu()
			for i := 0; b.Loop(); i++ {
				if i%4096 == 0 { // keep the disk out of it
					unix.Unlinkat(dir, "0.log", 0)
					if err := w.Reopen(); err != nil {
						b.Fatal(err)
					}
				}
				p.Write(chunk)
			}
			p.Close()
			drain(b, w)
			b.ReportMetric(float64(cpu()-before)/1e6/(float64(b.N)*float64(len(chunk))/1e6), "cpu-ms/MB")
			if s := w.Stats(); s.DroppedLines > 0 {
				b.Fatalf("dropped: %+v", s)
			}
		})
	}
}

// cpu is what the process used so far, in ns.
func cpu() int64 {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return u.Utime.Nano() + u.Stime.Nano()
}

// BenchmarkIdle reports what a container costs that is quiet: heap and stacks of
// a Writer with two streams which wrote something once.
func BenchmarkIdle(b *testing.B) {
	_, dir := tempDir(b)
	var writers []*Writer
	var pipes []*os.File
	before := memory()
	for range 100 {
		w := open(b, dir, nil)
		writers = append(writers, w)
		for _, name := range []string{"stdout", "stderr"} {
			r, p, err := os.Pipe()
			if err != nil {
				b.Fatal(err)
			}
			w.Stream(name, r)
			p.WriteString("hello\n")
			pipes = append(pipes, p)
		}
	}
	for _, w := range writers {
		for w.Stats().Lines < 2 {
			runtime.Gosched()
		}
	}
	for b.Loop() {
		runtime.GC()
	}
	b.ReportMetric(float64(memory()-before)/100, "B/container")
	for _, p := range pipes {
		p.Close()
	}
}

func memory() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapInuse + m.StackInuse
}
