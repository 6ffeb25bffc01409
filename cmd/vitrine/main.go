package main

import (
	"fmt"
	"os"

	"k8s.io/klog/v2"

	"github.com/vitrine-runtime/vitrine/image"
)

func main() {
	// Before anything else: this process may be the one that unpacks a layer.
	if image.Init() {
		return
	}
	err := rootCommand().Execute()
	klog.Flush()
	if err != nil {
		fmt.Fprintf(os.Stderr, "vitrine: %v\n", err)
		os.Exit(1)
	}
}
