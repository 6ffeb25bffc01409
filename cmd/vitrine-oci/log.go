package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"github.com/vitrine-runtime/vitrine/internal/specjson"
)

// logger writes what goes wrong where the caller looks for it: into the file of --log
// in the form of --log-format, and for people to stderr.
type logger struct {
	file  string
	form  string
	debug bool
	errs  io.Writer
}

// check looks at the flags before anything happens, so that a caller who would not
// see errors hears of it.
func (l *logger) check() error {
	if l.form != "" && l.form != "text" && l.form != "json" {
		return fmt.Errorf("log format %q: text or json: %w", l.form, errUsage)
	}
	if l.file == "" {
		return nil
	}
	f, err := l.open()
	if err != nil {
		return err
	}
	return f.Close()
}

func (l *logger) open() (*os.File, error) {
	return os.OpenFile(l.file, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o644)
}

// fail tells of an error, to both.
func (l *logger) fail(err error) {
	l.write("error", err.Error())
	if l.file != "" || l.form != "json" {
		say(l.errs, "vitrine-oci: "+err.Error()+"\n")
	}
}

// warn tells of what is no failure of the verb.
func (l *logger) warn(text string) {
	l.write("warning", text)
	if l.file == "" && l.form != "json" {
		say(l.errs, "vitrine-oci: warning: "+text+"\n")
	}
}

// write adds one line: the forms are those of logrus, which callers parse.
func (l *logger) write(level, msg string) {
	now := time.Now().UTC().Format(time.RFC3339)
	line := "time=" + strconv.Quote(now) + " level=" + level + " msg=" + strconv.Quote(msg) + "\n"
	if l.form == "json" {
		b, err := specjson.Marshal(struct {
			Level string `json:"level"`
			Msg   string `json:"msg"`
			Time  string `json:"time"`
		}{level, msg, now})
		if err != nil {
			return // strings always become JSON
		}
		line = string(b) + "\n"
	}
	switch {
	case l.file != "":
		if f, err := l.open(); err == nil { // check has opened it before
			say(f, line)
			f.Close()
		}
	case l.form == "json":
		say(l.errs, line)
	}
}
