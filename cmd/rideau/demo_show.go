package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"text/tabwriter"
	"time"

	"golang.org/x/term"

	"rideau/demo"
)

// A demoShow tells the demo to a person: off a terminal a line a step, on one
// with lines wrapped to its width, and a last line that says what is going on
// and is written over.
type demoShow struct {
	w     io.Writer
	begun time.Time
	tty   int // file descriptor of a terminal, or -1

	titled bool

	mu    sync.Mutex
	drawn string // the last line, while it is there
}

func newDemoShow(w *hangUp) *demoShow {
	s := &demoShow{w: w, begun: time.Now(), tty: -1}
	if f, ok := w.w.(*os.File); ok && term.IsTerminal(int(f.Fd())) && os.Getenv("TERM") != "dumb" {
		s.tty = int(f.Fd())
	}
	return s
}

// stepIndent is the width of a step's time.
const stepIndent = 8

// width is that of the terminal; 0 if there is none.
func (s *demoShow) width() int {
	if s.tty < 0 {
		return 0
	}
	width, _, err := term.GetSize(s.tty)
	if err != nil || width < 40 {
		return 80
	}
	return min(width, 100)
}

// step tells what was done. The first step comes after a title, which stays away
// where nothing could begin.
func (s *demoShow) step(text string) {
	s.clear()
	if !s.titled {
		fmt.Fprint(s.w, "Rideau demo: a primary dies, and nothing that was acknowledged is lost.\n\n")
		s.titled = true
	}
	lines := wrap(text, s.width()-stepIndent)
	fmt.Fprintf(s.w, "%5.1f s %s\n", time.Since(s.begun).Seconds(), lines[0])
	for _, line := range lines[1:] {
		fmt.Fprintf(s.w, "%*s%s\n", stepIndent, "", line)
	}
}

func (s *demoShow) doing(text string) {
	if s.tty < 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	text += " ..."
	if len(text) > s.width()-stepIndent-1 || text == s.drawn {
		return
	}
	fmt.Fprintf(s.w, "\r\x1b[K%*s%s", stepIndent, "", text)
	s.drawn = text
}

func (s *demoShow) clear() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.drawn != "" {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.drawn = ""
	}
}

// wrap cuts text into lines at blanks. A word that is longer than a line keeps
// one of its own. Width 0 or less is no limit.
func wrap(text string, width int) []string {
	if width <= 0 || len(text) <= width {
		return []string{text}
	}
	var lines []string
	line := ""
	for _, word := range strings.Fields(text) {
		switch {
		case line == "":
			line = word
		case len(line)+1+len(word) <= width:
			line += " " + word
		default:
			lines = append(lines, line)
			line = word
		}
	}
	return append(lines, line)
}

// report prints the table that proves it.
func (s *demoShow) report(r *demo.Report) error {
	fmt.Fprintln(s.w)
	t := tabwriter.NewWriter(s.w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "place\ttimeline\tup to\tacknowledged\tfound\tmissing\ttwice\t")
	for _, p := range r.Places {
		name := p.Role + " " + p.Name
		if p.Name == "relay" {
			name = "relay's WAL"
		}
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t\n", name, p.TLI, p.LSN, demo.Thousands(r.Acknowledged),
			demo.Thousands(p.Found), demo.Thousands(p.Missing), demo.Thousands(p.Duplicates))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(s.w)
	width := s.width()
	if width == 0 {
		width = 79
	}
	paragraph := func(format string, args ...any) {
		for _, line := range wrap(fmt.Sprintf(format, args...), width) {
			fmt.Fprintln(s.w, line)
		}
	}
	if r.InDoubt > 0 {
		paragraph("%d commits were under way when the primary died and were never acknowledged: %d of them are there.", r.InDoubt, r.Places[0].InDoubt)
	}
	paragraph("No commit was acknowledged for %.2f s. Timeline %d begins at %s; the relay had acknowledged %s.",
		r.Downtime, r.Failover.TLI, r.Failover.Fork, r.Failover.Held.Complete)
	if len(r.Problems) > 0 {
		for _, p := range r.Problems {
			paragraph("WRONG: %s", p)
		}
		return nil
	}
	paragraph("Nothing was lost: all %s acknowledged commits are in all %d places.", demo.Thousands(r.Acknowledged), len(r.Places))
	return nil
}

// waysIn says how to play with what is running.
func (s *demoShow) waysIn(r *demo.Report) {
	fmt.Fprintln(s.w, "\nAll of it goes on running, until you press Ctrl-C. To look around:")
	fmt.Fprintln(s.w)
	host, port, _ := strings.Cut(r.Relay.Listen, ":")
	for _, server := range r.Servers {
		fmt.Fprintf(s.w, "  %-13s psql '%s'\n", server.Role, server.Conninfo)
	}
	fmt.Fprintf(s.w, "  %-13s psql 'host=%s port=%s user=postgres replication=yes' -c IDENTIFY_SYSTEM\n", "relay", host, port)
	fmt.Fprintf(s.w, "  %-13s psql 'host=%s port=%s user=postgres dbname=postgres' -c 'SELECT count(*) FROM ledger'\n", "  passed on", host, port)
	fmt.Fprintf(s.w, "  %-13s %s, %s/status, %s/metrics\n", "console", r.Relay.URL, r.Relay.URL, r.Relay.URL)
	fmt.Fprintf(s.w, "  %-13s %s\n", "relay's files", r.Dir+"/relay")
	fmt.Fprintf(s.w, "  %-13s %s\n", "relay's log", r.Dir+"/relay.log")
	for _, server := range r.Servers {
		fmt.Fprintf(s.w, "  %-13s %s\n", server.Name+"'s log", server.Log)
	}
}
