//go:build !race

package nearcache

// proofSeeds is how many schedules TestProof runs: as many as half a minute of two
// processors is enough for.
const proofSeeds = 1000
