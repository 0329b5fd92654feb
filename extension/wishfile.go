package extension

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/BurntSushi/toml"

	"rideau/extension/depend"
)

// A wishReader reads a TOML file that a person has written: whatever is wrong
// with it is said with file, line and key, in words for people.
type wishReader struct {
	file string
	meta toml.MetaData
	root map[string]toml.Primitive
}

// A field is what may stand under a key: it takes the value, or says what is wrong
// with it.
type field func(key toml.Key, value any) error

// modes are those that may be wished for.
var modes = []Mode{Auto, Native, Path, Module, Graft}

// readWishes reads the text into w.
func readWishes(file string, text string, w *Wishes) error {
	r := &wishReader{file: file}
	var err error
	if r.meta, err = toml.Decode(text, &r.root); err != nil {
		return tomlError(file, err)
	}
	var all map[string]any
	if _, err := toml.Decode(text, &all); err != nil {
		return tomlError(file, err)
	}
	return r.table(nil, all, map[string]field{
		"registries": r.texts(&w.Registries),
		"database": r.each(func(key toml.Key, value any) error {
			d := DatabaseWishes{Extensions: map[string]wishLine{}}
			err := r.table(key, value, map[string]field{
				"conninfo": r.text(&d.Conninfo),
				"nodes":    r.texts(&d.Nodes),
				"extensions": r.each(func(key toml.Key, value any) error {
					line, err := r.line(key, value)
					d.Extensions[last(key)] = line
					return err
				}),
			})
			w.Databases[last(key)] = d
			return err
		}),
	})
}

// line reads the wish for one extension: `"*"` or `{ version = "*" }`.
func (r *wishReader) line(key toml.Key, value any) (wishLine, error) {
	var w wishLine
	if err := depend.CheckName(last(key)); err != nil {
		return w, r.wrong(key, "%w", err)
	}
	if version, ok := value.(string); ok {
		w.Version = version
	} else if _, ok := value.(map[string]any); ok {
		var mode string
		err := r.table(key, value, map[string]field{
			"version": r.text(&w.Version), "schema": r.text(&w.Schema), "mode": r.text(&mode), "hold": r.flag(&w.Hold),
		})
		if err != nil {
			return w, err
		}
		if w.Mode = Mode(mode); mode != "" && !slices.Contains(modes, w.Mode) {
			var all []string
			for _, m := range modes {
				all = append(all, string(m))
			}
			return w, r.wrong(append(slices.Clone(key), "mode"), "there is no mode %q%s", mode, instead(mode, all))
		}
	} else {
		return w, r.wrong(key, "an extension is wished for by a version (\"*\" for any) or a table, not by %s", kind(value))
	}
	if _, err := w.versions(); err != nil {
		return w, r.wrong(key, "%q: %w", w.Version, err)
	}
	return w, nil
}

// table reads a table of which the keys are known.
func (r *wishReader) table(key toml.Key, value any, fields map[string]field) error {
	known := names(fields)
	return r.each(func(key toml.Key, value any) error {
		read, ok := fields[last(key)]
		if !ok {
			where := ""
			if len(key) > 1 {
				where = " in [" + key[:len(key)-1].String() + "]"
			}
			line, _ := r.position(key)
			return fmt.Errorf("%s:%d: unknown key %q%s%s", r.file, line, last(key), where, instead(last(key), known))
		}
		return read(key, value)
	})(key, value)
}

// each reads a table whose keys are names, in the order of the file.
func (r *wishReader) each(read field) field {
	return func(key toml.Key, value any) error {
		table, ok := value.(map[string]any)
		if !ok {
			return r.wrong(key, "this must be a table, [%s], not %s", key, kind(value))
		}
		keys := names(table)
		slices.SortStableFunc(keys, func(a, b string) int {
			_, first := r.position(append(slices.Clone(key), a))
			_, second := r.position(append(slices.Clone(key), b))
			return cmp.Compare(first, second)
		})
		for _, name := range keys {
			if err := read(append(slices.Clone(key), name), table[name]); err != nil {
				return err
			}
		}
		return nil
	}
}

func (r *wishReader) text(into *string) field {
	return func(key toml.Key, value any) error {
		var ok bool
		if *into, ok = value.(string); !ok {
			return r.wrong(key, "this must be a string, not %s", kind(value))
		}
		return nil
	}
}

func (r *wishReader) flag(into *bool) field {
	return func(key toml.Key, value any) error {
		var ok bool
		if *into, ok = value.(bool); !ok {
			return r.wrong(key, "this must be true or false, not %s", kind(value))
		}
		return nil
	}
}

func (r *wishReader) texts(into *[]string) field {
	return func(key toml.Key, value any) error {
		list, ok := value.([]any)
		if !ok {
			return r.wrong(key, "this must be a list of strings, [\"...\"], not %s", kind(value))
		}
		for _, one := range list {
			text, ok := one.(string)
			if !ok {
				return r.wrong(key, "this must be a list of strings, and %s is in it", kind(one))
			}
			*into = append(*into, text)
		}
		return nil
	}
}

// wrong is an error about what stands under a key.
func (r *wishReader) wrong(key toml.Key, format string, args ...any) error {
	line, _ := r.position(key)
	return fmt.Errorf("%s:%d: %s: %w", r.file, line, key, fmt.Errorf(format, args...))
}

// position finds a key in the file: its line, and at which byte it is. A table
// that has no line of its own is where the first thing in it is.
func (r *wishReader) position(key toml.Key) (line, start int) {
	table := r.root
	for i, name := range key {
		value, ok := table[name]
		if !ok {
			return 0, 0
		}
		table = nil
		if i == len(key)-1 {
			var parse toml.ParseError
			if errors.As(r.meta.PrimitiveDecode(value, refuses{}), &parse) && parse.Position.Line > 0 {
				return parse.Position.Line, parse.Position.Start
			}
		}
		if r.meta.PrimitiveDecode(value, &table) != nil {
			return 0, 0 // no table, so it has a line
		}
	}
	for name := range table {
		if l, s := r.position(append(slices.Clone(key), name)); line == 0 || s < start {
			line, start = l, s
		}
	}
	return line, start
}

// refuses refuses every value, because errors are what has a position.
type refuses struct{}

func (refuses) UnmarshalTOML(any) error { return errors.New("it is here") }

func last(key toml.Key) string { return key[len(key)-1] }

// kind is what a value is, for people.
func kind(value any) string {
	switch value.(type) {
	case string:
		return "a string"
	case bool:
		return "true or false"
	case int64, float64:
		return "a number"
	case []any:
		return "a list"
	case []map[string]any:
		return "a list of tables"
	case map[string]any:
		return "a table"
	}
	return "a date or time"
}

// instead says what could have been meant, or what there is.
func instead(name string, known []string) string {
	if near := depend.Near(name, known); len(near) > 0 {
		return fmt.Sprintf("; did you mean %q?", near[0])
	}
	if len(known) == 1 {
		return "; there is " + known[0]
	}
	return "; there are " + strings.Join(known[:len(known)-1], ", ") + " and " + known[len(known)-1]
}
