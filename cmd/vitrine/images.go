package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vitrine-runtime/vitrine/image"
)

// imagesCommand is about the image store of a node.
func imagesCommand() *cobra.Command {
	var watch bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "Show the pulls under way, or look after the image store",
		Args:  cobra.NoArgs,
	}
	load := configFlags(cmd.Flags())
	cmd.Flags().BoolVar(&watch, "watch", false, "go on showing them as they change")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		cfg, err := load()
		if err != nil {
			return err
		}
		return showPulls(cmd.Context(), cfg.Listen, cmd.OutOrStdout(), watch)
	}
	cmd.AddCommand(fsckCommand(), loadCommand(), saveCommand())
	return cmd
}

func fsckCommand() *cobra.Command {
	var options image.CheckOptions
	var look bool
	cmd := &cobra.Command{
		Use:   "fsck",
		Short: "Find and repair what is broken in the image store, while the daemon is down",
		Long: `Find and repair what is broken in the image store, while the daemon is down.

An image that cannot run is removed, so that the next pull brings it again; what a
container uses stays. The exit status is 1 where something is wrong and was not repaired.`,
		Args: cobra.NoArgs,
	}
	load := configFlags(cmd.Flags())
	cmd.Flags().BoolVar(&look, "dry-run", false, "only say what is wrong")
	cmd.Flags().BoolVar(&options.Deep, "deep", false, "also read each layer and compare it with its digest")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return offline(load, func(cfg *Config) error {
			options.Repair = !look
			problems, err := image.Check(cmd.Context(), cfg.imageConfig(), options)
			return errors.Join(err, report(cmd, problems))
		})
	}
	return cmd
}

// report prints what is wrong, and fails if some of it still is.
func report(cmd *cobra.Command, problems []image.Problem) error {
	bad := 0
	for _, p := range problems {
		state := "repaired"
		if !p.Repaired {
			state = "found"
			bad++
		}
		fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", state, p.What)
	}
	if bad > 0 {
		return fmt.Errorf("images fsck: %d problems are left", bad)
	}
	return nil
}

// offline does something to the image store in the place of the daemon, which has to
// be down: the store has one writer.
func offline(load func() (*Config, error), f func(*Config) error) (err error) {
	cfg, err := load()
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("images: must be root")
	}
	var open closers
	defer func() { err = errors.Join(err, open.close()) }()
	if err := open.claim(cfg.Root, cfg.RunDir); err != nil {
		return err
	}
	return f(cfg)
}

// withImages is offline with the store open.
func withImages(load func() (*Config, error), f func(*image.Store) error) error {
	return offline(load, func(cfg *Config) error {
		s, err := image.Open(cfg.imageConfig())
		if err != nil {
			return err
		}
		return errors.Join(f(s), s.Close())
	})
}

func loadCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "load PATH",
		Short: "Take in the images of a docker archive or an OCI layout, while the daemon is down",
		Args:  cobra.ExactArgs(1),
	}
	load := configFlags(cmd.Flags())
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return withImages(load, func(s *image.Store) error {
			all, err := s.Load(cmd.Context(), args[0])
			for _, l := range all {
				fmt.Fprintln(cmd.OutOrStdout(), l.ID, strings.Join(l.Names, " "))
			}
			return err
		})
	}
	return cmd
}

func saveCommand() *cobra.Command {
	var oci bool
	cmd := &cobra.Command{
		Use:   "save PATH IMAGE...",
		Short: "Write images to a docker archive or an OCI layout, while the daemon is down",
		Args:  cobra.MinimumNArgs(2),
	}
	load := configFlags(cmd.Flags())
	cmd.Flags().BoolVar(&oci, "oci", false, "as an OCI layout, a directory")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return withImages(load, func(s *image.Store) error {
			return s.Save(cmd.Context(), args[0], oci, args[1:]...)
		})
	}
	return cmd
}

// imageConfig is where the image store is and what its rules are.
func (c *Config) imageConfig() image.Config {
	return image.Config{
		Root:              filepath.Join(c.Root, "storage"),
		RunRoot:           filepath.Join(c.RunDir, "storage"),
		Containers:        filepath.Join(c.Root, "upper"),
		RegistriesConf:    c.Image.RegistriesConf,
		RegistriesConfDir: c.Image.RegistriesConfDir,
		PolicyPath:        c.Image.Policy,
		PolicyDir:         c.Image.PolicyDir,
		RegistriesDir:     c.Image.RegistriesDir,
		CertsDir:          c.Image.CertsDir,
		AuthFile:          c.Image.AuthFile,
		TokenHosts:        c.Image.TokenHosts,
		Pinned:            c.Image.Pinned,
	}
}
