package main

import (
	"errors"

	"github.com/spf13/cobra"
)

const passwordHelp = `Usage: rideau password
`

func newPasswordCommand() *cobra.Command {
	return newCommand("password", passwordHelp, func(cmd *cobra.Command, args []string) error {
		return errors.New("not yet")
	})
}
