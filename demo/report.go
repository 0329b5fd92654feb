package demo

import (
	"strconv"

	"rideau/relay"
	"rideau/wal"
)

// A Report is what the demo has shown, for people and programs.
type Report struct {
	Version      string         `json:"postgresql"`
	Dir          string         `json:"directory"`
	Seconds      float64        `json:"seconds"`
	Clients      int            `json:"clients"`
	Acknowledged int            `json:"acknowledged"`
	InDoubt      int            `json:"in_doubt"` // under way when the primary died, never acknowledged
	Downtime     float64        `json:"downtime_seconds"`
	Failover     FailoverReport `json:"failover"`
	Untouched    StandbyReport  `json:"standby"`
	Places       []Place        `json:"places"`
	Relay        RelayReport    `json:"relay"`
	Servers      []ServerReport `json:"servers"`

	// Problems say what is not as it must be. None: nothing was lost.
	Problems []string `json:"problems"`

	// Kept is where the files are if there was a problem.
	Kept string `json:"kept,omitempty"`
}

// A FailoverReport is what was decided and why.
type FailoverReport struct {
	AckedBefore int            `json:"acknowledged_before"` // by the primary that was killed
	Held        relay.Position `json:"relay_position"`      // when the relay had nothing more to receive
	Promoted    string         `json:"promoted"`
	TLI         wal.TLI        `json:"tli"`
	Fork        wal.LSN        `json:"fork"` // where the new timeline begins
}

// A StandbyReport is about the standby that was not promoted.
type StandbyReport struct {
	Name              string `json:"name"`
	PID               int    `json:"pid"` // of its postmaster
	SameProcess       bool   `json:"same_process"`
	SameConfiguration bool   `json:"same_configuration"`
	SameWalReceiver   bool   `json:"same_walreceiver"` // of no promise: PostgreSQL may start another
	ReceivedTLI       int    `json:"received_tli"`
}

// A Place is somewhere where acknowledged commits must be.
type Place struct {
	Name string  `json:"name"`
	Role string  `json:"role"` // new primary, standby, WAL
	TLI  wal.TLI `json:"tli"`
	LSN  wal.LSN `json:"lsn"`            // up to where it has WAL
	Rows int     `json:"rows,omitempty"` // of a server
	Tally
}

// A RelayReport is how to look at the relay.
type RelayReport struct {
	PID     int    `json:"pid"`
	Command string `json:"command"`
	Listen  string `json:"listen"`
	URL     string `json:"url"`
}

// A ServerReport is how to look at a server.
type ServerReport struct {
	Name     string `json:"name"`
	Role     string `json:"role"`
	PID      int    `json:"pid"`
	Conninfo string `json:"conninfo"`
	Log      string `json:"log"`
}

// Thousands writes a count as people read it: 12,345.
func Thousands(n int) string {
	text := strconv.Itoa(n)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}
