package main

import (
	"errors"
	"fmt"
	"maps"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgproto3"

	"rideau/basebackup"
	"rideau/basebackup/manifest"
	"rideau/basebackup/walsave"
	"rideau/pgrepl"
)

func TestParseRate(t *testing.T) {
	tests := []struct {
		text string
		want int64
		err  string
	}{
		{"", 0, ""},
		{"10MB", 10 << 20, ""},
		{"32kB", 32 << 10, ""},
		{"31kB", 0, "less than 32kB"},
		{"7d", 0, "not a size"},
		{"all", 0, "not a size"},
		{"10", 0, "such as 10MB"},
		{"x", 0, "such as 10MB"},
	}
	for _, tt := range tests {
		got, err := parseRate(tt.text)
		if got != tt.want || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
			t.Errorf("parseRate(%q) = %d, %v; want %d, %q", tt.text, got, err, tt.want, tt.err)
		}
	}
}

func TestParseMappings(t *testing.T) {
	got, err := parseMappings([]string{"/srv/a=/new/a", `/srv/b\=1/=/new/b\=2`, "/srv/c=/ts/"})
	want := map[string]string{"/srv/a": "/new/a", "/srv/b=1": "/new/b=2", "/srv/c": "/ts"}
	if err != nil || !maps.Equal(got, want) {
		t.Errorf("got %q, %v; want %q", got, err, want)
	}
	for text, reason := range map[string]string{
		"/srv/a":            "not OLD=NEW",
		"=/new":             "not OLD=NEW",
		"/srv/a=":           "not OLD=NEW",
		"/srv/a=/b=/c":      "not OLD=NEW",
		"srv/a=/new":        "not an absolute path",
		"/srv/a=new":        `"new" is not an absolute path`,
		"/srv/x=/1,/srv/x/": "mapped twice",
	} {
		list := []string{text}
		if a, b, ok := strings.Cut(text, ","); ok {
			list = []string{a, b + "=/2"}
		}
		if _, err := parseMappings(list); err == nil || !strings.Contains(err.Error(), reason) {
			t.Errorf("%q: %v, want %q", list, err, reason)
		}
	}
}

func TestFormatSize(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0 bytes", 999: "999 bytes", 1000: "0.98 kB", 8192: "8.00 kB", 16 << 20: "16.0 MB", 999 << 20: "999 MB", 1000 << 20: "0.98 GB", 3 << 40: "3.00 TB",
	} {
		if got := formatSize(n); got != want {
			t.Errorf("formatSize(%d) = %q, want %q", n, got, want)
		}
	}
}

// What a log or a cron mail has of a backup: a line a phase, one a minute while
// it copies, and none twice.
func TestProgressLines(t *testing.T) {
	var out strings.Builder
	p := newProgress(&out, true)
	const gigabyte = 1 << 30
	for _, now := range []basebackup.Progress{
		{Phase: basebackup.Connecting},
		{Phase: basebackup.Checkpoint, Elapsed: time.Second},
		{Phase: basebackup.Checkpoint, Elapsed: 30 * time.Second},
		{Phase: basebackup.Checkpoint, Elapsed: 61 * time.Second},
		{Phase: basebackup.Copying, Elapsed: 62 * time.Second}, // how much is not known yet
		{Phase: basebackup.Copying, Elapsed: 63 * time.Second, TotalFiles: 20, TotalBytes: 100 * gigabyte},
		{Phase: basebackup.Copying, Elapsed: 120 * time.Second, TotalFiles: 20, TotalBytes: 100 * gigabyte, Bytes: 10 * gigabyte},
		{Phase: basebackup.Copying, Elapsed: 123 * time.Second, TotalFiles: 20, TotalBytes: 100 * gigabyte, Bytes: 30 * gigabyte, CorruptPages: 1, WALBytes: 32 << 20},
		{Phase: basebackup.WaitingWAL, Elapsed: 130 * time.Second, Waiting: "segment 00000001000000000000000A in the archive"},
		{Phase: basebackup.WaitingWAL, Elapsed: 191 * time.Second, Waiting: "segment 00000001000000000000000A in the archive"},
		{Phase: basebackup.Done, Elapsed: 200 * time.Second},
	} {
		p.backup(now)
	}
	p.stop()
	want := `connecting
waiting for checkpoint
waiting for checkpoint: for 1m1s
copying 100 GB in 20 files
copying: 30.0 of 100 GB
waiting for WAL
waiting for WAL: segment 00000001000000000000000A in the archive
`
	got := out.String()
	// Of the minute's line only what is certain: the rest is the next test's.
	for _, part := range []string{"30.0 GB of 100 GB (30%), ", " left, WAL 32.0 MB, 1 page damaged\n"} {
		if !strings.Contains(got, part) {
			t.Errorf("%q is not in\n%s", part, got)
		}
	}
	lines := strings.Split(got, "\n")
	for i, line := range strings.Split(want, "\n") {
		if i >= len(lines) || !strings.HasPrefix(lines[i], strings.TrimSuffix(line, " 30.0 of 100 GB")) {
			t.Errorf("got\n%swant\n%s", got, want)
			break
		}
	}
}

func TestProgressNone(t *testing.T) {
	var out strings.Builder
	p := newProgress(&out, false)
	p.backup(basebackup.Progress{Phase: basebackup.Connecting})
	p.stop()
	if out.Len() > 0 {
		t.Errorf("shown: %q", out.String())
	}
	fmt.Fprint(p.writer(), "logged")
	if out.String() != "logged" {
		t.Error("the log is lost")
	}
}

// The speed is that of the last seconds, not of all the time.
func TestPace(t *testing.T) {
	var s pace
	if s.perSecond() != 0 {
		t.Error("a speed before anything was done")
	}
	for i := range 100 {
		s.add(time.Duration(i)*time.Second, int64(i)*1000)
	}
	for i := range 30 {
		s.add(time.Duration(100+i)*time.Second, 99000+int64(i)*10)
	}
	if got := s.perSecond(); got < 9 || got > 11 {
		t.Errorf("%f a second, want 10", got)
	}
	if len(s.marks) > 20 {
		t.Errorf("%d marks are kept", len(s.marks))
	}
	got := progressText(basebackup.Progress{Phase: basebackup.Copying, Bytes: 1 << 20, TotalBytes: 4 << 20}, 1<<20)
	if got != "1.00 MB of 4.00 MB (25%), 1.00 MB/s, 3s left" {
		t.Error(got)
	}
}

func TestDescribeBackup(t *testing.T) {
	r := &basebackup.Report{
		Dir: "/srv/my backup", Server: "db1:5432", Version: "17.6", Method: "page LSN", Reason: "it was a backup",
		StartLSN: 0x2000028, StartTLI: 1, StopLSN: 0x30001A0, StopTLI: 2, Files: 1234, Bytes: 4 << 30, Received: 1 << 20, Written: 2 << 20,
		Compress: "pgcrypto", Compressed: 3 << 30,
		Removed: 3, WALFiles: 2, Elapsed: 40 * time.Second, Warnings: []string{"something"},
		Corrupt: []basebackup.CorruptPage{{Path: "base/5/16384", Block: 7, Detail: "checksum"}}, CorruptAll: 12,
	}
	want := `server    db1:5432, PostgreSQL 17.6, a primary
copied    1234 files, 4.00 GB, in 40s: 102 MB/s
received  1.00 MB, 2.00 MB written
method    page LSN: it was a backup
compress  pgcrypto, for 75% of it
removed   3 files that the server does not have
wal       0/2000028 to 0/30001A0 on timelines 1 to 2, 2 segments
warning   something
corrupt   base/5/16384 block 7: checksum
corrupt   and 11 pages more
Complete, with damaged pages. Start it with: pg_ctl -D '/srv/my backup' start
`
	if got := describeBackup(r, basebackup.Config{WAL: "sql"}); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	r.CorruptAll = 0
	if got := nextStep(r, basebackup.Config{WAL: "none"}); !strings.Contains(got, "restore_command") {
		t.Errorf("without WAL: %s", got)
	}
	if got := nextStep(r, basebackup.Config{Standby: true}); !strings.Contains(got, "Start the standby") {
		t.Errorf("a standby: %s", got)
	}
}

// Every error of a base backup that somebody can do something about says what.
func TestExplainBackup(t *testing.T) {
	tests := []struct {
		name                  string
		err                   error
		message, detail, hint string
	}{
		{"no grants", &basebackup.PrivilegeError{Server: "db1:5432", Role: `o"dd`, Functions: []string{"pg_ls_dir(text,boolean,boolean)"}},
			"may not execute pg_ls_dir", "", `GRANT EXECUTE ON FUNCTION pg_ls_dir(text,boolean,boolean) TO "o""dd";`},
		{"a pooler", &basebackup.PoolerError{Server: "db1:6432"}, "pooler", "", "the server itself"},
		{"the session was lost", &basebackup.ControlError{Server: "db1:5432", Err: errors.New("broken pipe")}, "lost the session", "", "goes on from there"},
		{"promoted", &basebackup.PromotedError{Server: "db1:5432"}, "promoted", "", "new primary"},
		{"wal_level", &basebackup.SettingError{Server: "db1", Name: "wal_level", Value: "minimal", Need: "replica"}, "wal_level", "", "ALTER SYSTEM SET wal_level"},
		{"full_page_writes", &basebackup.SettingError{Server: "db1", Name: "full_page_writes", Value: "off", Need: "it"}, "full_page_writes", "", "CHECKPOINT"},
		{"too old", &basebackup.SettingError{Server: "db1", Name: "server_version", Value: "12", Need: "13"}, "server_version", "", "13 to 18"},
		{"a tablespace", &basebackup.TablespaceError{OID: 1, Location: "/srv/fast", Local: "/srv/fast", Reason: "it is not empty"}, "/srv/fast", "", "--tablespace-mapping /srv/fast=NEW"},
		{"no such tablespace", &basebackup.MappingError{Location: "/srv/x"}, "no tablespace", "", "rideau doctor"},
		{"damaged pages", &basebackup.CorruptError{Server: "db1", Pages: 2}, "2 pages are damaged", "each time they were read", "older backups"},
		{"a server runs there", &basebackup.RunningError{Dir: "main", PID: 42}, "process 42", "", "pg_ctl -D main stop"},
		{"something else is there", &basebackup.ForeignError{Dir: "home", Names: []string{"thesis.tex"}}, "thesis.tex", "", "Nothing was touched"},
		{"the server's own directory", &basebackup.LiveError{Server: "db1", Dir: "main"}, "own", "", "another directory"},
		{"another system", &basebackup.MismatchError{What: "system identifier", Local: 1, Server: 2}, "system identifier 1", "Nothing was touched", "empty directory"},
		{"WAL is gone", &walsave.RecycledError{Segment: "000000010000000000000002", LSN: 0x2000000, Server: "db1"}, "000000010000000000000002", "", "wal_keep_size"},
		{"a damaged manifest", &manifest.ParseError{Line: 3, Reason: "x"}, "3", "", "refreshed"},
		{"a file that cannot be read", &basebackup.FileError{Server: "db1", Path: "base/5/1", Err: errors.New("x")}, `could not copy "base/5/1"`, "", "goes on from there"},
		{"told to stop", &unfinishedError{dir: "main", err: errors.New("context canceled"), stopped: true}, "interrupted", "", `kept in "main"`},
		{"anything else in the middle", &unfinishedError{dir: "main", err: errors.New("strange")}, "strange", "", `kept in "main"`},
		{"something with a hint of its own in the middle", &unfinishedError{dir: "main", err: &basebackup.PoolerError{Server: "x"}}, "pooler", "", "the server itself"},
		{"and it says what is kept", &unfinishedError{dir: "main", err: &basebackup.PoolerError{Server: "x"}}, "pooler", "", `What was copied is kept in "main": the same command goes on from there.`},
		{"its disk is full, which is not about relays", &unfinishedError{dir: "main", err: fmt.Errorf("could not write: %w", syscall.ENOSPC)}, "no space left", "", `Make room. What was copied is kept in "main": the same command goes on from there.`},
		{"the server's disk is", &unfinishedError{dir: "main", err: &pgconn.PgError{Code: "53100", Message: "could not extend file"}}, "", "could not extend file", "Make room on the server's disk"},
		{"the server shut down in the middle", &unfinishedError{dir: "main", err: &pgconn.PgError{Severity: "FATAL", Code: "57P01", Message: "terminating connection"}}, "", "terminating", `kept in "main"`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := explain(fmt.Errorf("outer: %w", tt.err))
			if !strings.Contains(got.message, tt.message) || !strings.Contains(got.detail, tt.detail) || !strings.Contains(got.hint, tt.hint) {
				t.Errorf("got %+v", got)
			}
			for _, sentence := range []string{got.detail, got.hint} {
				if sentence != "" && !strings.HasSuffix(sentence, ".") {
					t.Errorf("%q is not a sentence", sentence)
				}
			}
		})
	}
}

// A backup's connections are ordinary ones: what the server's administrator is
// to do is not what a relay needs.
func TestExplainBackupConnect(t *testing.T) {
	tests := []struct{ message, hint string }{
		{`no pg_hba.conf entry for host "10.0.0.7", user "replicator", database "replicator", no encryption`,
			"hostssl replicator replicator 10.0.0.7/32 scram-sha-256"},
		{`role "replicator" does not exist`, "CREATE ROLE replicator LOGIN PASSWORD"},
	}
	for _, tt := range tests {
		_, cause := connectTo(t, &pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: "28000", Message: tt.message})
		got := explain(&basebackup.ConnectError{ConnectError: pgrepl.ConnectError{Server: "db1:5432", Err: cause}})
		if !strings.Contains(got.hint, tt.hint) || strings.Contains(got.hint, "REPLICATION") {
			t.Errorf("%s: hint %q, want %q", tt.message, got.hint, tt.hint)
		}
		if !strings.Contains(got.message, "could not connect to server") || !strings.Contains(got.detail, "The server said") {
			t.Errorf("got %+v", got)
		}
	}
}
