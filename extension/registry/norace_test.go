//go:build !race

package registry

// raceDetector says whether the tests run with it.
const raceDetector = false
