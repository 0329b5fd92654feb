package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"strconv"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// A config is what rideau.yaml says, with the options of the command line laid
// over it. doc/rideau.yaml explains every setting to users; a test holds the
// two together. The zero value of a setting is its default.
type config struct {
	Relay relayConfig `yaml:"relay"`
	HTTP  string      `yaml:"http"` // host:port; "none" for no HTTP; default localhost:5480
	Log   logConfig   `yaml:"log"`

	file *configFile // where the settings stand; nil if all came from options
}

type relayConfig struct {
	Upstream   string            `yaml:"upstream"`    // libpq connection string or URI; required
	Dir        string            `yaml:"dir"`         // required
	Listen     []string          `yaml:"listen"`      // host:port or socket directory; default localhost:5433
	Slot       string            `yaml:"slot"`        // "none" for no slot; default rideau
	Name       string            `yaml:"name"`        // application_name upstream; default rideau
	Keep       string            `yaml:"keep"`        // see parseKeep; default all
	TLS        tlsConfig         `yaml:"tls"`         // default no TLS
	HBA        []string          `yaml:"hba"`         // lines of pg_hba.conf; default loopback trusted
	Users      map[string]string `yaml:"users"`       // user name to SCRAM verifier
	ForwardSQL *bool             `yaml:"forward_sql"` // default true
}

type tlsConfig struct {
	Cert     string `yaml:"cert"`      // PEM file
	Key      string `yaml:"key"`       // PEM file
	ClientCA string `yaml:"client_ca"` // PEM file; "" asks clients for no certificate
}

type logConfig struct {
	Format string `yaml:"format"` // text, json; default text
	Level  string `yaml:"level"`  // debug, info, warn, error; default info
}

// readConfig reads a configuration file. What is wrong with its form is a
// usageError with the line; what its values mean is for [config.resolve].
func readConfig(name string) (config, error) {
	f, err := os.Open(name)
	if err != nil {
		return config{}, &usageError{err: fmt.Errorf("could not read the configuration: %w", err)}
	}
	defer f.Close()
	text, err := io.ReadAll(f)
	if err != nil {
		return config{}, &usageError{err: fmt.Errorf("could not read the configuration: %w", err)}
	}
	cfg, err := parseConfig(name, text)
	if err != nil {
		return config{}, err
	}
	if info, err := f.Stat(); err == nil {
		cfg.file.readableByAll = info.Mode().Perm()&0o004 != 0
	}
	return cfg, nil
}

// parseConfig reads the text of a configuration file called name.
func parseConfig(name string, text []byte) (config, error) {
	var cfg config
	err := yaml.NewDecoder(bytes.NewReader(text), yaml.Strict()).Decode(&cfg)
	if err != nil && !errors.Is(err, io.EOF) { // an empty file has no settings
		return config{}, formError(name, err)
	}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return config{}, formError(name, err)
	}
	cfg.file = &configFile{name: name, tree: tree}
	return cfg, nil
}

// formError turns what the YAML library says into a line that editors
// understand, FILE:LINE: message, and a setting close to an unknown one into a
// hint.
func formError(name string, err error) error {
	var located interface {
		GetMessage() string
		GetToken() *token.Token
	}
	if !errors.As(err, &located) {
		return &usageError{err: fmt.Errorf("%s: %w", name, err)}
	}
	line, message := 1, located.GetMessage()
	tok := located.GetToken()
	if tok != nil && tok.Position != nil {
		line = tok.Position.Line
	}
	var wrongType *yaml.TypeError
	if errors.As(err, &wrongType) && tok != nil {
		got := strconv.Quote(tok.Value)
		switch tok.Value {
		case "[", "-":
			got = "a list"
		case "{", ":":
			got = "a group of settings"
		}
		return &usageError{
			err:  fmt.Errorf("%s:%d: want %s, got %s", name, line, kindOfValue(wrongType.DstType), got),
			hint: "doc/rideau.yaml has every setting, explained.",
		}
	}
	var unknown *yaml.UnknownFieldError
	if !errors.As(err, &unknown) || tok == nil {
		return &usageError{err: fmt.Errorf("%s:%d: %s", name, line, message)}
	}
	usage := &usageError{
		err:  fmt.Errorf("%s:%d: unknown setting %q", name, line, tok.Value),
		hint: "doc/rideau.yaml has every setting, explained.",
	}
	if near := nearest(tok.Value, settingNames(reflect.TypeFor[config]())); near != "" {
		usage.hint = fmt.Sprintf("Did you mean %q?", near)
	}
	return usage
}

// kindOfValue says what a setting wants, in the words of who writes it.
func kindOfValue(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a group of settings"
	}
	return "a text"
}

// settingNames returns the names of all settings in a struct and those below.
func settingNames(t reflect.Type) []string {
	var names []string
	for field := range t.Fields() {
		name, ok := field.Tag.Lookup("yaml")
		if !ok {
			continue
		}
		names = append(names, name)
		if field.Type.Kind() == reflect.Struct {
			names = append(names, settingNames(field.Type)...)
		}
	}
	return names
}

// A configFile remembers where settings stand, to say so when one is wrong.
type configFile struct {
	name          string
	tree          *ast.File
	readableByAll bool
}

// invalid returns a mistake in the setting at path, "relay.keep", with its
// line if it came from a file.
func (cfg *config) invalid(path, hint string, err error) error {
	prefix := path + ": "
	if cfg.file != nil {
		prefix = cfg.file.name + ": " + prefix
		if line := cfg.file.line(path); line > 0 {
			prefix = fmt.Sprintf("%s:%d: %s: ", cfg.file.name, line, path)
		}
	}
	return &usageError{err: fmt.Errorf("%s%w", prefix, err), hint: hint}
}

// line returns the line of the setting at path, or 0.
func (f *configFile) line(path string) int {
	p, err := yaml.PathString("$." + path)
	if err != nil {
		return 0
	}
	node, err := p.FilterFile(f.tree)
	if err != nil || node == nil || node.GetToken() == nil {
		return 0
	}
	return node.GetToken().Position.Line
}
