package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// lockName is the file in a directory that the daemon which owns it holds locked.
const lockName = "daemon.lock"

// makeDir makes a directory of ours, for root alone. One that is there already is
// taken as it is, unless others could change what we keep in it.
func makeDir(path string) error {
	if err := os.MkdirAll(path, 0o700); err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	st := info.Sys().(*syscall.Stat_t)
	if int(st.Uid) != os.Geteuid() || info.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("use %s: others may write to it (owner %d, mode %04o)", path, st.Uid, info.Mode().Perm())
	}
	return nil
}

// orphanedLock is how long a lock is waited for whose holder is dead. A daemon that is killed between the fork and
// the execve of a child leaves the lock to that child, until its execve closes the file.
const orphanedLock = 5 * time.Second

// lockDir makes sure that this is the only daemon that works in dir. The lock ends
// with the process or with closing the file, so a dead daemon never leaves one.
func lockDir(dir string) (*os.File, error) {
	path := filepath.Join(dir, lockName)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	err = takeLock(f)
	if err == nil {
		err = f.Truncate(0)
	}
	if err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", dir, err)
	}
	return f, nil
}

// takeLock fails at once if a living daemon has the lock.
func takeLock(f *os.File) error {
	for deadline := time.Now().Add(orphanedLock); ; time.Sleep(5 * time.Millisecond) {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EWOULDBLOCK) {
			return err
		}
		text, _ := io.ReadAll(io.NewSectionReader(f, 0, 20))
		pid, _ := strconv.Atoi(strings.TrimSpace(string(text)))
		if pid <= 0 || !errors.Is(syscall.Kill(pid, 0), syscall.ESRCH) || time.Now().After(deadline) {
			return fmt.Errorf("another daemon works there, pid %d", pid)
		}
	}
}
