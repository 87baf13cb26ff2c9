package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/nearcache/nearcache"
)

// errNoRealRedis says what -shared lacks.
var errNoRealRedis = errors.New(`-shared needs a real Redis, and none is named; the one in memory will not do. Start one, and name it:

  redis-server --port 6390 --save ""
  REDIS_CONNECTION_STRING=localhost:6390 go run ./examples/cluster -shared`)

// The second run is given so much more time than the first, to read as much.
const mostTimes = 4

var errMoreReads = errors.New("the source was read more often with sharing than without")

// trySharing fails if nothing can be shared on that backplane. An instance would go
// on without, and say nothing.
func trySharing(ctx context.Context, backplane *nearcache.Backplane) error {
	cache, err := nearcache.New(backplane, nearcache.Options[int, int]{
		Name:   "try",
		Load:   func(context.Context, int) (int, error) { return 1, nil },
		TTL:    time.Second,
		Shared: &nearcache.SharedOptions[int]{},
	})
	if err != nil {
		return err
	}
	for try := range 5 { // a busy machine may need more than one
		before := cache.Stats().Shared
		if _, err := cache.Get(ctx, try); err != nil {
			return err
		}
		if s := cache.Stats().Shared; s.Skipped == before.Skipped && s.Errors == before.Errors {
			return nil
		}
		pause(ctx, 100*time.Millisecond)
	}
	return errors.New("nothing can be shared on this Redis: it does not tell its history (INFO replication), " +
		"or the user lacks rights, which docs/redis.md lists, or it takes more than 250 ms for an answer")
}

// compare runs the experiment without sharing and with it. Its error is errMoreReads
// if that spared the source nothing.
func (e *experiment) compare(ctx context.Context) error {
	fmt.Fprintf(e.out, "FIRST RUN: values are not shared.\n\n")
	without, err := e.run(ctx, false, 0)
	if err != nil {
		return err
	}
	if ctx.Err() == nil {
		e.table.begin()
		fmt.Fprintf(e.out, "\nSECOND RUN: values are shared, in Redis.\n\n")
		with, err := e.run(ctx, true, without.served)
		if err != nil {
			return err
		}
		if ctx.Err() == nil {
			return printComparison(e.out, without, with)
		}
	}
	fmt.Fprintln(e.out, "\nThe runs were cut short, so they are not compared.")
	return nil
}

// printComparison compares two runs by what the source counted itself.
func printComparison(out io.Writer, without, with verdict) error {
	fmt.Fprintf(out, "\nTHE SOURCE WAS READ\n")
	for _, run := range []struct {
		name string
		v    verdict
	}{{"without sharing", without}, {"with sharing", with}} {
		fmt.Fprintf(out, "  %-16s %8s times for %s reads by users\n", run.name+":", grouped(uint64(run.v.asked)), grouped(uint64(run.v.served)))
	}
	switch {
	case with.asked > without.asked:
		fmt.Fprintln(out, "FAILED: with sharing it was read more often than without.")
		if with.gaps > 0 || with.unconfirmed > 0 {
			fmt.Fprintln(out, "Redis was away in the second run: then each instance loads for itself, and does so more often.")
		}
		return errMoreReads
	case with.found == 0:
		fmt.Fprintln(out, "FAILED: no instance found a value in Redis.")
		return errMoreReads
	}
	fmt.Fprintf(out, "OK: sharing spared it %s of its reads, and nothing was served too late.\n",
		percent(uint64(without.asked-with.asked), uint64(without.asked)))
	return nil
}
