package main

import (
	"context"
	"os"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/redis/go-redis/v9"

	"github.com/nearcache/nearcache/benchmarks/internal/result"
)

// machine describes where the program runs.
func machine() result.Machine {
	return result.Machine{
		CPU:   processor(),
		Cores: runtime.GOMAXPROCS(0),
		OS:    runtime.GOOS + "/" + runtime.GOARCH,
		Go:    runtime.Version(),
	}
}

// processor returns the name of the CPU where the system tells it.
func processor() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}

// modules returns the versions of what the program was built with.
func modules() map[string]string {
	versions := map[string]string{}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			versions[m.Path] = m.Version
			if m.Replace != nil {
				versions[m.Path] = "this repository"
			}
		}
	}
	return versions
}

func redisVersion(address string) string {
	client := redis.NewClient(&redis.Options{Addr: address})
	defer client.Close()
	info, _ := client.Info(context.Background(), "server").Result()
	for line := range strings.Lines(info) {
		if version, ok := strings.CutPrefix(line, "redis_version:"); ok {
			return strings.TrimSpace(version)
		}
	}
	return ""
}
