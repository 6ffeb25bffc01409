package main

import (
	"fmt"
	"runtime"
	"strings"

	"github.com/spf13/cobra"
)

// rootCommand makes the command line anew, so that tests can run it.
func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "vitrine",
		Short:         "A Kubernetes CRI runtime that you can see into",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(serveCommand(), configCommand(), imagesCommand(), versionCommand())
	return root
}

func serveCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon: answer the CRI on a unix socket",
		Args:  cobra.NoArgs,
	}
	load := configFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		return serve(cmd.Context(), cfg)
	}
	return cmd
}

func configCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "config",
		Short: "Print the configuration that serve would run with, as TOML",
		Args:  cobra.NoArgs,
	}
	load := configFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		return cfg.print(cmd.OutOrStdout())
	}
	return cmd
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  cobra.NoArgs,
		Run: func(cmd *cobra.Command, _ []string) {
			fmt.Fprintf(cmd.OutOrStdout(), "vitrine %s (%s, %s/%s)\n", semver(version), runtime.Version(), runtime.GOOS, runtime.GOARCH)
		},
	}
}

// version is set by the linker: a tag, or what git describes.
var version = "0.1.0-dev"

// semver makes a version that CRI clients can parse of what git describes: tags are
// versions with a v, everything else becomes the build part of one.
func semver(v string) string {
	v = strings.TrimPrefix(v, "v")
	core, _, _ := strings.Cut(v, "-")
	if n := strings.Split(core, "."); len(n) == 3 && number(n[0]) && number(n[1]) && number(n[2]) {
		return v
	}
	return "0.0.0-dev+" + strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r == '-' || r == '.' {
			return r
		}
		return '-'
	}, v)
}

func number(s string) bool {
	return s != "" && strings.Trim(s, "0123456789") == "" && (s == "0" || s[0] != '0')
}
