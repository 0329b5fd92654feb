package main

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"rideau/archive"
)

// Units of --keep, in PostgreSQL's spelling (src/backend/utils/misc/guc.c) with
// the two it lacks where WAL is counted: weeks, and sizes without their B. Case
// is ignored, there is no unit here for which it matters.
var (
	sizeUnits = map[string]int64{
		"kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40,
		"k": 1 << 10, "g": 1 << 30, "t": 1 << 40, // not "m": is it MB or minutes?
	}
	ageUnits = map[string]time.Duration{
		"s": time.Second, "min": time.Minute, "h": time.Hour, "d": 24 * time.Hour, "w": 7 * 24 * time.Hour,
	}
)

// parseKeep reads how much WAL to keep: a size ("20GB"), an age ("7d", "36h"),
// or "all", which is also what "" means.
func parseKeep(s string) (archive.Keep, error) {
	text := strings.TrimSpace(s)
	if text == "" || strings.EqualFold(text, "all") {
		return archive.Keep{}, nil
	}
	digits := strings.IndexFunc(text, func(r rune) bool { return (r < '0' || r > '9') && r != '.' })
	if digits < 0 {
		return archive.Keep{}, fmt.Errorf("%q has no unit", s)
	}
	number, err := strconv.ParseFloat(text[:digits], 64)
	if err != nil {
		return archive.Keep{}, fmt.Errorf("%q is neither a size nor an age", s)
	}
	if number == 0 {
		return archive.Keep{}, fmt.Errorf("%q would keep nothing", s)
	}
	unit := strings.ToLower(strings.TrimSpace(text[digits:]))
	product := number * float64(max(sizeUnits[unit], int64(ageUnits[unit])))
	switch {
	case product == 0:
		return archive.Keep{}, fmt.Errorf("%q has an unknown unit %q", s, strings.TrimSpace(text[digits:]))
	case product >= math.MaxInt64:
		return archive.Keep{}, fmt.Errorf("%q is too much to count", s)
	case product < 1:
		return archive.Keep{}, fmt.Errorf("%q would keep nothing", s)
	case ageUnits[unit] != 0:
		return archive.Keep{Age: time.Duration(product)}, nil
	}
	return archive.Keep{Size: int64(product)}, nil
}

const keepHint = `Give a size (kB, MB, GB, TB) or an age (min, h, d, w), such as 20GB or 7d, or "all".`
