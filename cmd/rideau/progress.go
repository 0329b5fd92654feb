package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
	"golang.org/x/term"

	"rideau/basebackup"
)

// A progress shows how far a long command is: with a bar on a terminal, and
// elsewhere with a line for each phase, and one a minute where that takes long.
// Its methods may be called by one goroutine at a time, but for stop.
type progress struct {
	out    io.Writer
	silent bool
	bar    *mpb.Bar // nil: lines
	bars   *mpb.Progress
	began  time.Time
	once   sync.Once

	mu   sync.Mutex // of what the bar's painter reads
	now  basebackup.Progress
	rate pace

	said     basebackup.Phase // the phase that has its line
	lastLine time.Duration
}

// newProgress shows on out what it is told, if it is to show anything.
func newProgress(out io.Writer, shown bool) *progress {
	p := &progress{out: out, silent: !shown, began: time.Now()}
	if f, ok := out.(*os.File); ok && shown && term.IsTerminal(int(f.Fd())) {
		p.bars = mpb.New(mpb.WithOutput(f), mpb.WithRefreshRate(200*time.Millisecond), mpb.WithWidth(24))
		p.bar = p.bars.New(0, mpb.BarStyle(), // total 0: it is not done before we say so
			mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return p.before() + " " })),
			mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return " " + p.after() })))
	}
	return p
}

// writer is where others write while the bar is shown: above it.
func (p *progress) writer() io.Writer {
	if p.bar != nil {
		return p.bars
	}
	return p.out
}

// stop takes the bar away. What comes after it is written to the terminal.
func (p *progress) stop() {
	p.once.Do(func() {
		if p.bar != nil {
			p.bar.Abort(true)
			p.bars.Wait()
		}
	})
}

// backup shows how far a base backup is.
func (p *progress) backup(now basebackup.Progress) {
	p.mu.Lock()
	p.now = now
	if now.Phase == basebackup.Copying {
		p.rate.add(now.Elapsed, now.Bytes)
	}
	p.mu.Unlock()
	switch {
	case p.silent:
	case p.bar != nil:
		p.bar.SetTotal(now.TotalBytes, false)
		p.bar.SetCurrent(now.Bytes)
	default:
		p.lines(now)
	}
}

// verify shows how far the reading of a backup is.
func (p *progress) verify(done, total int64) {
	p.backup(basebackup.Progress{Phase: "reading", Bytes: done, TotalBytes: total, Elapsed: time.Since(p.began)})
}

const linesEvery = time.Minute

// lines writes a line when a phase begins, and in a long one now and then.
func (p *progress) lines(now basebackup.Progress) {
	// How much there is to copy is known a moment after the phase began.
	unknown := now.Phase == basebackup.Copying && now.TotalFiles == 0 && now.TotalBytes == 0
	switch {
	case now.Phase == "" || now.Phase == basebackup.Done || unknown:
		return
	case now.Phase != p.said:
		p.said, p.lastLine = now.Phase, now.Elapsed
		text := string(now.Phase)
		if now.TotalBytes > 0 && (now.Phase == basebackup.Copying || now.Phase == "reading") {
			text = fmt.Sprintf("%s %s", now.Phase, formatSize(now.TotalBytes))
			if now.TotalFiles > 0 {
				text += " in " + count(uint64(now.TotalFiles), "file")
			}
		}
		fmt.Fprintln(p.out, text)
	case now.Elapsed-p.lastLine >= linesEvery:
		p.lastLine = now.Elapsed
		fmt.Fprintf(p.out, "%s: %s\n", now.Phase, progressText(now, p.rate.perSecond()))
	}
}

// before is what stands before the bar: the phase.
func (p *progress) before() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("%-12s", p.now.Phase)
}

// after is what stands behind the bar.
func (p *progress) after() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return progressText(p.now, p.rate.perSecond())
}

// progressText is how far it is, in words: how much of how much, how fast, and
// when it will be done.
func progressText(now basebackup.Progress, rate float64) string {
	var parts []string
	add := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch {
	case now.Waiting != "":
		add("%s", now.Waiting)
	case now.Phase == basebackup.Copying || now.Phase == "reading":
		if now.TotalBytes == 0 {
			break
		}
		add("%s of %s (%d%%)", formatSize(now.Bytes), formatSize(now.TotalBytes), min(100, 100*now.Bytes/now.TotalBytes))
		if rate >= 1 {
			add("%s/s", formatSize(int64(rate)))
			if left := now.TotalBytes - now.Bytes; left > 0 {
				add("%s left", formatTime(time.Duration(float64(left)/rate*float64(time.Second)).Round(time.Second)))
			}
		}
	default:
		add("for %s", formatTime(now.Elapsed.Round(time.Second)))
	}
	if now.WALBytes > 0 {
		add("WAL %s", formatSize(now.WALBytes))
	}
	if now.CorruptPages > 0 {
		add("%s damaged", count(uint64(now.CorruptPages), "page"))
	}
	return strings.Join(parts, ", ")
}

// A pace is the speed of the last while: what was done since marks that are
// some seconds old.
type pace struct {
	marks []paceMark
}

type paceMark struct {
	at    time.Duration
	bytes int64
}

// paceOver is how much of the past counts: long enough to be calm, short enough
// to be true of now.
const paceOver = 15 * time.Second

func (s *pace) add(at time.Duration, bytes int64) {
	if n := len(s.marks); n > 0 && at-s.marks[n-1].at < 200*time.Millisecond {
		return
	}
	s.marks = append(s.marks, paceMark{at, bytes})
	for len(s.marks) > 2 && at-s.marks[1].at >= paceOver {
		s.marks = s.marks[1:]
	}
}

// perSecond is zero as long as it is not known.
func (s *pace) perSecond() float64 {
	if len(s.marks) < 2 {
		return 0
	}
	first, last := s.marks[0], s.marks[len(s.marks)-1]
	return float64(last.bytes-first.bytes) / (last.at - first.at).Seconds()
}
