package basebackup

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"rideau/internal/pgtest"
)

var updateDoctor = flag.Bool("update-doctor", false, "write what the doctor says into its scenes")

// healthy is a server that nothing is wrong with. The scenes say what differs.
func healthy() *Examination {
	return &Examination{
		Server: "db1:5432", Version: "17.6", Major: 17, TLI: 1, Role: "bk", Database: "postgres", Replication: true,
		ConnectionLimit: -1, TLS: "TLS 1.3", FullPageWrites: true, Outside: []string{},
		Settings: map[string]string{
			"wal_level": "replica", "full_page_writes": "on", "wal_keep_size": "2GB", "summarize_wal": "on",
			"data_checksums": "on", "max_wal_senders": "10", "block_size": "8192",
		},
	}
}

// prescription is what a finding looks like to a person.
func prescription(list []Finding) string {
	var b strings.Builder
	for _, f := range list {
		fmt.Fprintf(&b, "%-5s%s\n", f.Verdict, f.What)
		for _, line := range f.Fix {
			fmt.Fprintf(&b, "     %s\n", line)
		}
	}
	return b.String()
}

// TestDoctorScenes reads scenes: what differs from a healthy server, a line of
// dashes, and what the doctor says that it does not say of the healthy one, whose
// scene is the first.
func TestDoctorScenes(t *testing.T) {
	usual := healthy().judge()
	files, err := filepath.Glob("testdata/doctor/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scenes: %v", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scenes := strings.Split(strings.TrimSpace(string(text)), "\n\n")
		for i, scene := range scenes {
			story, want, _ := strings.Cut(scene+"\n", "\n----\n")
			var differs strings.Builder
			for line := range strings.Lines(story) {
				if !strings.HasPrefix(line, "#") {
					differs.WriteString(line)
				}
			}
			x := healthy()
			d := json.NewDecoder(strings.NewReader(differs.String()))
			d.DisallowUnknownFields()
			if err := d.Decode(x); err != nil {
				t.Fatalf("%s: %v:\n%s", file, err, story)
			}
			x.Findings = x.judge()
			said := usual
			if strings.TrimSpace(differs.String()) == "{}" {
				said = nil
			}
			got := prescription(slices.DeleteFunc(x.Findings, func(f Finding) bool {
				return slices.ContainsFunc(said, func(u Finding) bool { return u.What == f.What })
			}))
			if got != want && !*updateDoctor {
				t.Errorf("%s:\n%s\n---- got\n%s---- want\n%s", file, story, got, want)
			}
			scenes[i] = story + "\n----\n" + strings.TrimSuffix(got, "\n")
		}
		if *updateDoctor {
			if err := os.WriteFile(file, []byte(strings.Join(scenes, "\n\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func verdicts(x *Examination, v Verdict) (list []Finding) {
	for _, f := range x.Findings {
		if f.Verdict == v {
			list = append(list, f)
		}
	}
	return list
}

// A role that may log in and nothing else is told what it lacks. Who runs
// exactly what the doctor printed has a role that lacks nothing.
func TestDoctorOnRealServers(t *testing.T) {
	for _, major := range pgtest.Ends {
		t.Run(fmt.Sprint(major), func(t *testing.T) {
			t.Parallel()
			server := pgtest.Start(t, pgtest.Options{Major: major})
			server.Exec(`CREATE ROLE "bk ""2" LOGIN`)
			conninfo := server.Conninfo(`user='bk "2'`)

			x, err := Examine(t.Context(), conninfo)
			if err != nil {
				t.Fatal(err)
			}
			no := verdicts(x, No)
			if x.Possible() || len(no) != 1 || len(x.Missing) != 5 {
				t.Fatalf("a role without rights: possible %t, missing %q:\n%s", x.Possible(), x.Missing, prescription(x.Findings))
			}
			if x.Major != major || x.Standby || x.TLI != 1 || x.Pooler || !x.Local || x.TLS != "" || x.Superuser || x.Replication {
				t.Errorf("facts %+v", x)
			}
			if x.Outside != nil {
				t.Errorf("a role that may not look knows that %q are not there", x.Outside)
			}
			statements := 0
			for _, line := range no[0].Fix {
				if strings.HasSuffix(line, ";") {
					server.Exec(line)
					statements++
				}
			}
			if statements != 5 {
				t.Errorf("%d statements were printed, want 5", statements)
			}

			x, err = Examine(t.Context(), conninfo)
			if err != nil {
				t.Fatal(err)
			}
			if !x.Possible() || len(x.Missing) != 0 {
				t.Errorf("with the grants, still:\n%s", prescription(x.Findings))
			}
			if x.Outside == nil || len(x.Outside) != 0 {
				t.Errorf("files outside: %q, want none", x.Outside)
			}
			if _, there := x.Settings["summarize_wal"]; there != (major >= 17) {
				t.Errorf("summarize_wal is there: %t", there)
			}
			if sys := server.QueryValue("SELECT system_identifier FROM pg_control_system()"); sys != fmt.Sprint(x.SystemID) {
				t.Errorf("system identifier %d, the server says %s", x.SystemID, sys)
			}
		})
	}
}

// What a server's administrator did shows.
func TestDoctorSees(t *testing.T) {
	t.Parallel()
	server := pgtest.Start(t, pgtest.Options{Major: 17, Settings: map[string]string{
		"wal_level": "minimal", "max_wal_senders": "0", "summarize_wal": "off", "wal_keep_size": "0",
	}})
	location := pgtest.Dir(t)
	server.Exec("CREATE TABLESPACE fast LOCATION '" + location + "'")
	x, err := Examine(t.Context(), server.Conninfo("user=postgres"))
	if err != nil {
		t.Fatal(err)
	}
	got := prescription(x.Findings)
	for _, want := range []string{"no   wal_level is minimal", "note role \"postgres\" is a superuser", "note wal_keep_size is 0",
		"note summarize_wal is off", "note max_wal_senders is 0", `note tablespace "fast" is at "` + location} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is not in\n%s", want, got)
		}
	}
	if x.Possible() {
		t.Error("a backup with wal_level minimal is called possible")
	}
}

// A standby is told from a primary, and asked about the primary's full pages.
func TestDoctorOnStandby(t *testing.T) {
	t.Parallel()
	primary := pgtest.Start(t, pgtest.Options{Major: 15})
	standby := primary.Standby(pgtest.Options{Name: "s1"}, primary.Conninfo("user=postgres"))
	standby.Start()
	primary.Exec("CREATE ROLE bk LOGIN")
	standby.WaitLSN(primary.LSN())
	x, err := Examine(t.Context(), standby.Conninfo("user=bk"))
	if err != nil {
		t.Fatal(err)
	}
	if !x.Standby || !x.FullPageWrites {
		t.Errorf("standby %t, full pages %t, want both", x.Standby, x.FullPageWrites)
	}
	if no := verdicts(x, No); len(no) != 1 || !strings.Contains(no[0].Fix[0], "on the primary") {
		t.Errorf("where to run the grants is not said: %v", no)
	}
}
