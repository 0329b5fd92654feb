package main

import (
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"rideau/basebackup"
)

const doctorHelp = `Usage: rideau doctor CONNINFO [options]

Says whether a base backup can be taken from the PostgreSQL server at CONNINFO
by the role that connects, what is in the way, and the exact SQL to fix it.
Also what is worth knowing before: settings, tablespaces, files that are not in
the data directory. Nothing is changed.

    ok   what is as it should be
    no   what makes a backup impossible, and what to do about it
    note what can be better, or must be known

Options:
    --json   Print all that was found as JSON.

Exit status: 0 if a base backup can be taken, 1 if not.

Example:
    $ rideau doctor 'host=db1 user=backup dbname=postgres'
`

func newDoctorCommand() *cobra.Command {
	var asJSON bool
	cmd := newCommand("doctor CONNINFO [options]", doctorHelp, func(cmd *cobra.Command, args []string) error {
		err := arguments(cmd, args, [2]string{"CONNINFO", "connection string of the server to examine"})
		if err != nil {
			return err
		}
		x, err := basebackup.Examine(cmd.Context(), args[0])
		if err != nil {
			return err
		}
		out := cmd.OutOrStdout()
		if asJSON {
			err = writeJSON(out, x)
		} else {
			_, err = io.WriteString(out, describeExamination(x))
		}
		if err == nil && !x.Possible() {
			err = withStatus(statusFailed, nil) // the report has said it
		}
		return err
	})
	cmd.Flags().BoolVar(&asJSON, "json", false, "")
	return cmd
}

func describeExamination(x *basebackup.Examination) string {
	var b strings.Builder
	for _, f := range x.Findings {
		fmt.Fprintf(&b, "%-5s%s\n", f.Verdict, f.What)
		for _, line := range f.Fix {
			fmt.Fprintf(&b, "     %s\n", line)
		}
	}
	if x.Possible() {
		b.WriteString("A base backup can be taken: rideau basebackup CONNINFO DIR\n")
	} else {
		b.WriteString("A base backup cannot be taken.\n")
	}
	return b.String()
}
