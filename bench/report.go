package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"text/tabwriter"
	"time"
)

// A series is one figure of one contender, a value for each round.
type series struct {
	Figure string    `json:"figure"` // "commit, 8 clients"
	Who    string    `json:"who"`    // "relay"
	Unit   string    `json:"unit"`
	Values []float64 `json:"values"`
	Median float64   `json:"median"`
}

// A comparison sets two series of a figure side by side, round by round.
type comparison struct {
	Figure      string    `json:"figure"`
	Ours        string    `json:"ours"`
	Peer        string    `json:"peer,omitempty"` // empty: Goal is a limit for our value itself
	Unit        string    `json:"unit"`
	OurMedian   float64   `json:"our_median"`
	PeerMedian  float64   `json:"peer_median,omitempty"`
	Ratios      []float64 `json:"ratios,omitempty"`
	Ratio       float64   `json:"ratio,omitempty"` // median of Ratios
	Goal        float64   `json:"goal,omitempty"`  // zero: none
	LessIsGood  bool      `json:"less_is_good,omitempty"`
	GoalReached *bool     `json:"goal_reached,omitempty"`
}

// results are all that was measured.
type results struct {
	Started     time.Time     `json:"started"`
	Took        float64       `json:"took_seconds"`
	Machine     machine       `json:"machine"`
	Config      config        `json:"config"`
	Series      []*series     `json:"series"`
	Comparisons []*comparison `json:"comparisons"`
}

// add appends a value to a series; one for each round, in order.
func (r *results) add(figure, who, unit string, value float64) {
	s := r.find(figure, who)
	if s == nil {
		s = &series{Figure: figure, Who: who, Unit: unit}
		r.Series = append(r.Series, s)
	}
	s.Values = append(s.Values, value)
	s.Median = median(s.Values)
}

func (r *results) find(figure, who string) *series {
	for _, s := range r.Series {
		if s.Figure == figure && s.Who == who {
			return s
		}
	}
	return nil
}

// compare takes our ratio to a peer, round by round, in figures of which more
// is better, and holds its median against goal; zero is no goal.
func (r *results) compare(figure, ours, peer string, goal float64) {
	c := r.sideBySide(figure, ours, peer)
	if goal > 0 {
		reached := c.Ratio >= goal
		c.Goal, c.GoalReached = goal, &reached
	}
}

// compareLess is compare for figures of which less is better.
func (r *results) compareLess(figure, ours, peer string) {
	r.sideBySide(figure, ours, peer).LessIsGood = true
}

func (r *results) sideBySide(figure, ours, peer string) *comparison {
	a, b := r.find(figure, ours), r.find(figure, peer)
	c := &comparison{Figure: figure, Ours: ours, Peer: peer, Unit: a.Unit, OurMedian: a.Median, PeerMedian: b.Median}
	for i := range min(len(a.Values), len(b.Values)) {
		if b.Values[i] == 0 {
			continue // too little to be measured
		}
		c.Ratios = append(c.Ratios, a.Values[i]/b.Values[i])
	}
	c.Ratio = median(c.Ratios)
	r.Comparisons = append(r.Comparisons, c)
	return c
}

// limit holds the greatest of our values below a goal.
func (r *results) limit(figure, who string, below float64) {
	s := r.find(figure, who)
	worst := slices.Max(s.Values)
	reached := worst < below
	r.Comparisons = append(r.Comparisons, &comparison{
		Figure: figure, Ours: who, Unit: s.Unit, OurMedian: worst, Goal: below, GoalReached: &reached, LessIsGood: true,
	})
}

// printSeries prints the series from the first on.
func (r *results) printSeries(w io.Writer, first int) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\twho\tmedian\tmin\tmax\tunit\tn")
	for _, s := range r.Series[first:] {
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", s.Figure, s.Who, number(s.Median),
			number(slices.Min(s.Values)), number(slices.Max(s.Values)), s.Unit, len(s.Values))
	}
	t.Flush()
	fmt.Fprintln(w)
}

// printComparisons prints the closing table.
func (r *results) printComparisons(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "figure\tours\tpeer\tratio\tmin-max\tgoal\treached")
	for _, c := range r.Comparisons {
		ours := fmt.Sprintf("%s %s", number(c.OurMedian), c.Unit)
		peer, ratio, spread, goal, reached := "-", "-", "", "-", ""
		if c.Peer != "" {
			peer = fmt.Sprintf("%s %s", number(c.PeerMedian), c.Peer)
		}
		if len(c.Ratios) > 0 {
			ratio = fmt.Sprintf("%.2fx", c.Ratio)
			spread = fmt.Sprintf("%.2f-%.2f", slices.Min(c.Ratios), slices.Max(c.Ratios))
		}
		switch {
		case c.Goal > 0 && c.Peer != "":
			goal = fmt.Sprintf(">= %.2fx", c.Goal)
		case c.Goal > 0:
			goal = fmt.Sprintf("< %s %s", number(c.Goal), c.Unit)
		case c.LessIsGood:
			goal = "less is better"
		}
		if c.GoalReached != nil {
			reached = map[bool]string{true: "yes", false: "NO"}[*c.GoalReached]
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Figure, ours, peer, ratio, spread, goal, reached)
	}
	t.Flush()
}

// write leaves the results in a file of their own and returns its name.
func (r *results) write(dir string) (string, error) {
	text, err := json.MarshalIndent(r, "", "\t")
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", err
	}
	name := filepath.Join(dir, r.Started.UTC().Format("20060102T150405Z")+".json")
	return name, os.WriteFile(name, append(text, '\n'), 0o644)
}

func number(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.3f", v)
}

func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	if n == 0 {
		return 0
	}
	return (v[(n-1)/2] + v[n/2]) / 2
}

// quantile is the least value that a share q of all are not above.
func quantile(sorted []time.Duration, q float64) time.Duration {
	i := int(q*float64(len(sorted)) + 0.999999)
	return sorted[min(max(i, 1), len(sorted))-1]
}
