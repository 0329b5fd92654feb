package basebackup

import (
	"context"
	"sync"
	"time"
)

// How much may be copied, or how long, before it is put on disk and into the
// journal: what a kill of this process makes travel again.
const (
	journalBytes = 256 << 20
	journalEvery = 10 * time.Second
)

// A journal puts what workers have copied on disk now and then, and records it.
type journal struct {
	b *backup

	mu      sync.Mutex
	pending []extentRecord
	bytes   int64
	last    time.Time
	wake    chan struct{}

	flushing sync.Mutex // held while the disk is synced; taken before mu
	failed   error      // a sync failed: what was written before it may be lost
}

func (j *journal) start(b *backup) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.b, j.last, j.wake = b, time.Now(), make(chan struct{}, 1)
}

// add is told of an extent that was copied. It may not be on disk yet.
func (j *journal) add(t *task) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.pending = append(j.pending, extentRecord{Path: t.file.path, Extent: t.extent, Length: t.n, Since: j.b.start.LSN})
	j.bytes += t.n
	if j.bytes >= journalBytes || time.Since(j.last) >= journalEvery {
		select {
		case j.wake <- struct{}{}:
		default:
		}
	}
}

// run records until ctx is done.
func (j *journal) run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-j.wake:
			if err := j.flush(); err != nil {
				return err
			}
		}
	}
}

// flush puts on disk what was copied, and then says so.
func (j *journal) flush() error {
	j.flushing.Lock()
	defer j.flushing.Unlock()
	if j.failed != nil {
		return j.failed
	}
	j.mu.Lock()
	records := j.pending
	j.pending, j.bytes, j.last = nil, 0, time.Now()
	j.mu.Unlock()
	if len(records) == 0 {
		return nil
	}
	if j.failed = j.b.sync(); j.failed != nil {
		return j.failed
	}
	return j.b.state.record(records)
}
