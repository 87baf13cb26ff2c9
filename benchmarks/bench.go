package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/nearcache/nearcache/benchmarks/internal/measure"
	"github.com/nearcache/nearcache/benchmarks/internal/result"
	"github.com/nearcache/nearcache/benchmarks/internal/subject"
	"github.com/nearcache/nearcache/internal/redistest"
)

type settings struct {
	out      string
	only     []string
	subjects []string
	rounds   int
	turn     time.Duration
	quick    bool
	traces   string
	large    bool
}

// fewer returns the rounds of sections that need not tell small differences.
func (s settings) fewer() int { return (s.rounds + 1) / 2 }

// A section is measured as a whole, and rendered from what is in the file.
type section struct {
	name    string
	measure func(context.Context, *bench) error
	render  func(*report)
}

func sections() []section {
	return []section{
		{hitSection, measureHits, renderHits},
		{mixedSection, measureMixed, renderMixed},
		{missSection, measureMisses, renderMisses},
		{ratioSection, measureRatios, renderRatios},
		{memorySection, measureMemory, renderMemory},
		{gcSection, measureGC, renderGC},
		{invalidationSection, measureInvalidation, renderInvalidation},
		{clearSection, measureClears, renderClears},
		{sharedSection, measureShared, renderShared},
	}
}

func sectionNames() (names []string) {
	for _, s := range sections() {
		names = append(names, s.name)
	}
	return names
}

// bench is one run of the measurements.
type bench struct {
	settings
	file  *result.File
	redis *redistest.Server // nil: not installed
}

// errNoRedis says that a section was left out.
var errNoRedis = errors.New("redis-server is not installed")

func newBench(s settings) (*bench, error) {
	for _, name := range s.only {
		if !slices.Contains(sectionNames(), name) {
			return nil, fmt.Errorf("there is no section %q, only %s", name, strings.Join(sectionNames(), ", "))
		}
	}
	b := &bench{settings: s, file: &result.File{
		Machine: machine(), Modules: modules(), Rounds: s.rounds, Quick: s.quick, Began: time.Now().UTC().Truncate(time.Second),
	}}
	server, err := measure.StartServer()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		b.progress("%v: what needs it is left out", errNoRedis)
	case err != nil:
		return nil, err
	default:
		b.redis = server
		b.file.Machine.Redis = redisVersion(server.Addr)
	}
	return b, nil
}

func (b *bench) close() {
	if b.redis != nil {
		b.redis.Kill()
	}
}

// address returns where Redis is, or nothing.
func (b *bench) address() string {
	if b.redis == nil {
		return ""
	}
	return b.redis.Addr
}

// measure measures the chosen sections, one after the other, and goes on where one
// fails.
func (b *bench) measure(ctx context.Context) error {
	defer func() { b.file.Took = time.Since(b.file.Began).Round(time.Second) }()
	var failed error
	for _, s := range sections() {
		if len(b.only) > 0 && !slices.Contains(b.only, s.name) {
			continue
		}
		start := time.Now()
		if err := s.measure(ctx, b); err != nil {
			b.file.Note(s.name, "Left out, all or in part: %v.", err)
			if !errors.Is(err, errNoRedis) {
				failed = errors.Join(failed, fmt.Errorf("%s: %w", s.name, err))
			}
		}
		if ctx.Err() != nil {
			return errors.Join(failed, ctx.Err())
		}
		b.progress("%s: %v", s.name, time.Since(start).Round(time.Second))
	}
	return failed
}

func (b *bench) progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, format+"\n", args...)
}

// chosen returns the subjects that were asked for and can be opened here.
func chosen[K subject.Key](b *bench, subjects []subject.Subject[K]) []subject.Subject[K] {
	return slices.DeleteFunc(subject.Chosen(subjects, b.subjects), func(s subject.Subject[K]) bool {
		return s.NeedsRedis && b.redis == nil
	})
}

// rotated returns the numbers below n, beginning with another in each round.
func rotated(n, round int) []int {
	order := make([]int, n)
	for i := range order {
		order[i] = (i + round) % n
	}
	return order
}

// goroutines returns 1, 2, 4 and so on up to four times the cores, and as many as
// there are cores.
func goroutines() []int {
	numbers := []int{runtime.GOMAXPROCS(0)}
	for n := 1; n <= 4*runtime.GOMAXPROCS(0); n *= 2 {
		numbers = append(numbers, n)
	}
	slices.Sort(numbers)
	return slices.Compact(numbers)
}
