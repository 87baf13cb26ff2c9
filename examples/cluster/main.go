// Cluster shows caches staying in step across processes. It starts three
// instances of a small service, reads from all of them, changes items behind
// their backs, and shows once a second what that costs and how soon a change
// made through one instance is served by the others:
//
//	go run ./examples/cluster
//
// It needs nothing: without a Redis it starts one of its own, in memory. To use a
// real one, name it, in any form that BackplaneOptions.RedisConnectionString
// takes. The environment is the place for a password, since any user of the
// machine may see a command line:
//
//	REDIS_CONNECTION_STRING=localhost:6379 go run ./examples/cluster
//
// Flags:
//
//	-redis STRING      the Redis to use; wins over REDIS_CONNECTION_STRING
//	-instances N       processes to start, 1 to 16 (3)
//	-duration D        how long to run, up to 1h (15s)
//	-read-delay D      what reading the source takes, about (3ms)
//	-products N        products in the catalogue, at least 20 (10000)
//	-reads N           reads per second to aim for, of all instances together (30000)
//	-changes N         changes per second to aim for (25)
//
// On a terminal it redraws a table; elsewhere it prints a line a second, and the
// table at the end.
//
// It exits with 1 if an instance served anything superseded more than two seconds
// before it was asked, or if something failed; with 2 if the flags are wrong. The
// two seconds count from when the source took the next version, whether or not
// Redis accepted the invalidation. Ctrl-C ends it early, with a verdict on the
// time it ran.
//
// Other things to try while it runs: ask an instance, its address is printed
// (curl '…/products?ids=1,2', curl …/stats); kill an instance; with a real Redis,
// stop that, freeze it, and start it again. The verdict stays OK: an instance that
// does not hear of Redis any more serves each item for a second and then loads it
// anew (BackplaneOptions.MaxStaleness, which is set to a second here), and one
// that finds it has missed messages clears all it holds. A run leaves one small
// key in a real Redis, named after its channel.
//
// Start reading at instance.go: it is the service, and all there is to using
// nearcache. The rest is the experiment around it: catalogue.go is the source of
// truth, ledger.go judges reads by it, traffic.go reads and changes, sightings.go
// keeps book, table.go and verdict.go show it, fleet.go and child.go are the
// processes.
package main

import (
	"context"
	"crypto/rand"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/alicebob/miniredis/v2"

	"github.com/nearcache/nearcache"
)

const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == instanceCommand {
		os.Exit(instanceMain())
	}
	os.Exit(clusterMain(os.Args[1:], os.Stdout, os.Stderr))
}

func clusterMain(args []string, stdout *os.File, stderr io.Writer) int {
	s, err := parseFlags(args, stderr)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		return exitUsage // parseFlags has said why
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second Ctrl-C ends the program at once

	err = run(ctx, s, stdout, stderr)
	switch {
	case err == nil:
		return exitOK
	case errors.Is(err, nearcache.ErrOptions):
		fmt.Fprintln(stderr, "cluster:", err)
		return exitUsage
	case errors.Is(err, errViolation): // the verdict has said so
		return exitFailure
	default:
		fmt.Fprintln(stderr, "cluster:", err)
		return exitFailure
	}
}

// run is the experiment from beginning to end. Its error is errViolation if it
// ran and found one.
func run(ctx context.Context, s settings, stdout *os.File, stderr io.Writer) error {
	where := "your Redis"
	if s.redis == "" {
		embedded, err := miniredis.Run()
		if err != nil {
			return fmt.Errorf("start a Redis in memory: %w", err)
		}
		defer embedded.Close()
		s.redis, where = embedded.Addr(), "a Redis in memory"
	}
	// A channel for each run, so that two runs on one Redis are two clusters.
	channel := "cluster-demo-" + rand.Text()[:8]
	if err := reachRedis(ctx, s.redis, channel); err != nil {
		return err
	}

	catalogue := newCatalogue(s.products, s.readDelay)
	source, err := serve(catalogue.handler())
	if err != nil {
		return fmt.Errorf("serve the catalogue: %w", err)
	}
	defer source.close()

	table := newTable(stdout)
	var logs logTail
	if table.redraws {
		defer logs.release(stderr)
	} else {
		logs.release(stderr)
	}
	child := childSettings{redis: s.redis, channel: channel, source: source.url}
	fleet, err := startFleet(ctx, s.instances, child, &logs)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "%d instances on %s, channel %s\n", s.instances, where, channel)
	for _, p := range fleet.processes {
		fmt.Fprintf(stdout, "  instance %-2d  pid %-7d  %s\n", p.number, p.pid(), p.url)
	}
	fmt.Fprint(stdout, legend)

	traffic := newTraffic(catalogue, fleet.clients(), s)
	final, ran, err := observe(ctx, traffic, fleet, table, s.duration)

	// They end before the verdict, so that one that ends badly is part of it.
	err = errors.Join(fleet.stop(), err)
	v := newVerdict(ran, final, traffic)
	v.failed = err != nil
	v.print(stdout)
	if err == nil && v.violation != "" {
		err = errViolation
	}
	return err
}

// observe lets the traffic run, and shows it once a second, until the duration is
// over, ctx ends or something fails. It returns the instances' last statistics and
// how long the traffic ran.
func observe(ctx context.Context, traffic *traffic, fleet *fleet, table *table, duration time.Duration) (
	final []nearcache.BackplaneStats, ran time.Duration, err error,
) {
	limited, cancel := context.WithTimeout(ctx, duration)
	defer cancel()
	running, fail := context.WithCancelCause(limited)
	defer fail(nil)
	defer fleet.onExit(fail)()

	start := time.Now()
	wait := traffic.start(running, fail)
	var last []nearcache.BackplaneStats
	lastAt := start
	for pause(running, time.Until(lastAt.Add(time.Second))) {
		now, err := traffic.stats(running)
		if err != nil {
			fail(err) // which ends running, and so the loop
			continue
		}
		nowAt := time.Now()
		table.progress(nowAt.Sub(start), duration, traffic.rows(last, now, nowAt.Sub(lastAt)))
		last, lastAt = now, nowAt
	}
	wait()
	ran = time.Since(start)
	if cause := context.Cause(running); cause != context.Cause(limited) {
		return last, ran, cause // nothing but fail makes them differ
	}
	if final, err = traffic.stats(ctx); err != nil {
		return last, ran, err
	}
	table.finish(ran, traffic.rows(nil, final, ran))
	return final, ran, nil
}

// reachRedis fails if the instances would fail to reach Redis: one clear error
// instead of one for each. It also fails where a connection string with
// abortConnect=False lets an instance start without Redis.
func reachRedis(ctx context.Context, connectionString, channel string) error {
	backplane, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: connectionString,
		Channel:               channel,
		Logger:                slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	return errors.Join(awaitLive(ctx, backplane), backplane.Close())
}

func awaitLive(ctx context.Context, backplane *nearcache.Backplane) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	for backplane.State() != nearcache.StateLive {
		if !pause(ctx, 10*time.Millisecond) {
			return fmt.Errorf("the backplane did not reach Redis, it is still %v: %w", backplane.State(), ctx.Err())
		}
	}
	return nil
}
