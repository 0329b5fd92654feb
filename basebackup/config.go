package basebackup

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"rideau/basebackup/compress"
	"rideau/pgrepl"
	"rideau/wal"
)

// Config says what to back up, and how. Only Conninfo and Dir are needed.
type Config struct {
	// Conninfo is the server's, as libpq's: a primary or a standby.
	Conninfo string

	// Dir is the data directory to make or refresh. It may be absent, empty,
	// what an earlier run left, or the data directory of a server that does not
	// run and has the same system identifier.
	Dir string

	// Jobs is the number of connections that copy. Zero: 4.
	Jobs int

	// MaxRate bounds what is read from the server over SQL, in bytes a second.
	// WAL does not wait; it counts for up to half of it. Zero: no bound.
	MaxRate int64

	// Checkpoint "spread" lets the server take its time over the checkpoint
	// that a backup begins with; "fast" has it now. Empty: fast.
	Checkpoint string

	// Label is the backup's, in its backup_label. Empty: "rideau basebackup".
	Label string

	// WAL says where the WAL between start and stop comes from: "sql", over
	// another connection of the backup's own; "none", it is in an archive that
	// the backup will be restored with; otherwise a connection string of a relay
	// or server to stream it from, a directory or URL of an archive. Empty: sql.
	WAL string

	// Compress is what the server compresses with before it sends: "none",
	// "auto", or a method's name (see package compress). Empty: none.
	Compress string

	// Standby makes DIR a standby's: standby.signal, and a primary_conninfo
	// that is Relay, or Conninfo if that is empty, with Slot if that is not.
	Standby bool
	Relay   string
	Slot    string

	// Tablespaces maps locations on the server to locations here. One that is
	// not mapped stays where it is, and is refused if there is something.
	Tablespaces map[string]string

	// Logs copies the server's log directory too, if it is in the data
	// directory.
	Logs bool

	// NoSync leaves it to the operating system when the files reach the disk.
	// For tests.
	NoSync bool

	// Progress, if not nil, is called a few times a second, and once at each
	// change of phase, by one goroutine at a time.
	Progress func(Progress)

	// Log is told what a person would want to know in order. Nil: nobody.
	Log *slog.Logger
}

// defaultJobs keeps two processors busy at each end, and a long line full.
const defaultJobs = 4

// maxLabel is MAXPGPATH of src/include/pg_config_manual.h: what a server takes.
const maxLabel = 1024

// A ConfigError says what is wrong with a Config. Nothing was touched, and no
// server asked.
type ConfigError struct{ Err error }

func (e *ConfigError) Error() string { return e.Err.Error() }
func (e *ConfigError) Unwrap() error { return e.Err }

func (c *Config) validate() error {
	if err := c.check(); err != nil {
		return &ConfigError{err}
	}
	if c.Jobs == 0 {
		c.Jobs = defaultJobs
	}
	if c.Checkpoint == "" {
		c.Checkpoint = "fast"
	}
	if c.Label == "" {
		c.Label = "rideau basebackup"
	}
	if c.WAL == "" {
		c.WAL = "sql"
	}
	if c.Compress == "" {
		c.Compress = "none"
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

func (c *Config) check() error {
	for server, local := range c.Tablespaces {
		if !filepath.IsAbs(server) || !filepath.IsAbs(local) {
			return fmt.Errorf("cannot map tablespace %q to %q: both must be absolute paths", server, local)
		}
	}
	switch {
	case c.Conninfo == "" && c.Dir == "":
		return errors.New("no server and no directory given")
	case c.Dir == "":
		return errors.New("no directory for the backup given")
	case c.Jobs < 0 || c.Jobs > 256:
		return fmt.Errorf("cannot copy with %d jobs: 1 to 256 can be", c.Jobs)
	case c.MaxRate < 0:
		return errors.New("the rate cannot be negative")
	case c.MaxRate > 0 && c.MaxRate < 32<<10:
		return errors.New("the rate cannot be below 32 kB a second") // as pg_basebackup
	case c.Checkpoint != "" && c.Checkpoint != "fast" && c.Checkpoint != "spread":
		return fmt.Errorf("unknown checkpoint %q: fast or spread", c.Checkpoint)
	case c.Compress != "" && !slices.Contains(compress.Names, c.Compress):
		return fmt.Errorf("unknown compression %q: %s", c.Compress, strings.Join(compress.Names, ", "))
	case len(c.Label) >= maxLabel:
		return fmt.Errorf("the label is longer than %d bytes", maxLabel-1)
	case strings.ContainsAny(c.Label, "\r\n"):
		return errors.New("the label is more than one line")
	case c.Slot != "" && pgrepl.CheckSlotName(c.Slot) != nil:
		return pgrepl.CheckSlotName(c.Slot)
	case !c.Standby && (c.Relay != "" || c.Slot != ""):
		return errors.New("a relay or a slot is a standby's, and no standby was asked for")
	}
	return nil
}

// A Phase is what a backup is doing.
type Phase string

// The phases, in order.
const (
	Connecting       Phase = "connecting"
	Checkpoint       Phase = "waiting for checkpoint"
	WaitingSummaries Phase = "waiting for WAL summaries"
	Listing          Phase = "listing files"
	Copying          Phase = "copying"
	Stopping         Phase = "stopping the backup"
	WaitingWAL       Phase = "waiting for WAL"
	Syncing          Phase = "syncing"
	Done             Phase = "done"
)

// Progress is how far a backup is. Bytes are of the server's files; Received is
// what crossed SQL connections for them and for WAL.
type Progress struct {
	Phase        Phase
	Files        int
	TotalFiles   int
	Bytes        int64
	TotalBytes   int64
	Received     int64
	WALBytes     int64
	CorruptPages int
	Waiting      string // what for, in words, if it takes long
	Elapsed      time.Duration
}

// A Report is what a backup came to.
type Report struct {
	Dir        string        `json:"dir"`
	Server     string        `json:"server"`
	SystemID   uint64        `json:"system_identifier,string"`
	Version    string        `json:"server_version"`
	Standby    bool          `json:"from_standby"`
	Method     string        `json:"method"` // of the ladder: "copy", "summaries", "page LSN", "content"
	Reason     string        `json:"reason"`
	Resumed    bool          `json:"resumed"`
	StartLSN   wal.LSN       `json:"start_lsn"`
	StartTLI   wal.TLI       `json:"start_tli"`
	StopLSN    wal.LSN       `json:"stop_lsn"`
	StopTLI    wal.TLI       `json:"stop_tli"`
	Files      int           `json:"files"`
	Bytes      int64         `json:"bytes"`
	Received   int64         `json:"received_bytes"` // of files and WAL, over SQL
	Written    int64         `json:"written_bytes"`
	Removed    int           `json:"removed_files"`
	WALFiles   int           `json:"wal_segments"`
	WALBytes   int64         `json:"wal_bytes"`
	Vanished   int           `json:"vanished_files"`
	Compress   string        `json:"compress"`         // the method that was used, or could be
	Compressed int64         `json:"compressed_bytes"` // of files, as they are here; the rest came as it is
	Elapsed    time.Duration `json:"elapsed_ns"`
	Corrupt    []CorruptPage `json:"corrupt_pages"`
	CorruptAll int           `json:"corrupt_page_count"`
	Warnings   []string      `json:"warnings"`
}

// A CorruptPage is a page that the server itself has damaged: it was the same,
// and wrong, each time it was read.
type CorruptPage struct {
	Path   string `json:"path"`
	Block  uint32 `json:"block"` // within the relation's fork
	Detail string `json:"detail"`
}
