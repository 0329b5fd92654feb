package main

import (
	"encoding/json"
	"io"
)

// writeJSON prints a report for programs, indented so that people can read it
// too.
func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false) // relations have < and >
	e.SetIndent("", "  ")
	return e.Encode(v)
}
