package main

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgproto3"

	"rideau/relay"
)

// A relay that goes on trying says in its log what report would say.
func TestLogExplains(t *testing.T) {
	address, refused := connectTo(t, &pgproto3.ErrorResponse{Severity: "FATAL", Code: "28P01", Message: "password authentication failed"})
	tests := []struct {
		name         string
		err          error
		text, detail string
		hint         string
	}{
		{"nothing known", errors.New("could not"), "could not", "", ""},
		{"an error of ours", &relay.DivergedError{Server: "db2", TLI: 1, LSN: 0x5000100, ServerTLI: 2, Fork: 0x5000000},
			"forked at 0/5000000", "Nothing was overwritten", "pg_rewind"},
		{"a server's", refused, `could not connect to server "` + address + `"`, "The server said: password authentication failed", "password file"},
		{"with a password in it", errors.New("host=db1 password=s3cret"), "host=db1 password=********", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			log, err := newLog(&out, "json", "info")
			if err != nil {
				t.Fatal(err)
			}
			log.With("server", "db2").Error("could not receive WAL", "err", tt.err)
			var line struct{ Msg, Server, Err, Detail, Hint string }
			if err := json.Unmarshal([]byte(out.String()), &line); err != nil {
				t.Fatalf("%v: %s", err, out.String())
			}
			if line.Msg != "could not receive WAL" || line.Server != "db2" || !strings.Contains(line.Err, tt.text) ||
				!strings.Contains(line.Detail, tt.detail) || !strings.Contains(line.Hint, tt.hint) || (line.Hint == "") != (tt.hint == "") {
				t.Errorf("logged %s", out.String())
			}
			if strings.Contains(out.String(), "s3cret") {
				t.Errorf("a password was logged: %s", out.String())
			}
		})
	}
}

func TestLogSettings(t *testing.T) {
	tests := []struct {
		name, format, level string
		ok                  bool
	}{
		{"the defaults", "", "", true},
		{"all that can be said", "json", "debug", true},
		{"an unknown format", "xml", "info", false},
		{"an unknown level", "text", "loud", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out strings.Builder
			log, err := newLog(&out, tt.format, tt.level)
			if (err == nil) != tt.ok {
				t.Fatalf("newLog(%q, %q): %v", tt.format, tt.level, err)
			}
			if !tt.ok {
				return
			}
			log.Debug("detail")
			if got := out.Len() > 0; got != (tt.level == "debug") {
				t.Errorf("debug is logged: %v", got)
			}
		})
	}
}
