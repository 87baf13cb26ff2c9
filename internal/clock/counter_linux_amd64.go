//go:build !nearcache_noasm

package clock

import (
	"os"
	"strings"
)

const hasCounter = true

// counter reads the time stamp counter (RDTSC). Go has no function for it, so it is in
// assembly; the build tag nearcache_noasm leaves it out. The processor may execute the
// instruction a little earlier or later than those around it, which moves a reading by
// nanoseconds.
func counter() uint64

// invariant reports whether the processor, or its hypervisor, promises a counter that
// runs at a constant speed, also in sleep (CPUID, leaf 80000007H).
func invariant() bool

// counterIsTheClock reports whether the kernel computes its clock from the counter.
//
//   - "tsc" is the counter itself. The kernel uses it only if it runs at a constant speed,
//     also in sleep, and is the same on all processors.
//   - "kvm-clock" is the counter too, scaled and shifted as the hypervisor says. When the
//     hypervisor suspends or moves the machine, it may change scale and shift, and may
//     give the machine another counter. Fast asks the system again within a window.
//
// Other hypervisors' clocks may work as well, but none was tried.
func counterIsTheClock() bool {
	source, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	if err != nil {
		return false
	}
	switch strings.TrimSpace(string(source)) {
	case "tsc":
		return true
	case "kvm-clock":
		return invariant()
	}
	return false
}
