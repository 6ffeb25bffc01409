package machine

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// TestNewDir: machines that begin at the same moment leave each other's directories alone, and take away what is nobody's. Two
// guests of a set did once not.
func TestNewDir(t *testing.T) {
	cache := t.TempDir()
	left := filepath.Join(cache, "machine-left")
	if err := os.Mkdir(left, 0o755); err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for range 5 {
				dir, err := newDir(cache)
				if err != nil {
					t.Error(err)
					return
				}
				if err := os.WriteFile(filepath.Join(dir, "disk.img"), nil, 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	if disks, _ := filepath.Glob(filepath.Join(cache, "machine-*", "disk.img")); len(disks) != 40 {
		t.Errorf("%d of 40 are left", len(disks))
	}
	if _, err := os.Stat(left); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nobody's directory: %v", err)
	}
}
