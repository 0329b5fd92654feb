package relay

import (
	"cmp"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"rideau/pgrepl"
	"rideau/wal"
)

// A Status is the relay at one moment, for people and programs.
type Status struct {
	SystemID    uint64           `json:"system_identifier,string"`
	SegmentSize string           `json:"wal_segment_size"`
	Dir         string           `json:"directory"`
	Listen      []string         `json:"listen"`
	Started     time.Time        `json:"started"`
	Position    Position         `json:"position"`
	Reported    wal.LSN          `json:"reported"` // what the server was told is flushed here
	DiskFull    bool             `json:"disk_full"`
	Upstream    UpstreamStatus   `json:"upstream"`
	Standbys    []StandbyStatus  `json:"standbys"`
	Slots       []SlotStatus     `json:"slots"`
	Applied     wal.LSN          `json:"applied"` // by all standbys; what the server was told
	Feedback    *pgrepl.Feedback `json:"hot_standby_feedback,omitempty"`
	Forwarded   int64            `json:"forwarded_connections"`
}

// An UpstreamStatus is the server that WAL comes from.
type UpstreamStatus struct {
	State   string  `json:"state"` // disconnected, connecting, streaming
	Server  string  `json:"server,omitempty"`
	Version string  `json:"server_version,omitempty"`
	Standby bool    `json:"standby"`
	TLI     wal.TLI `json:"tli,omitempty"`
	End     wal.LSN `json:"end,omitempty"`   // how far the server has flushed, as last heard
	Lag     uint64  `json:"lag_bytes"`       // between there and what is on our disk
	Error   string  `json:"error,omitempty"` // why not streaming
}

// A StandbyStatus is pg_stat_replication for one of our standbys.
type StandbyStatus struct {
	Name      string    `json:"application_name"`
	Addr      string    `json:"client_addr"`
	User      string    `json:"user"`
	PID       uint32    `json:"pid"`
	TLS       bool      `json:"tls"`
	Connected time.Time `json:"connected"`
	State     string    `json:"state"` // startup, streaming, idle
	TLI       wal.TLI   `json:"tli,omitempty"`
	Slot      string    `json:"slot,omitempty"`
	Sent      wal.LSN   `json:"sent"`
	Write     wal.LSN   `json:"write"`
	Flush     wal.LSN   `json:"flush"`
	Apply     wal.LSN   `json:"apply"`
	// Behind what is on the relay's disk, in bytes and, as far back as is
	// remembered, in seconds.
	SentLag    uint64    `json:"sent_lag_bytes"`
	FlushLag   uint64    `json:"flush_lag_bytes"`
	ApplyLag   uint64    `json:"apply_lag_bytes"`
	ApplyDelay float64   `json:"apply_lag_seconds"`
	LastReply  time.Time `json:"last_reply"`
}

// A SlotStatus is a replication slot of ours.
type SlotStatus struct {
	Name      string  `json:"slot_name"`
	Restart   wal.LSN `json:"restart_lsn"`
	Active    bool    `json:"active"`
	Temporary bool    `json:"temporary"`
}

func (r *Relay) setUpstream(set func(*UpstreamStatus)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	set(&r.upstream)
}

// Status tells how things are.
func (r *Relay) Status() Status {
	st := Status{Dir: r.cfg.Dir, Standbys: []StandbyStatus{}, Listen: []string{}}
	if id := r.identity(); id != nil {
		st.SystemID, st.SegmentSize = id.SystemID, id.SegmentSize.String()
	}
	sp := r.spool()
	if sp != nil {
		st.Position = sp.position()
	}
	st.Reported = wal.LSN(r.stats.reported.Load())
	st.DiskFull = r.stats.full.Load()
	st.Forwarded = r.stats.forwarded.Load()
	st.Applied = r.applied()
	if f := r.feedback(); f != (pgrepl.Feedback{}) {
		st.Feedback = &f
	}
	st.Slots = r.slots.status()
	slices.SortFunc(st.Slots, func(a, b SlotStatus) int { return cmp.Compare(a.Name, b.Name) })

	r.mu.Lock()
	defer r.mu.Unlock()
	st.Started = r.started
	for _, a := range r.addrs {
		st.Listen = append(st.Listen, a.String())
	}
	st.Upstream = r.upstream
	st.Upstream.End = wal.LSN(r.stats.upstreamEnd.Load())
	st.Upstream.Lag = behind(st.Position.Flushed, st.Upstream.End)
	now := time.Now()
	for sb := range r.standbys {
		st.Standbys = append(st.Standbys, sb.statusAt(now, st.Position, sp))
	}
	slices.SortFunc(st.Standbys, func(a, b StandbyStatus) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.PID, b.PID))
	})
	return st
}

func (sb *standby) statusAt(now time.Time, pos Position, sp *spool) StandbyStatus {
	sb.mu.Lock()
	defer sb.mu.Unlock()
	s := StandbyStatus{
		Name: sb.name, Addr: sb.addr, User: sb.user, PID: sb.pid, TLS: sb.tls, Connected: sb.at,
		State: sb.state, TLI: sb.tli, Sent: sb.sent,
		Write: sb.status.Write, Flush: sb.status.Flush, Apply: sb.status.Apply,
		SentLag: behind(sb.sent, pos.Flushed), FlushLag: behind(sb.status.Flush, pos.Flushed),
		ApplyLag: behind(sb.status.Apply, pos.Flushed), LastReply: sb.heard,
	}
	if sb.slot != nil {
		s.Slot = sb.slot.Name
	}
	if sp != nil && sb.status.Apply != 0 && s.ApplyLag > 0 {
		sp.mu.Lock()
		if at, ok := sp.times.since(sb.status.Apply); ok {
			s.ApplyDelay = now.Sub(at).Seconds()
		}
		sp.mu.Unlock()
	}
	return s
}

// behind is how far a is behind b; zero if it is not, or not known.
func behind(a, b wal.LSN) uint64 {
	if a == 0 || a >= b {
		return 0
	}
	return uint64(b - a)
}

// stats are counted where things happen and read by whoever asks.
type stats struct {
	received    atomic.Uint64 // bytes of WAL from the server
	sent        atomic.Uint64 // bytes of WAL to standbys
	fromMemory  atomic.Uint64
	fromDisk    atomic.Uint64
	upstreamEnd atomic.Uint64
	reported    atomic.Uint64
	forwarded   atomic.Int64
	full        atomic.Bool
	syncing     atomic.Bool
	fsync       prometheus.Histogram
}

func newStats() *stats {
	return &stats{fsync: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "rideau_fsync_seconds",
		Help: "Time that making received WAL durable took.",
		// 62 µs to 8 s.
		Buckets: prometheus.ExponentialBuckets(1.0/16384, 2, 18),
	})}
}

var (
	descReceived  = prometheus.NewDesc("rideau_received_bytes_total", "WAL received from the server.", nil, nil)
	descSent      = prometheus.NewDesc("rideau_sent_bytes_total", "WAL sent to standbys, by where it was read.", []string{"from"}, nil)
	descPosition  = prometheus.NewDesc("rideau_position_bytes", "Position in WAL: upstream_end is the server's, flushed and complete what is on disk, reported what the server was told, applied what all standbys have applied.", []string{"position"}, nil)
	descTimeline  = prometheus.NewDesc("rideau_timeline", "Timeline of the flushed position.", nil, nil)
	descConnected = prometheus.NewDesc("rideau_upstream_streaming", "1 while WAL is received from a server.", nil, nil)
	descFull      = prometheus.NewDesc("rideau_disk_full", "1 while there is no room for WAL and nothing is acknowledged.", nil, nil)
	descForwarded = prometheus.NewDesc("rideau_forwarded_connections", "Connections that are passed on to the server.", nil, nil)
	descStandby   = prometheus.NewDesc("rideau_standby_position_bytes", "Position of a standby: sent, write, flush, apply.", []string{"application_name", "client_addr", "position"}, nil)
	descLag       = prometheus.NewDesc("rideau_standby_lag_bytes", "How far a standby's position is behind what is on the relay's disk.", []string{"application_name", "client_addr", "position"}, nil)
	descDelay     = prometheus.NewDesc("rideau_standby_apply_lag_seconds", "Age of the oldest WAL on the relay's disk that a standby has not applied.", []string{"application_name", "client_addr"}, nil)
	descSlot      = prometheus.NewDesc("rideau_slot_retained_bytes", "WAL that a slot of the relay holds.", []string{"slot_name", "active"}, nil)
)

// Describe implements prometheus.Collector.
func (r *Relay) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(r, ch) }

// Collect implements prometheus.Collector.
func (r *Relay) Collect(ch chan<- prometheus.Metric) {
	st := r.Status()
	counter := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	counter(descReceived, r.stats.received.Load())
	counter(descSent, r.stats.fromMemory.Load(), "memory")
	counter(descSent, r.stats.fromDisk.Load(), "disk")
	gauge(descPosition, float64(st.Upstream.End), "upstream_end")
	gauge(descPosition, float64(st.Position.Flushed), "flushed")
	gauge(descPosition, float64(st.Position.Complete), "complete")
	gauge(descPosition, float64(st.Reported), "reported")
	gauge(descPosition, float64(st.Applied), "applied")
	gauge(descTimeline, float64(st.Position.TLI))
	gauge(descConnected, oneIf(st.Upstream.State == "streaming"))
	gauge(descFull, oneIf(st.DiskFull))
	gauge(descForwarded, float64(st.Forwarded))
	seen := map[[2]string]bool{}
	for _, s := range st.Standbys {
		key := [2]string{s.Name, s.Addr}
		if seen[key] { // sockets have no address to tell two of a name apart
			continue
		}
		seen[key] = true
		for _, p := range []struct {
			name string
			lsn  wal.LSN
			lag  uint64
		}{{"sent", s.Sent, s.SentLag}, {"write", s.Write, behind(s.Write, st.Position.Flushed)}, {"flush", s.Flush, s.FlushLag}, {"apply", s.Apply, s.ApplyLag}} {
			gauge(descStandby, float64(p.lsn), s.Name, s.Addr, p.name)
			gauge(descLag, float64(p.lag), s.Name, s.Addr, p.name)
		}
		gauge(descDelay, s.ApplyDelay, s.Name, s.Addr)
	}
	for _, s := range st.Slots {
		active := "false"
		if s.Active {
			active = "true"
		}
		gauge(descSlot, float64(behind(s.Restart, st.Position.Flushed)), s.Name, active)
	}
	r.stats.fsync.Collect(ch)
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
