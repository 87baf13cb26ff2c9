//go:build linux && (amd64 || arm64)

package clock

import (
	"os"
	"strings"
)

const hasCounter = true

// counter reads the processor's counter of time: the time stamp counter (RDTSC)
// on amd64, the virtual counter (CNTVCT_EL0) on arm64. It is not ordered with the
// instructions around it, which moves a reading by nanoseconds.
//
//go:noescape
func counter() uint64

// counterIsTheClock reports whether the kernel makes its clock from the counter.
// On amd64 it does so only if the counter runs at one speed, also in sleep, and
// alike on all processors; the clocks that a hypervisor provides, which correct
// the counter, are left alone. On arm64 the architecture demands as much.
func counterIsTheClock() bool {
	source, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	if err != nil {
		return false
	}
	switch strings.TrimSpace(string(source)) {
	case "tsc", "arch_sys_counter":
		return true
	}
	return false
}
