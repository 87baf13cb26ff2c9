//go:build !linux || !(amd64 || arm64)

package clock

const hasCounter = false

func counter() uint64 { return 0 }

func counterIsTheClock() bool { return false }
