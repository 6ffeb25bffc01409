package main

import (
	"strings"
	"testing"
)

func TestTally(t *testing.T) {
	const stream = `{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestOne"}
{"Action":"run","Package":"m/a","Test":"TestOne/x"}
{"Action":"run","Package":"m/a","Test":"TestOne/y"}
{"Action":"output","Package":"m/a","Test":"TestOne/x","Output":"    a_test.go:3: got 1\n"}
{"Action":"output","Package":"m/a","Test":"TestOne/x","Output":"        I1130 00:33:22.304039 1650 interceptor.go:110] done\n"}
{"Action":"fail","Package":"m/a","Test":"TestOne/x","Elapsed":0}
{"Action":"pass","Package":"m/a","Test":"TestOne/y","Elapsed":31}
{"Action":"fail","Package":"m/a","Test":"TestOne","Elapsed":0}
{"Action":"run","Package":"m/a","Test":"TestTwo"}
{"Action":"output","Package":"m/a","Test":"TestTwo","Output":"    a_test.go:9: needs root: mounts\n"}
{"Action":"output","Package":"m/a","Test":"TestTwo","Output":"--- SKIP: TestTwo (0.00s)\n"}
{"Action":"skip","Package":"m/a","Test":"TestTwo","Elapsed":42}
{"Action":"fail","Package":"m/a","Elapsed":0.1}
{"ImportPath":"m/b","Action":"build-output","Output":"b.go:1: syntax error\n"}
{"ImportPath":"m/b","Action":"build-fail"}
{"Action":"fail","Package":"m/b","Elapsed":0,"FailedBuild":"m/b"}
{"Action":"run","Package":"m/c","Test":"TestHang"}
{"Action":"output","Package":"m/c","Test":"TestHang","Output":"panic: test timed out after 20m\n"}
{"Action":"fail","Package":"m/c","Elapsed":1200}
{"Action":"run","Package":"m/d","Test":"TestParent"}
{"Action":"run","Package":"m/d","Test":"TestParent/x"}
{"Action":"pass","Package":"m/d","Test":"TestParent/x","Elapsed":0}
{"Action":"fail","Package":"m/d","Test":"TestParent","Elapsed":0}
{"Action":"fail","Package":"m/d","Elapsed":0}
plain line
`
	var out strings.Builder
	tl := newTally(&out)
	if err := tl.read(strings.NewReader(stream)); err != nil {
		t.Fatal(err)
	}
	passed, failed := tl.summary()
	if passed != 2 || failed != 4 {
		t.Errorf("passed %d, failed %d; want 2 and 4\n%s", passed, failed, out.String())
	}
	for _, want := range []string{"got 1", "syntax error", "test timed out", "plain line\n", "skip  m/a TestTwo: a_test.go:9: needs root: mounts\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("output lacks %q:\n%s", want, out.String())
		}
	}
	const last = "mounts\nslow  m/a TestTwo: 42 s\nFAIL  m/a TestOne/x: a_test.go:3: got 1\n2 passed, 4 failed, 1 skipped\n"
	if !strings.HasSuffix(out.String(), last) {
		t.Errorf("last lines:\n%s", out.String())
	}
}
