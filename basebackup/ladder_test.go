package basebackup

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"rideau/basebackup/control"
	"rideau/basebackup/manifest"
	"rideau/basebackup/summary"
	"rideau/wal"
)

var update = flag.Bool("update", false, "rewrite what scenes in testdata expect")

// TestLadder reads scenes from testdata/ladder: what DIR is, what happened
// since, what the server is, a line of dashes, and the choice. If one fails, run
// with -update and read the diff: what travels less than before had better be
// right.
//
//	dir     empty | complete | cluster, as it was before any attempt
//	        range=TLI:START-END (complete), state= redo= min= (cluster), label,
//	        recovering; history=END,END: where each timeline was left
//	attempt start=TLI:LSN, server=, and history= as above
//	server  at=TLI:LSN, where this backup starts; reach=, standby=NAME
//	summary TLI:START-END
//
// LSNs are hexadecimal. What is not said: system 7, PostgreSQL 17, checksums on.
func TestLadder(t *testing.T) {
	files, err := filepath.Glob("testdata/ladder/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenes", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scenes := strings.Split(strings.TrimSpace(string(text)), "\n\n")
		for i, scene := range scenes {
			given, want, _ := strings.Cut(scene, "\n----\n")
			got := chosen(t, given)
			if got != want && !*update {
				t.Errorf("%s:\n%s\n---- got\n%s\n---- want\n%s", file, given, got, want)
			}
			scenes[i] = given + "\n----\n" + got
		}
		if *update {
			must(t, os.WriteFile(file, []byte(strings.Join(scenes, "\n\n")+"\n"), 0o644))
		}
	}
}

func chosen(t *testing.T, given string) string {
	t.Helper()
	l := &local{kind: localEmpty}
	var tries []attempt
	s := &ladderServer{systemID: 7, major: 17, catalog: 170, checksums: true}
	for line := range strings.Lines(given) {
		words := strings.Fields(line)
		if strings.HasPrefix(line, "#") {
			continue
		}
		o := options(words[1:])
		switch words[0] {
		case "dir":
			l = sceneLocal(t, words[1], o)
		case "attempt":
			tli, start := point(t, o["start"])
			tries = append(tries, attempt{Start: start, TLI: tli, Server: o["server"], Checksums: o["checksums"] != "off",
				History: sceneHistory(t, tli, o["history"]).Format()})
		case "server":
			tli, start := point(t, o["at"])
			s.start, s.history, s.checksums = start, sceneHistory(t, tli, o["history"]), o["checksums"] != "off"
			s.identity, s.recovery = o["standby"], o["standby"] != ""
			s.reach = start + 0x20
			if o["reach"] != "" {
				s.reach = hexOf(t, o["reach"])
			}
			s.systemID, s.major, s.catalog = number0(t, o["system"], 7), int(number0(t, o["version"], 17)), uint32(number0(t, o["catalog"], 170))
		case "summary":
			r := span(t, words[1])
			s.summaries = append(s.summaries, summary.Name(r))
		default:
			t.Fatalf("unknown line %q", line)
		}
	}
	init, why := l.standing()
	p, err := choose(init, why, tries, s)
	var mismatch *MismatchError
	if errors.As(err, &mismatch) {
		return "refused: " + mismatch.Error()
	}
	must(t, err)
	var b strings.Builder
	fmt.Fprintf(&b, "base: %s\n", p.base)
	if len(tries) > 0 {
		fmt.Fprintf(&b, "journal: %s\n", p.journal)
	}
	for _, n := range p.summaries {
		fmt.Fprintf(&b, "reads: %s:%X-%X\n", n.TLI, uint64(n.Start), uint64(n.End))
	}
	fmt.Fprintf(&b, "because %s", p.reason)
	return b.String()
}

func sceneLocal(t *testing.T, kind string, o map[string]string) *local {
	t.Helper()
	l := &local{kind: localKind(kind)}
	if l.kind == localEmpty {
		return l
	}
	l.major = int(number0(t, o["version"], 17))
	l.control = &control.Control{SystemID: number0(t, o["system"], 7), CatalogVersion: uint32(number0(t, o["catalog"], 170)), ChecksumVersion: 1}
	if o["checksums"] == "off" {
		l.control.ChecksumVersion = 0
	}
	_, l.label = o["label"]
	last := wal.TLI(1)
	if l.kind == localComplete {
		l.manifest = &manifest.Manifest{}
		for _, r := range strings.Split(o["range"], ",") {
			l.manifest.WAL = append(l.manifest.WAL, manifest.Range(span(t, r)))
			last = max(last, span(t, r).TLI)
		}
	} else {
		c := l.control
		for c.State = control.Startup; c.State.String() != strings.ReplaceAll(o["state"], "_", " "); c.State++ {
			if c.State > control.InProduction {
				t.Fatalf("unknown state %q", o["state"])
			}
		}
		c.TLI, c.Redo = point(t, o["redo"])
		if o["min"] != "" {
			c.MinRecoveryTLI, c.MinRecovery = point(t, o["min"])
		}
		_, c.BackupEndRequired = o["recovering"]
		last = max(c.TLI, c.MinRecoveryTLI)
	}
	l.histories = map[wal.TLI]*wal.History{}
	if o["history"] != "" {
		l.histories[last] = sceneHistory(t, last, o["history"])
	}
	return l
}

func options(words []string) map[string]string {
	o := map[string]string{}
	for _, w := range words {
		k, v, _ := strings.Cut(w, "=")
		o[k] = v
	}
	return o
}

// sceneHistory is a history in which timelines 1, 2, ... were left where text says.
func sceneHistory(t *testing.T, tli wal.TLI, text string) *wal.History {
	t.Helper()
	h := &wal.History{TLI: tli}
	if text != "" {
		for i, s := range strings.Split(text, ",") {
			h.Entries = append(h.Entries, wal.Entry{TLI: wal.TLI(i + 1), End: hexOf(t, s)})
		}
	}
	if len(h.Entries) != int(tli)-1 {
		t.Fatalf("timeline %s with history %q", tli, text)
	}
	return h
}

// A stretch has the fields of a manifest's range and of a summary's name.
type stretch struct {
	TLI        wal.TLI
	Start, End wal.LSN
}

func span(t *testing.T, s string) stretch {
	t.Helper()
	from, to, _ := strings.Cut(s, "-")
	tli, start := point(t, from)
	return stretch{tli, start, hexOf(t, to)}
}

func point(t *testing.T, s string) (wal.TLI, wal.LSN) {
	t.Helper()
	tli, lsn, _ := strings.Cut(s, ":")
	n, err := strconv.Atoi(tli)
	if err != nil {
		t.Fatalf("want TLI:LSN, got %q", s)
	}
	return wal.TLI(n), hexOf(t, lsn)
}

func hexOf(t *testing.T, s string) wal.LSN {
	t.Helper()
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return wal.LSN(n)
}

func number0(t *testing.T, s string, otherwise uint64) uint64 {
	t.Helper()
	if s == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(s, 10, 64)
	must(t, err)
	return n
}

// What a first attempt could not rely on, no later one may.
func TestOnward(t *testing.T) {
	b := base{Kind: localComplete, Since: 5, SinceTLI: 1}
	if got := (choice{base: rung{kind: newerPages, since: 5}}).onward(b); got != b {
		t.Errorf("page LSN: the base became %+v", got)
	}
	if got := (choice{base: rung{kind: different}}).onward(b); got.Since != 0 {
		t.Errorf("content: the base is still known since %s", got.Since)
	}
}
