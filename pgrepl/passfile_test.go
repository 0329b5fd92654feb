package pgrepl

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

// A password file has lines for the database "replication", as libpq's
// walreceiver and pg_receivewal look for them, and lines for each server.
func TestPasswordFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "pgpass")
	lines := "db1:5432:replication:replicator:one\ndb2:5433:replication:replicator:t'wo\\\\\n*:*:other:replicator:no\n"
	if err := os.WriteFile(file, []byte(lines), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PGPASSFILE", file)
	tests := []struct {
		name, conninfo string
		want           []string
	}{
		{"the database of walreceivers", "host=db1 user=replicator", []string{"one"}},
		{"whatever dbname is, as in primary_conninfo", "host=db1 user=replicator dbname=other", []string{"one"}},
		{"each server has its own line", "host=db1,db2,db3 port=5432,5433,5434 user=replicator", []string{"one", `t'wo\`, ""}},
		{"a URI", "postgresql://replicator@db1:5432,db2:5433/other", []string{"one", `t'wo\`}},
		{"a URI with parameters", "postgresql://replicator@db2:5433?sslmode=disable", []string{`t'wo\`}},
		{"a file of the string's own", fmt.Sprintf("host=db1 user=replicator passfile='%s'", file), []string{"one"}},
		{"what is said outright counts more", "host=db1,db2 user=replicator password=three", []string{"three", "three"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			targets, err := Targets(tt.conninfo, "rideau")
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, target := range targets {
				got = append(got, target.config.Password)
			}
			if fmt.Sprintf("%q", got) != fmt.Sprintf("%q", tt.want) {
				t.Errorf("passwords %q, want %q", got, tt.want)
			}
		})
	}
}
