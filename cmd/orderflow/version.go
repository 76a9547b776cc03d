package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Set by the linker (see Makefile). A plain `go build` or `go install` leaves them, and the build info answers.
var version, revision string

type versionDoc struct {
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func newVersion() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "version",
		Short:   "Print which build this is",
		Example: "  orderflow version\n  orderflow version -o json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out, err := newOutput(cmd)
			if err != nil {
				return err
			}
			v := buildVersion()
			t := &table{}
			t.add(fmt.Sprintf("orderflow %s (%s, %s, %s)", v.Version, v.Revision, v.Go, v.Platform))
			return one(out, v, t)
		},
	}
	addOutputFlag(cmd)
	return cmd
}

func buildVersion() versionDoc {
	v := versionDoc{Version: version, Revision: revision, Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		if v.Version == "" {
			v.Version = info.Main.Version
		}
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && v.Revision == "" {
				v.Revision = s.Value
			}
		}
	}
	if v.Version == "" || v.Version == "(devel)" {
		v.Version = "dev"
	}
	if v.Revision == "" {
		v.Revision = "unknown"
	}
	return v
}
