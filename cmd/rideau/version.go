package main

import (
	"fmt"
	"runtime/debug"

	"github.com/spf13/cobra"
)

const versionHelp = `Usage: rideau version

Prints which rideau this is: its version or the commit it was built from, the
Go version, and the platform.

Example:
    $ rideau version
`

func newVersionCommand() *cobra.Command {
	return newCommand("version", versionHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args); err != nil {
			return err
		}
		_, err := fmt.Fprintln(cmd.OutOrStdout(), thisBuild())
		return err
	})
}

// thisBuild says which rideau this is.
func thisBuild() string {
	info, ok := debug.ReadBuildInfo()
	if !ok { // only if it was not built with modules, which it cannot be
		return "rideau"
	}
	return describeBuild(info)
}

// describeBuild says in a line what Go recorded when it built this program.
func describeBuild(info *debug.BuildInfo) string {
	setting := map[string]string{}
	for _, s := range info.Settings {
		setting[s.Key] = s.Value
	}
	version := info.Main.Version
	if version == "" || version == "(devel)" {
		version = "devel"
		if commit := setting["vcs.revision"]; len(commit) >= 12 {
			version += " " + commit[:12]
		}
		if setting["vcs.modified"] == "true" {
			version += " (modified)"
		}
	}
	return fmt.Sprintf("rideau %s, %s, %s/%s", version, info.GoVersion, setting["GOOS"], setting["GOARCH"])
}
