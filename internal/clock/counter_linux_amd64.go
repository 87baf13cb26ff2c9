package clock

import (
	"os"
	"strings"
)

const hasCounter = true

// counter reads the time stamp counter (RDTSC). It is not ordered with the
// instructions around it, which moves a reading by nanoseconds.
func counter() uint64

// counterIsTheClock reports whether the kernel makes its clock from the counter.
// It does so only if the counter runs at one speed, also in sleep, and alike on
// all processors. The clocks that a hypervisor provides correct the counter: with
// those the system's clock is read.
func counterIsTheClock() bool {
	source, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/current_clocksource")
	return err == nil && strings.TrimSpace(string(source)) == "tsc"
}
