package relay

import (
	"context"
	"os"
	"path/filepath"

	"rideau/internal/durable"
	"rideau/wal"
)

// A preparer makes the next segment's file while the one before fills: zeros,
// written and synced. Only bytes that were written once can be made durable
// without telling the file system's journal that they exist now; on ext4 a
// sync then takes three quarters of what it takes in a file that was merely
// allocated. While WAL comes in faster than anybody waits for it that is not
// worth writing each segment twice, so one is made only when asked for.
type preparer struct {
	path  string
	want  chan wal.SegmentSize // capacity 1
	ready chan *os.File        // capacity 1: path, to be renamed
}

// preparedFile is the next segment, not yet named.
const preparedFile = "rideau-next"

// preparedMax bounds the bursts of writing that a segment's zeros are.
const preparedMax = 64 << 20

func newPreparer(dir string) *preparer {
	return &preparer{
		path: filepath.Join(dir, preparedFile),
		want: make(chan wal.SegmentSize, 1), ready: make(chan *os.File, 1),
	}
}

// ask wants a file of size, unless one is there or on its way.
func (p *preparer) ask(size wal.SegmentSize) {
	if p == nil || size > preparedMax || len(p.ready) > 0 {
		return
	}
	select {
	case p.want <- size:
	default:
	}
}

// take gives the file that is ready a name and its content, or answers nil.
func (p *preparer) take(path string) *os.File {
	if p == nil {
		return nil
	}
	select {
	case f := <-p.ready:
		// Its directory entry is synced with the first WAL in it.
		if os.Rename(p.path, path) == nil {
			return f
		}
		f.Close()
	default:
	}
	return nil
}

// run makes files until ctx is done, and leaves none behind.
func (p *preparer) run(ctx context.Context) {
	os.Remove(p.path) // of an earlier run, how much of it nobody knows
	defer func() {
		select {
		case f := <-p.ready:
			f.Close()
		default:
		}
		os.Remove(p.path)
	}()
	for {
		select {
		case <-ctx.Done():
			return
		case size := <-p.want:
			if len(p.ready) > 0 {
				continue
			}
			// A failure costs some speed; that the disk is full is met, and
			// told, when a segment is opened without this.
			if f := p.make(size); f != nil {
				p.ready <- f
			}
		}
	}
}

func (p *preparer) make(size wal.SegmentSize) *os.File {
	f, err := os.OpenFile(p.path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil
	}
	if err = durable.WriteZeros(f, int64(size)); err == nil {
		err = durable.Fdatasync(f)
	}
	if err != nil {
		f.Close()
		os.Remove(p.path)
		return nil
	}
	return f
}
