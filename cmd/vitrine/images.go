package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/vitrine-runtime/vitrine/image"
)

// imagesCommand is about the image store of a node.
func imagesCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "images",
		Short: "Look after the image store",
	}
	cmd.AddCommand(fsckCommand())
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
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		cfg, err := load()
		if err != nil {
			return err
		}
		if os.Geteuid() != 0 {
			return errors.New("images fsck: must be root")
		}
		var open closers
		defer func() { err = errors.Join(err, open.close()) }()
		if err := open.claim(cfg.Root, cfg.RunDir); err != nil {
			return err
		}
		options.Repair = !look
		problems, err := image.Check(cmd.Context(), cfg.imageConfig(), options)
		bad := 0
		for _, p := range problems {
			state := "repaired"
			if !p.Repaired {
				state = "found"
				bad++
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", state, p.What)
		}
		if err == nil && bad > 0 {
			err = fmt.Errorf("images fsck: %d problems are left", bad)
		}
		return err
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
		AuthFile:          c.Image.AuthFile,
		TokenHosts:        c.Image.TokenHosts,
		Pinned:            c.Image.Pinned,
	}
}
