package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"rideau/internal/pgserver"
)

// Every part runs, at the smallest of sizes. What the numbers are is no matter
// here; that they are there is.
func TestAllParts(t *testing.T) {
	program := filepath.Join(t.TempDir(), "rideau")
	// As we were built: all that it is made of is there already.
	args := []string{"build", "-o", program, "rideau/cmd/rideau"}
	if info, ok := debug.ReadBuildInfo(); ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		args = slices.Insert(args, 1, "-race")
	}
	if out, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	out := t.TempDir()
	thirds := []string{ // at once: nobody counts
		"commit,latency", "drain,reader,fanout,memory", "backup,backupmany,backupfar,backupslow,backuprefresh,backuplist",
	}
	var said [3]bytes.Buffer
	var group sync.WaitGroup
	for i, third := range thirds {
		group.Go(func() {
			status := command(t.Context(), []string{
				"-rideau", program, "-out", filepath.Join(out, third), "-profile", out, "-run", third, "-rounds", "1",
				"-seconds", "1", "-clients", "2", "-receivers", "10", "-scale", "1", "-backlog", "16",
				"-backupscale", "1", "-relations", "20", "-files", "1500",
			}, &said[i], &said[i])
			if status != 0 {
				t.Errorf("%s: exit status %d", third, status)
			}
		})
	}
	group.Wait()
	stdout := said[0].String() + said[1].String() + said[2].String()
	if t.Failed() {
		t.Fatal(stdout)
	}

	var r results
	for _, third := range thirds {
		files, err := filepath.Glob(filepath.Join(out, third, "*.json"))
		if err != nil || len(files) != 1 {
			t.Fatalf("results are in %q, %v; want one file", files, err)
		}
		text, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		var one results
		if err := json.Unmarshal(text, &one); err != nil {
			t.Fatal(err)
		}
		r.Series = append(r.Series, one.Series...)
		r.Comparisons = append(r.Comparisons, one.Comparisons...)
	}
	if pgserver.MemoryDir(disklessRoom) != "" && r.find("commit, 2 clients", diskless) == nil {
		t.Error("nobody was diskless")
	}
	for _, want := range []struct{ figure, who string }{
		{"commit, 2 clients", "relay"}, {"commit, 2 clients", "pg_receivewal"}, {"commit, 2 clients", "standby"}, {"commit, 2 clients", "none"},
		{"drain", "discard"}, {"drain", "relay"}, {"drain", "pg_receivewal"}, {"drain", "pg_receivewal --synchronous"},
		{"drain, CPU a GB", "relay"}, {"drain, CPU a GB", "pg_receivewal"},
		{"reader", "rideau wal dump"}, {"reader", "pg_waldump"},
		{"fanout, old WAL to 10", "relay"}, {"fanout, old WAL to 10", "direct"},
		{"fanout, live WAL to 10", "relay"}, {"fanout, live WAL to 10", "direct"},
		{"fanout, live WAL to 10, CPU a GB", "relay"}, {"fanout, live WAL to 10, CPU a GB", "direct"},
		{"fanout, live WAL to 10, primary pays", "relay"}, {"fanout, live WAL to 10, primary pays", "direct"},
		{"memory, 50 receivers", "relay"},
		{"latency added, p50", "relay"}, {"latency added, p99", "standby"},
		{"backup", "rideau"}, {"backup", "rideau -j 2"}, {"backup", "pg_basebackup"}, {"backup", "cp -r"},
		{"backup, CPU a GB", "rideau"}, {"backup, server's CPU a GB", "pg_basebackup"}, {"backup, memory", "rideau"},
		{"backup of small relations", "rideau"}, {"backup of small relations, memory", "rideau"},
		{"backup, 5 ms", "rideau"}, {"backup, 50 MB/s a connection", "pg_basebackup"},
		{"backup, 20 MB/s in all", "--compress=auto"}, {"backup, 20 MB/s in all, received", "--compress=none"},
		{"backup, 1 % changed, time", "refresh"}, {"backup, 1 % changed, received", "full"},
		{"backup, listing", "rideau"}, {"backup, listing, memory", "rideau"},
	} {
		switch s := r.find(want.figure, want.who); {
		case s == nil:
			t.Errorf("there is no %s of %s", want.figure, want.who)
		case len(s.Values) != 1:
			t.Errorf("%s of %s has %d values for one round", s.Figure, s.Who, len(s.Values))
		case !(s.Median > 0):
			t.Errorf("%s of %s is %v %s", s.Figure, s.Who, s.Median, s.Unit)
		}
	}
	for _, c := range r.Comparisons {
		if c.Peer != "" && len(c.Ratios) != 1 {
			t.Errorf("%s: %s beside %s has no ratio", c.Figure, c.Ours, c.Peer)
		}
		if !strings.Contains(stdout, c.Figure) {
			t.Errorf("%s was not printed", c.Figure)
		}
	}
	for _, name := range []string{"drain.prof", "fanout.prof", "live.prof", "backup.prof"} {
		if info, err := os.Stat(filepath.Join(out, name)); err != nil || info.Size() == 0 {
			t.Errorf("there is no profile %s: %v", name, err)
		}
	}
	if t.Failed() {
		t.Logf("it said:\n%s", stdout)
	}
}

// Nobody else removes a folder while we use it, and we do when we are done.
func TestFolders(t *testing.T) {
	var b bench
	var dirs [2]string
	for i := range dirs {
		dir, remove, err := b.dir()
		if err != nil {
			t.Fatal(err)
		}
		dirs[i] = dir
		lock, err := os.Open(dir + ".lock")
		if err != nil {
			t.Fatal(err)
		}
		runtime.GC() // it closes files that nobody holds, and with them gives locks back
		if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != syscall.EWOULDBLOCK {
			t.Errorf("the folder in use can be taken: %v", err)
		}
		lock.Close()
		if i == 0 {
			if err := remove(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := b.close(); err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", dir, err)
		}
	}
}

func TestCompare(t *testing.T) {
	var r results
	for i, v := range [][2]float64{{100, 50}, {300, 100}, {50, 50}} { // ratios 2, 3, 1
		r.add("f", "ours", "MB/s", v[0])
		r.add("f", "peer", "MB/s", v[1])
		if n := len(r.find("f", "ours").Values); n != i+1 {
			t.Fatalf("%d values after round %d", n, i+1)
		}
	}
	r.compare("f", "ours", "peer", 2)
	r.compare("f", "ours", "peer", 2.1)
	r.limit("f", "ours", 300)
	r.limit("f", "ours", 301)
	var reached []bool
	for _, c := range r.Comparisons {
		reached = append(reached, *c.GoalReached)
	}
	if want := []bool{true, false, false, true}; !slices.Equal(reached, want) {
		t.Errorf("reached %v, want %v", reached, want)
	}
	// The median of ratios, not the ratio of medians: rounds are what drifts.
	if c := r.Comparisons[0]; c.Ratio != 2 || !slices.Equal(c.Ratios, []float64{2, 3, 1}) {
		t.Errorf("ratio %v of %v", c.Ratio, c.Ratios)
	}
}

func TestMedianAndQuantiles(t *testing.T) {
	for _, tt := range []struct {
		values []float64
		want   float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 2}, 2}} {
		if got := median(tt.values); got != tt.want {
			t.Errorf("median of %v is %v, want %v", tt.values, got, tt.want)
		}
	}
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(i+1))
	}
	for _, tt := range []struct {
		values []time.Duration
		q      float64
		want   time.Duration
	}{{hundred, 0.50, 50}, {hundred, 0.99, 99}, {hundred, 1, 100}, {hundred[:1], 0.99, 1}, {hundred[:3], 0.5, 2}} {
		if got := quantile(tt.values, tt.q); got != tt.want {
			t.Errorf("quantile %v of %d values is %d, want %d", tt.q, len(tt.values), got, tt.want)
		}
	}
}

func TestTotalLine(t *testing.T) {
	for _, tt := range []struct{ who, text, want string }{
		{"rideau", "     4    0.0   120    0.0  120    0.0  XLOG/NEXTOID\n   125993  100.0  42237410  100.0     total\n", "125993"},
		{"pg_waldump", "Heap        12 (  9.52)    2 (  1.0)\n            --------\nTotal      12600       3456 [86.42%]    543 [13.58%]   3999 [100%]\n", "12600"},
	} {
		m := totalLine.FindStringSubmatch(tt.text)
		if m == nil || m[1]+m[2] != tt.want {
			t.Errorf("%s: %q, want %s", tt.who, m, tt.want)
		}
	}
}

func TestCommandLine(t *testing.T) {
	tests := []struct {
		name string
		args string
		ok   bool
	}{
		{"no options", "", true},
		{"quick", "-quick", true},
		{"parts", "-run reader,drain", true},
		{"an unknown part", "-run rider", false},
		{"no clients", "-clients 0", false},
		{"a version that cannot tell where a slot is", "-major 14", false},
		{"an argument", "commit", false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := parse(strings.Fields(tt.args), io.Discard)
			if (err == nil) != tt.ok {
				t.Errorf("%q: %v", tt.args, err)
			}
		})
	}
	cfg, err := parse([]string{"-quick", "-rounds", "3"}, io.Discard)
	if err != nil || cfg.Rounds != 3 || cfg.BacklogMB >= 1000 {
		t.Errorf("quick with an option of its own is %+v, %v", cfg, err)
	}
	if status := command(t.Context(), []string{"-h"}, io.Discard, io.Discard); status != 0 {
		t.Errorf("help exits with %d", status)
	}
	if _, err := parse([]string{"-h"}, io.Discard); err != flag.ErrHelp {
		t.Errorf("help is %v", err)
	}
}
