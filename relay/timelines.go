package relay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"

	"github.com/jackc/pgx/v5/pgconn"

	"rideau/archive"
	"rideau/internal/durable"
	"rideau/pgrepl"
	"rideau/wal"
)

// timelines are the history files in the relay's directory. They only ever
// become more.
type timelines struct {
	dir string

	mu    sync.Mutex
	known map[wal.TLI]*wal.History
}

func newTimelines(dir string) *timelines {
	// Timeline 1 has no file and no ancestors.
	return &timelines{dir: dir, known: map[wal.TLI]*wal.History{1: {TLI: 1}}}
}

func (t *timelines) load(inv *archive.Inventory) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, h := range inv.Histories {
		t.known[h.TLI] = h
	}
	return nil
}

// get returns the path to tli; false if it is not known. Where tli has no
// history file, that of a later timeline on the same path says as much.
func (t *timelines) get(tli wal.TLI) (*wal.History, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if h, ok := t.known[tli]; ok {
		return h, true
	}
	for _, later := range t.known {
		if h, ok := later.Ancestor(tli); ok {
			return h, true
		}
	}
	return nil, false
}

// file returns the path that tli's history file says; false if there is none.
func (t *timelines) file(tli wal.TLI) (*wal.History, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	h, ok := t.known[tli]
	return h, ok
}

// begins is where tli left its parent; zero for the first timeline, or where
// that is not known.
func (t *timelines) begins(tli wal.TLI) wal.LSN {
	h, ok := t.get(tli)
	if !ok || len(h.Entries) == 0 {
		return 0
	}
	return h.Entries[len(h.Entries)-1].End
}

// text is the content of tli's history file, for a standby on its way to
// current. A walreceiver asks for every number between its own timeline and
// ours, and gives up where one is missing; but a promotion that was never
// finished, or that another branch made, may have left no file that anybody
// has. For an ancestor of current the file is the beginning of current's own.
// For any other number we say what we know, which is nothing: a history
// without ancestors, which no one follows. See doc/decisions.
func (t *timelines) text(tli, current wal.TLI) ([]byte, error) {
	text, err := os.ReadFile(filepath.Join(t.dir, tli.HistoryName()))
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		return text, err
	}
	h, ok := t.get(current)
	if !ok || tli <= 1 || tli >= current {
		return nil, err
	}
	if a, ok := h.Ancestor(tli); ok {
		return []byte(a.Format()), nil
	}
	return fmt.Appendf(nil, "# timeline %d is not in the history of timeline %d, and nothing else is known of it\n", tli, current), nil
}

// A HistoryError says that a server tells another history of a timeline than
// the relay has: two servers were promoted to the same number.
type HistoryError struct {
	Server string
	TLI    wal.TLI
}

func (e *HistoryError) Error() string {
	return fmt.Sprintf("the history of timeline %d on server %q is not the one this relay has", e.TLI, e.Server)
}

// mirror fetches the history files that the server has and we have not, up to
// that of its timeline tli, which it must have. They are durable when it
// returns, and so a timeline is never announced before its history.
func (t *timelines) mirror(ctx context.Context, conn *pgrepl.Conn, tli wal.TLI, log *slog.Logger) error {
	server := conn.Target.String()
	for n := tli; n > 1; n-- {
		ours, have := t.file(n)
		if have && n != tli {
			continue
		}
		text, err := conn.TimelineHistory(ctx, n)
		var pg *pgconn.PgError
		if n != tli && errors.As(err, &pg) && pg.Code == "58P01" {
			continue // never finished, or long forgotten
		}
		if err != nil {
			return fmt.Errorf("could not fetch the history of timeline %d from server %q: %w", n, server, err)
		}
		h, err := wal.ParseHistory(n, text)
		if err != nil {
			return fmt.Errorf("server %q: %w", server, err)
		}
		if have {
			if h.Format() != ours.Format() {
				return &HistoryError{Server: server, TLI: n}
			}
			continue
		}
		if err := durable.WriteFile(filepath.Join(t.dir, n.HistoryName()), []byte(text), 0o600); err != nil {
			return &localError{err}
		}
		log.Info("kept the history of a timeline", "tli", n, "server", server)
		t.mu.Lock()
		t.known[n] = h
		t.mu.Unlock()
	}
	return nil
}
