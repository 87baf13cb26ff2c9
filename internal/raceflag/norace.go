//go:build !race

// Package raceflag tells tests whether they run under the race detector, which makes
// them many times slower and lets them allocate more.
package raceflag

// Enabled reports whether the race detector is on.
const Enabled = false
