package main

import (
	"github.com/spf13/cobra"
)

const completionHelp = `Usage: rideau completion bash|zsh|fish

Prints a script that completes rideau's commands and options in your shell.

Example:
    $ rideau completion bash > /etc/bash_completion.d/rideau
    $ rideau completion zsh > "${fpath[1]}/_rideau"
    $ rideau completion fish > ~/.config/fish/completions/rideau.fish
`

func newCompletionCommand() *cobra.Command {
	cmd := newCommand("completion bash|zsh|fish", completionHelp, func(cmd *cobra.Command, args []string) error {
		if err := arguments(cmd, args, [2]string{"SHELL", "shell to complete for"}); err != nil {
			return err
		}
		root, out := cmd.Root(), cmd.OutOrStdout()
		switch args[0] {
		case "bash":
			return root.GenBashCompletionV2(out, false)
		case "zsh":
			return root.GenZshCompletionNoDesc(out)
		case "fish":
			return root.GenFishCompletion(out, false)
		}
		err := usageErrorf(cmd, "unknown shell %q", args[0])
		err.hint = "Completion is there for bash, zsh and fish."
		return err
	})
	cmd.ValidArgs = []string{"bash", "zsh", "fish"}
	return cmd
}
