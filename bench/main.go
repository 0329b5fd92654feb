package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// command carries out one command line and returns the exit status.
func command(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	cfg, err := parse(args, stderr)
	switch {
	case err == flag.ErrHelp:
		return 0
	case err != nil:
		return 2 // the reason has been printed
	}
	if err := run(ctx, cfg, stdout, stderr); err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
		return 1
	}
	return 0
}

// parts in the order in which they run: the server whose commits are counted
// has the machine to itself, the others share one.
var parts = []struct {
	name string
	run  func(*bench, context.Context) error
}{
	{"commit", (*bench).commit},
	{"drain", (*bench).drain},
	{"reader", (*bench).reader},
	{"fanout", (*bench).fanout},
	{"memory", (*bench).memory},
	{"latency", (*bench).latency},
	{"backup", (*bench).backup},
	{"backupmany", (*bench).backupMany},
	{"backupfar", (*bench).backupFar},
	{"backupslow", (*bench).backupSlow},
	{"backuprefresh", (*bench).backupRefresh},
	{"backuplist", (*bench).backupList},
}

// A config is what the command line says.
type config struct {
	Parts     []string `json:"parts"`
	Rounds    int      `json:"rounds"`
	Seconds   int      `json:"seconds"`    // of pgbench, and of commits whose latency is taken
	Clients   []int    `json:"clients"`    // of pgbench
	Peers     []string `json:"peers"`      // of commits
	Receivers []int    `json:"receivers"`  // of the fan-out
	Scale     int      `json:"scale"`      // of pgbench
	BacklogMB int      `json:"backlog_mb"` // WAL to drain, read and fan out
	Major     int      `json:"major"`      // of PostgreSQL

	BackupScale int `json:"backup_scale"` // of pgbench, for backups
	Relations   int `json:"relations"`    // of the backup of small ones
	Files       int `json:"files"`        // to be listed

	program string // rideau
	out     string // folder for JSON; none if empty
	profile string // folder for profiles; none if empty
}

func parse(args []string, stderr io.Writer) (config, error) {
	cfg := config{
		Rounds: 5, Seconds: 10, Clients: []int{1, 8, 32}, Receivers: []int{1, 10, 50},
		Scale: 20, BacklogMB: 2048, Major: 15, BackupScale: 140, Relations: 20000, Files: 200000,
	}
	quick := config{
		Rounds: 1, Seconds: 1, Clients: []int{1, 8}, Receivers: []int{10, 50},
		Scale: 4, BacklogMB: 112, Major: 15, BackupScale: 8, Relations: 500, Files: 2000,
	}
	if slices.ContainsFunc(args, func(a string) bool { return strings.TrimLeft(a, "-") == "quick" }) {
		cfg = quick
	}
	var all []string
	for _, p := range parts {
		all = append(all, p.name)
	}

	fs := flag.NewFlagSet("bench", flag.ContinueOnError)
	fs.SetOutput(stderr)
	fs.Bool("quick", false, "small sizes, within two minutes: to see that it works, not how well")
	run := fs.String("run", strings.Join(all, ","), "`parts` to run")
	fs.IntVar(&cfg.Rounds, "rounds", cfg.Rounds, "how often each takes its turn")
	fs.IntVar(&cfg.Seconds, "seconds", cfg.Seconds, "length of a run of pgbench, and of the commits whose latency is taken")
	clients := fs.String("clients", join(cfg.Clients), "numbers of pgbench `clients`")
	peers := fs.String("peers", strings.Join(commitPeers, ","), "`who` else commits are measured with")
	receivers := fs.String("receivers", join(cfg.Receivers), "numbers of `receivers` of the fan-out")
	fs.IntVar(&cfg.Scale, "scale", cfg.Scale, "scale of pgbench")
	fs.IntVar(&cfg.BacklogMB, "backlog", cfg.BacklogMB, "`MB` of WAL to drain, read and fan out")
	fs.IntVar(&cfg.BackupScale, "backupscale", cfg.BackupScale, "scale of pgbench for backups; 140 are 2 GB")
	fs.IntVar(&cfg.Relations, "relations", cfg.Relations, "number of small relations to back up")
	fs.IntVar(&cfg.Files, "files", cfg.Files, "number of small files to list")
	fs.IntVar(&cfg.Major, "major", cfg.Major, "version of PostgreSQL, 15 or later")
	fs.StringVar(&cfg.program, "rideau", "./rideau", "the `program` that is measured; make build makes it")
	fs.StringVar(&cfg.out, "out", "bench/out", "`folder` for the results as JSON; empty for none")
	fs.StringVar(&cfg.profile, "profile", "", "drain, fan out and back up once more in this process, not counted, and leave CPU profiles in this `folder`")
	fs.Usage = func() {
		fmt.Fprintf(stderr, "Usage: go run ./bench [options]\n\nMeasures rideau beside PostgreSQL's own tools and servers.\n\nOptions:\n")
		fs.PrintDefaults()
	}
	if err := fs.Parse(args); err != nil {
		return cfg, err
	}
	err := func() (err error) {
		if fs.NArg() > 0 {
			return fmt.Errorf("too many arguments (first is %q)", fs.Arg(0))
		}
		for name := range strings.SplitSeq(*run, ",") {
			if !slices.Contains(all, name) {
				return fmt.Errorf("no part is called %q; there are %s", name, strings.Join(all, ", "))
			}
			cfg.Parts = append(cfg.Parts, name)
		}
		if cfg.Clients, err = split(*clients); err != nil {
			return fmt.Errorf("clients: %w", err)
		}
		for name := range strings.SplitSeq(*peers, ",") {
			if !slices.Contains(commitPeers, name) {
				return fmt.Errorf("no peer of commits is called %q; there are %s", name, strings.Join(commitPeers, ", "))
			}
			cfg.Peers = append(cfg.Peers, name)
		}
		if cfg.Receivers, err = split(*receivers); err != nil {
			return fmt.Errorf("receivers: %w", err)
		}
		for _, n := range []int{cfg.Rounds, cfg.Seconds, cfg.Scale, cfg.BacklogMB, cfg.BackupScale, cfg.Relations, cfg.Files} {
			if n < 1 {
				return fmt.Errorf("rounds, seconds, scales, backlog, relations and files must be at least 1, not %d", n)
			}
		}
		if cfg.Major < 15 {
			// READ_REPLICATION_SLOT, by which relay and pg_receivewal alike
			// begin where their slot does.
			return fmt.Errorf("version %d of PostgreSQL cannot say what a slot holds", cfg.Major)
		}
		return nil
	}()
	if err != nil {
		fmt.Fprintf(stderr, "bench: %v\n", err)
	}
	return cfg, err
}

func split(list string) ([]int, error) {
	var all []int
	for text := range strings.SplitSeq(list, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 {
			return nil, fmt.Errorf("%q is not a number from 1 on", text)
		}
		all = append(all, n)
	}
	return all, nil
}

func join(all []int) string {
	var text []string
	for _, n := range all {
		text = append(text, strconv.Itoa(n))
	}
	return strings.Join(text, ",")
}
