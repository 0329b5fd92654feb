package relay

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"rideau/archive"
	"rideau/internal/durable"
	"rideau/pgrepl"
	"rideau/wal"
)

// A slot is a physical replication slot that standbys use here: it holds WAL
// from Restart on. The upstream knows nothing of it.
type slot struct {
	Name    string  `json:"name"`
	Restart wal.LSN `json:"restart_lsn"` // zero: nothing is held yet

	temporary bool
	user      *standby // who has it now; nil: nobody
	gone      chan struct{}
}

// slots are all of them. They are saved when one is made or dropped, and from
// time to time: a saved restart_lsn that is old holds more than it must, never
// less.
type slots struct {
	file string

	// saving is held while the file is written; taken before mu.
	saving sync.Mutex

	mu    sync.Mutex
	slots map[string]*slot
	dirty bool
}

const slotsFile = "rideau-slots.json"

func newSlots(dir string) *slots {
	return &slots{file: filepath.Join(dir, slotsFile), slots: map[string]*slot{}}
}

func (ss *slots) load() error {
	text, err := os.ReadFile(ss.file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var list []*slot
	if err := json.Unmarshal(text, &list); err != nil {
		return &StateError{Path: ss.file, Slots: true, Err: err}
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for _, s := range list {
		ss.slots[s.Name] = s
	}
	return nil
}

// save writes the permanent slots if they have changed. The lock is not held
// while the disk is waited for: reports to the server and from standbys need it.
func (ss *slots) save() error {
	ss.saving.Lock()
	defer ss.saving.Unlock()
	ss.mu.Lock()
	if !ss.dirty {
		ss.mu.Unlock()
		return nil
	}
	list := []*slot{}
	for _, s := range ss.slots {
		if !s.temporary {
			list = append(list, s)
		}
	}
	text, err := json.MarshalIndent(list, "", "  ")
	ss.dirty = false
	ss.mu.Unlock()
	if err == nil {
		err = durable.WriteFile(ss.file, append(text, '\n'), 0o600)
	}
	if err != nil {
		ss.mu.Lock()
		ss.dirty = true
		ss.mu.Unlock()
	}
	return err
}

// maxSlots bounds what clients can make: each holds WAL, is written to disk, and
// is somebody's standby. No primary allows so many without being told to.
const maxSlots = 1000

// create makes a slot. A temporary one belongs to by, and goes with it.
func (ss *slots) create(name string, temporary bool, restart wal.LSN, by *standby) error {
	if err := pgrepl.CheckSlotName(name); err != nil {
		return err
	}
	s := &slot{Name: name, Restart: restart, temporary: temporary}
	ss.mu.Lock()
	if ss.slots[name] != nil {
		ss.mu.Unlock()
		return pgrepl.Errorf("42710", "replication slot %q already exists", name)
	}
	if len(ss.slots) >= maxSlots {
		ss.mu.Unlock()
		return pgrepl.Errorf("53400", "all replication slots are in use")
	}
	// Nobody else gets it before it is on disk.
	s.take(by)
	ss.slots[name] = s
	ss.dirty = ss.dirty || !temporary
	ss.mu.Unlock()
	if temporary {
		return nil
	}
	err := ss.save()
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s.leave()
	if err != nil {
		delete(ss.slots, name)
		ss.dirty = true
	}
	return err
}

func (s *slot) take(by *standby) {
	s.user, s.gone = by, make(chan struct{})
}

func (s *slot) leave() {
	s.user = nil
	close(s.gone)
}

// drop removes a slot. If it is in use, and wait is set, the channel tells when
// to try again.
func (ss *slots) drop(name string, by *standby, wait bool) (<-chan struct{}, error) {
	ss.mu.Lock()
	s, err := ss.find(name)
	switch {
	case err != nil:
	case s.user != nil && s.user != by && wait:
		defer ss.mu.Unlock()
		return s.gone, nil
	case s.user != nil && s.user != by:
		err = inUse(s)
	default:
		if s.user != nil {
			s.leave()
		}
		delete(ss.slots, name)
		ss.dirty = ss.dirty || !s.temporary
	}
	ss.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return nil, ss.save()
}

func (ss *slots) find(name string) (*slot, error) {
	s := ss.slots[name]
	if s == nil {
		return nil, pgrepl.Errorf("42704", "replication slot %q does not exist", name)
	}
	return s, nil
}

func inUse(s *slot) error {
	return pgrepl.Errorf("55006", "replication slot %q is active for PID %d", s.Name, s.user.pid)
}

// acquire gives a slot to a standby for the time of a stream.
func (ss *slots) acquire(name string, by *standby) (*slot, error) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s, err := ss.find(name)
	if err != nil {
		return nil, err
	}
	if s.user != nil && s.user != by {
		return nil, inUse(s)
	}
	if s.user == nil {
		s.take(by)
	}
	return s, nil
}

// release gives it back; a temporary one stays its owner's.
func (ss *slots) release(s *slot) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if !s.temporary && s.user != nil {
		s.leave()
	}
}

// leave drops what by had for the time of its connection.
func (ss *slots) leave(by *standby) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	for name, s := range ss.slots {
		if s.user != by {
			continue
		}
		s.leave()
		if s.temporary {
			delete(ss.slots, name)
		}
	}
}

// confirm moves a slot to what its standby has flushed.
func (ss *slots) confirm(s *slot, flushed wal.LSN) {
	if flushed == 0 {
		return
	}
	ss.mu.Lock()
	defer ss.mu.Unlock()
	if s.Restart != flushed {
		s.Restart = flushed
		ss.dirty = ss.dirty || !s.temporary
	}
}

// read is READ_REPLICATION_SLOT; false if there is no such slot.
func (ss *slots) read(name string) (slot, bool) {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.slots[name]
	if s == nil {
		return slot{}, false
	}
	return slot{Name: s.Name, Restart: s.Restart, user: s.user}, true
}

func (ss *slots) readers() []archive.Reader {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	var list []archive.Reader
	for _, s := range ss.slots {
		if s.Restart != 0 {
			list = append(list, archive.Reader{Name: s.Name, Kind: archive.Slot, LSN: s.Restart})
		}
	}
	return list
}

func (ss *slots) status() []SlotStatus {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	list := []SlotStatus{}
	for _, s := range ss.slots {
		list = append(list, SlotStatus{Name: s.Name, Restart: s.Restart, Active: s.user != nil, Temporary: s.temporary})
	}
	return list
}

// active tells whether somebody uses the slot, or it is gone.
func (ss *slots) active(name string) bool {
	ss.mu.Lock()
	defer ss.mu.Unlock()
	s := ss.slots[name]
	return s == nil || s.user != nil
}
