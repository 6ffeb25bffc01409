package main

import (
	"os"
	"slices"
	"strings"
	"time"
)

// samples are times of one operation.
type samples []time.Duration

// quantile returns the value below which a share q of the samples lies.
func (s samples) quantile(q float64) time.Duration {
	sorted := slices.Sorted(slices.Values(s))
	return sorted[min(len(sorted)-1, int(q*float64(len(sorted))))]
}

func millis(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e6 }

// loadAverage returns how many processes wanted a processor in the last minute.
func loadAverage() string {
	text, _ := os.ReadFile("/proc/loadavg")
	first, _, _ := strings.Cut(string(text), " ")
	return first
}
