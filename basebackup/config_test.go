package basebackup

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
)

// What is wrong with a Config is said before anything is touched.
func TestConfigError(t *testing.T) {
	tests := []struct {
		why    string
		change func(*Config)
		want   string
	}{
		{"a long label", func(c *Config) { c.Label = strings.Repeat("l", 1024) }, "longer than 1023 bytes"},
		{"a label of two lines", func(c *Config) { c.Label = "a\nb" }, "more than one line"},
		{"a compression that nobody knows", func(c *Config) { c.Compress = "zstd" }, `unknown compression "zstd": none, auto`},
		{"a relative place for a tablespace", func(c *Config) { c.Tablespaces = map[string]string{"/srv/a": "b"} }, "absolute paths"},
		{"too slow", func(c *Config) { c.MaxRate = 1 }, "below 32 kB"},
		{"too many connections", func(c *Config) { c.Jobs = 257 }, "1 to 256"},
		{"a relay for no standby", func(c *Config) { c.Relay = "host=relay1" }, "no standby was asked for"},
	}
	for _, test := range tests {
		t.Run(test.why, func(t *testing.T) {
			c := Config{Conninfo: "host=nobody", Dir: filepath.Join(t.TempDir(), "backup")}
			test.change(&c)
			_, err := Take(t.Context(), c)
			if !errors.As(err, new(*ConfigError)) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("%v, want %q", err, test.want)
			}
		})
	}
}

// A slip in a connection string is none of the server's settings.
func TestUnknownKeyword(t *testing.T) {
	for _, conninfo := range []string{"hots=db1", "host=db1 search_path=x", "postgresql://db1/postgres?work_mem=1"} {
		if _, err := newDialer(conninfo); err == nil || !strings.Contains(err.Error(), "invalid connection option") {
			t.Errorf("%s: %v", conninfo, err)
		}
	}
	for _, conninfo := range []string{"host=db1 keepalives=1 gssencmode=prefer replication=true options='-c work_mem=1MB' client_encoding=UTF8",
		"host=db1 channel_binding=prefer sslmode=require application_name=a target_session_attrs=any"} {
		if _, err := newDialer(conninfo); err != nil {
			t.Errorf("%s: %v", conninfo, err)
		}
	}
}
