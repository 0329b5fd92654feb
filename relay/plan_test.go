package relay

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"rideau/wal"
)

var update = flag.Bool("update", false, "write what is into testdata, to be read as a diff")

// TestPlan reads scenes from testdata: what there is, a line of dashes, and
// what the relay does. If one fails, run with -update and read the diff: it is
// a change in whose WAL the relay takes, or gives to whom. Lines are
//
//	relay [tli=1 complete=0/3000100 [written=LSN]] [system=1] [segsize=16MB]
//	knows TLI HISTORY                a history file in the relay's directory
//	list standby                     a standby was asked for
//	list N                           so many servers are named, if not those below
//	server NAME [standby] tli= pos= [history=] [system=] [segsize=] [slot=TLI@LSN]
//	ended NAME next= at=             what a server said as it ended the stream
//	asks [tli=] lsn=                 a standby's START_REPLICATION
//
// A HISTORY is 1@0/3000100,2@0/5000000: timeline 1 was left there, and so on.
func TestPlan(t *testing.T) {
	for _, file := range []string{"testdata/start.txt", "testdata/switch.txt", "testdata/choose.txt", "testdata/serve.txt"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scenes := strings.Split(strings.TrimSpace(string(text)), "\n\n")
		for i, scene := range scenes {
			given, want, _ := strings.Cut(scene, "\n----")
			want = strings.TrimPrefix(want, "\n")
			title, _, _ := strings.Cut(strings.TrimPrefix(given, "# "), "\n")
			t.Run(title, func(t *testing.T) {
				got := strings.Join(play(t, given), "\n")
				if got != want && !*update {
					t.Errorf("%s:\n%s\n---- got\n%s\n---- want\n%s", file, given, got, want)
				}
				scenes[i] = given + "\n----\n" + got
			})
		}
		if *update {
			if err := os.WriteFile(file, []byte(strings.Join(scenes, "\n\n")+"\n"), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// play answers what the relay does in a scene, line by line.
func play(t *testing.T, given string) (did []string) {
	l := local{systemID: 1, segmentSize: 16 << 20}
	known := map[wal.TLI]*wal.History{1: {TLI: 1}}
	l.known = func(tli wal.TLI) (*wal.History, bool) { h, ok := known[tli]; return h, ok }
	standbyWanted := false
	listed := 0
	var fit []observed
	servers := 0
	for line := range strings.Lines(given) {
		f := strings.Fields(line)
		if len(f) == 0 || f[0] == "#" {
			continue
		}
		w := words{t, f[1:]}
		switch f[0] {
		case "relay":
			l.tli, l.complete = w.tli("tli"), w.lsn("complete")
			if l.written = w.lsn("written"); l.written == 0 {
				l.written = l.complete
			}
			if w.has("empty") {
				l.systemID, l.segmentSize = 0, 0
			}
			w.system(&l.systemID, &l.segmentSize)
		case "knows":
			h := history(t, w.f[0], w.f[1])
			known[h.TLI] = h
		case "list":
			if standbyWanted = w.has("standby"); !standbyWanted {
				listed, _ = strconv.Atoi(w.f[0])
			}
		case "server":
			o := observed{server: w.f[0], standby: w.has("standby"), tli: w.tli("tli"), pos: w.lsn("pos"),
				systemID: 1, segmentSize: 16 << 20}
			w.system(&o.systemID, &o.segmentSize)
			o.history = history(t, o.tli.String(), w.get("history"))
			if slot, lsn, ok := strings.Cut(w.get("slot"), "@"); ok {
				o.slotTLI, o.slotRestart = parseTLI(t, slot), parseLSN(t, lsn)
			}
			servers++
			at, err := planStart(l, o)
			if err == nil {
				fit = append(fit, o)
			}
			did = append(did, o.server+": "+outcome(at, err))
		case "ended":
			at, err := planSwitch(l, w.f[0], w.tli("next"), w.lsn("at"))
			did = append(did, w.f[0]+": "+outcome(at, err))
		case "asks":
			tli := w.tli("tli")
			if tli == 0 {
				tli = l.tli
			}
			h := known[l.tli]
			end, perr := planServe(tli, w.lsn("lsn"), l.tli, h)
			switch {
			case perr != nil:
				did = append(did, fmt.Sprintf("%s: %s", perr.Code, perr.Message))
				if perr.Detail != "" {
					did = append(did, "detail: "+perr.Detail)
				}
			case end != nil:
				did = append(did, fmt.Sprintf("stream timeline %d up to %s, then name timeline %d", end.TLI, end.LSN, end.Next))
			default:
				did = append(did, fmt.Sprintf("stream timeline %d", tli))
			}
		default:
			t.Fatalf("cannot read %q", line)
		}
	}
	if total := max(listed, servers); total > 1 {
		if i := choose(fit, standbyWanted || total == 1); i >= 0 {
			did = append(did, "follow "+fit[i].server)
		} else {
			did = append(did, "follow nobody")
		}
	}
	return did
}

func outcome(at start, err error) string {
	if err != nil {
		return strings.TrimPrefix(fmt.Sprintf("%T: %v", err, err), "*relay.")
	}
	return fmt.Sprintf("ask for timeline %d from %s", at.tli, at.lsn)
}

// words are those of a line after its first.
type words struct {
	t *testing.T
	f []string
}

func (w words) has(word string) bool {
	for _, f := range w.f {
		if f == word {
			return true
		}
	}
	return false
}

func (w words) get(key string) string {
	for _, f := range w.f {
		if v, ok := strings.CutPrefix(f, key+"="); ok {
			return v
		}
	}
	return ""
}

func (w words) tli(key string) wal.TLI {
	if v := w.get(key); v != "" {
		return parseTLI(w.t, v)
	}
	return 0
}

func (w words) lsn(key string) wal.LSN {
	if v := w.get(key); v != "" {
		return parseLSN(w.t, v)
	}
	return 0
}

func (w words) system(id *uint64, size *wal.SegmentSize) {
	if v := w.get("system"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		if err != nil {
			w.t.Fatal(err)
		}
		*id = n
	}
	if v := w.get("segsize"); v != "" {
		n, err := wal.ParseSegmentSize(v)
		if err != nil {
			w.t.Fatal(err)
		}
		*size = n
	}
}

func parseTLI(t *testing.T, s string) wal.TLI {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	return wal.TLI(n)
}

func parseLSN(t *testing.T, s string) wal.LSN {
	lsn, err := wal.ParseLSN(s)
	if err != nil {
		t.Fatal(err)
	}
	return lsn
}

// history reads 1@0/3000100,2@0/5000000 by way of the text of a history file.
func history(t *testing.T, tli, path string) *wal.History {
	var text strings.Builder
	for entry := range strings.SplitSeq(path, ",") {
		if parent, lsn, ok := strings.Cut(entry, "@"); ok {
			fmt.Fprintf(&text, "%s\t%s\tno recovery target specified\n\n", parent, lsn)
		}
	}
	h, err := wal.ParseHistory(parseTLI(t, tli), text.String())
	if err != nil {
		t.Fatal(err)
	}
	return h
}
