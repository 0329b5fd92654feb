package console

import (
	"bytes"
	"encoding/json"
	"fmt"
	"html/template"
	"net/http"
)

// The page shows a status as JSON has it, whatever it is: fields by name in
// their order, lists of objects as tables. So a status that learns something
// new shows it without a word here. It needs no script and nothing from
// elsewhere, and says so to the browser.
var page = template.Must(template.New("page").Parse(`<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="refresh" content="2">
<meta name="viewport" content="width=device-width">
<title>Rideau</title>
<style>
body { font: 15px/1.4 system-ui, sans-serif; margin: 2em; color-scheme: light dark }
table { border-collapse: collapse; margin: 0 0 1.5em }
th, td { border-bottom: 1px solid #8884; padding: .25em 1em .25em 0; text-align: left; vertical-align: top }
th { font-weight: 600 }
td { font-variant-numeric: tabular-nums }
td table { margin: 0 }
</style>
<h1>Rideau</h1>
{{template "value" .}}
<p><a href="/status">status as JSON</a> · <a href="/metrics">metrics</a></p>
{{define "value" -}}
{{if .Rows}}<table>
<tr>{{range .Columns}}<th scope="col">{{.}}</th>{{end}}</tr>
{{range .Rows}}<tr>{{range .}}<td>{{template "value" .}}</td>{{end}}</tr>
{{end}}</table>
{{else if .Fields}}<table>
{{range .Fields}}<tr><th scope="row">{{.Name}}</th><td>{{template "value" .Value}}</td></tr>
{{end}}</table>
{{else if .Items}}{{range $i, $item := .Items}}{{if $i}}, {{end}}{{template "value" $item}}{{end}}
{{- else}}{{.Text}}{{end}}
{{- end}}`))

// A value is a piece of JSON laid out for the page. At most one of Fields,
// Items and Rows is there; Text otherwise.
type value struct {
	Text    string
	Fields  []field // an object
	Items   []value // a list
	Columns []string
	Rows    [][]value // a list of objects, all of whose fields are in Columns
}

type field struct {
	Name  string
	Value value
}

func servePage(w http.ResponseWriter, status any) {
	text, err := json.Marshal(status)
	if err != nil {
		serveError(w, http.StatusInternalServerError, "could not marshal the status")
		return
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber() // an int64 is not a float
	v, err := layOut(d)
	if err != nil {
		serveError(w, http.StatusInternalServerError, "could not lay out the status")
		return
	}
	var out bytes.Buffer
	if err := page.Execute(&out, v); err != nil {
		serveError(w, http.StatusInternalServerError, "could not write the page")
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'")
	w.Write(out.Bytes())
}

// layOut reads the next JSON value of d. It walks the tokens, for a map would
// lose the order that the status has.
func layOut(d *json.Decoder) (value, error) {
	t, err := d.Token()
	if err != nil {
		return value{}, err
	}
	switch t {
	case json.Delim('{'):
		var v value
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return value{}, err
			}
			inner, err := layOut(d)
			if err != nil {
				return value{}, err
			}
			v.Fields = append(v.Fields, field{fmt.Sprint(name), inner})
		}
		_, err := d.Token()
		return v, err
	case json.Delim('['):
		var v value
		for d.More() {
			item, err := layOut(d)
			if err != nil {
				return value{}, err
			}
			v.Items = append(v.Items, item)
		}
		_, err := d.Token()
		return tabulate(v), err
	case nil:
		return value{}, nil
	}
	return value{Text: fmt.Sprint(t)}, nil
}

// tabulate turns a list that has only objects into a table. A field that an
// object lacks, as one with omitempty may, is an empty cell.
func tabulate(v value) value {
	column := map[string]int{}
	var table value
	for _, item := range v.Items {
		if len(item.Fields) == 0 {
			return v
		}
		for _, f := range item.Fields {
			if _, ok := column[f.Name]; !ok {
				column[f.Name] = len(table.Columns)
				table.Columns = append(table.Columns, f.Name)
			}
		}
	}
	for _, item := range v.Items {
		row := make([]value, len(table.Columns))
		for _, f := range item.Fields {
			row[column[f.Name]] = f.Value
		}
		table.Rows = append(table.Rows, row)
	}
	return table
}
