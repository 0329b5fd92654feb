package pgrepl

import (
	"strings"
	"testing"
)

func TestTargets(t *testing.T) {
	tests := []struct {
		name, conninfo string
		want           string // the servers, or the error
	}{
		{"one server", "host=db1 port=5433 user=u", "db1:5433"},
		{"several, with a port each", "host=db1,db2 port=5433,5434 user=u", "db1:5433 db2:5434"},
		{"a URI", "postgresql://u@db1:5433,db2:5434/?sslmode=disable", "db1:5433 db2:5434"},
		{"TLS and plain are two tries of one server", "host=db1,db2 port=5433 user=u sslmode=prefer", "db1:5433 db2:5433"},
		{"a socket", "host=/run/pg user=u port=5433", "/run/pg/.s.PGSQL.5433"},
		{"what pg_basebackup -R writes", "host=db1 port=5433 user=u gssencmode=prefer krbsrvname=postgres gssdelegation=0 load_balance_hosts=disable sslcompression=0 ssl_min_protocol_version=TLSv1.2", "db1:5433"},
		{"less safe without", "host=db1 user=u requirepeer=postgres", `connection option "requirepeer" is not supported with this value`},
		{"a newer TLS than we insist on", "host=db1 user=u ssl_min_protocol_version=TLSv1.3", `connection option "ssl_min_protocol_version" is not supported with this value`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			targets, err := Targets(tt.conninfo, "rideau")
			var got []string
			for _, target := range targets {
				got = append(got, target.String())
				for k := range target.config.RuntimeParams {
					if k != "replication" && k != "application_name" {
						t.Errorf("the server would be sent %q as a setting", k)
					}
				}
			}
			if err != nil {
				got = []string{err.Error()}
			}
			if strings.Join(got, " ") != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestTargetsWantsStandby(t *testing.T) {
	for attrs, want := range map[string]bool{
		"any": false, "read-write": false, "primary": false,
		"standby": true, "prefer-standby": true, "read-only": true,
	} {
		targets, err := Targets("host=a,b user=u target_session_attrs="+attrs, "rideau")
		if err != nil {
			t.Fatal(err)
		}
		if got := targets[0].WantsStandby(); got != want {
			t.Errorf("target_session_attrs=%s: WantsStandby is %v, want %v", attrs, got, want)
		}
	}
}

// Whatever is wrong with a connection string, its password is not repeated.
func TestTargetsHidesPassword(t *testing.T) {
	for _, conninfo := range []string{
		"host=db1 password=hunter2 port=nonsense",
		"host=db1 password=hunter2 sslmode=nonsense",
		"postgresql://u:hunter2@db1:nonsense/",
		"host=db1 password=hunter2 nonsense",
	} {
		if _, err := Targets(conninfo, "rideau"); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", conninfo, err)
		}
	}
}
