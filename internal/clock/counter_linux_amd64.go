package clock

import (
	"os"
	"strings"
)

const hasCounter = true

// counter reads the time stamp counter (RDTSC). It is not ordered with the
// instructions around it, which moves a reading by nanoseconds.
func counter() uint64

// invariant reports whether the processor, or the hypervisor that speaks for it,
// promises a counter that runs at one speed, also in sleep (CPUID, leaf 80000007H).
func invariant() bool

// counterIsTheClock reports whether the kernel makes its clock from the counter.
//
//   - "tsc" is the counter itself. The kernel takes it only if it runs at one speed,
//     also in sleep, and alike on all processors.
//   - "kvm-clock" is the counter too, scaled and shifted as the hypervisor says. It may
//     say so anew, and may give the machine another counter, when it suspends the
//     machine or moves it; within a window the system is asked again.
//
// Other hypervisors' clocks may do as well; none was tried.
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
