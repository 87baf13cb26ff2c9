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
//	-shared            run twice, and keep values in Redis the second time
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
// With -shared it runs twice: first as before, and then with Options.Shared, so that
// instances find in Redis what others have loaded. The second run ends when its users
// have read as much as those of the first. The verdict compares how often the source was
// read, and the program exits with 1 if that was more often with sharing. This needs a
// real Redis: the one in memory does not show its history, so nothing is shared on it.
//
//	redis-server --port 6390 --save ""
//	REDIS_CONNECTION_STRING=localhost:6390 go run ./examples/cluster -shared
//
// Other things to try while it runs: send requests to an instance, whose address is
// printed (curl '…/products?ids=1,2', curl …/stats); kill an instance; stop, freeze and
// start a real Redis. The verdict stays OK. An instance that gets no answer from Redis
// serves each item for a second and then loads it again (BackplaneOptions.MaxStaleness,
// which is a second here). An instance that has missed messages clears all its caches.
// (With -shared, do not stop Redis: nothing is shared meanwhile, so the two runs cannot be
// compared.) A run leaves keys in a real Redis, named after its channel: a small one, and
// with -shared another small one and the values, which expire within minutes.
//
// Start reading at instance.go: it is the service, and the only file that uses nearcache
// as a service does. The rest is the experiment: catalogue.go is the source of truth,
// ledger.go judges reads by it, traffic.go reads and changes, sightings.go counts what was
// served, table.go and verdict.go print it, compare.go runs it twice, and fleet.go and
// child.go are the processes.
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
	"github.com/redis/go-redis/v9/logging"

	"github.com/nearcache/nearcache"
)

const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	logging.Disable() // of the Redis client, for the process: what matters nearcache logs
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
	case errors.Is(err, nearcache.ErrInvalidOptions), errors.Is(err, errNoRealRedis):
		fmt.Fprintln(stderr, "cluster:", err)
		return exitUsage
	case errors.Is(err, errViolation), errors.Is(err, errMoreReads): // the verdict has said so
		return exitFailure
	default:
		fmt.Fprintln(stderr, "cluster:", err)
		return exitFailure
	}
}

// run runs the experiment, once or twice. Its error is errViolation if it ran and
// found one.
func run(ctx context.Context, s settings, stdout *os.File, stderr io.Writer) error {
	where := "your Redis"
	switch {
	case s.redis == "" && s.shared:
		return errNoRealRedis
	case s.redis == "":
		embedded, err := miniredis.Run()
		if err != nil {
			return fmt.Errorf("start a Redis in memory: %w", err)
		}
		defer embedded.Close()
		s.redis, where = embedded.Addr(), "a Redis in memory"
	}
	if err := reachRedis(ctx, s.redis, s.shared); err != nil {
		return err
	}

	table := newTable(stdout)
	var logs logTail
	if table.redraws {
		defer logs.release(stderr)
	} else {
		logs.release(stderr)
	}
	e := experiment{settings: s, where: where, table: table, logs: &logs, out: stdout}
	if s.shared {
		return e.compare(ctx)
	}
	_, err := e.run(ctx, false, 0)
	return err
}

// experiment is what can be run more than once.
type experiment struct {
	settings
	where string // the Redis is
	table *table
	logs  *logTail
	out   io.Writer
}

// run runs the experiment from beginning to end, on instances that share values in
// Redis or do not. It ends after its duration, or after enough reads if that is not 0. The
// source and the instances are new each time.
func (e *experiment) run(ctx context.Context, shared bool, enough int64) (v verdict, err error) {
	catalogue := newCatalogue(e.products, e.readDelay)
	source, err := serve(catalogue.handler())
	if err != nil {
		return v, fmt.Errorf("serve the catalogue: %w", err)
	}
	defer source.close()

	channel := newChannel()
	child := childSettings{redis: e.redis, channel: channel, source: source.url, shared: shared}
	fleet, err := startFleet(ctx, e.instances, child, e.logs)
	if err != nil {
		return v, err
	}
	fmt.Fprintf(e.out, "%d instances on %s, channel %s\n", e.instances, e.where, channel)
	for _, p := range fleet.processes {
		fmt.Fprintf(e.out, "  instance %-2d  pid %-7d  %s\n", p.number, p.pid(), p.url)
	}
	if shared { // it was said before
		fmt.Fprintln(e.out)
	} else {
		fmt.Fprint(e.out, legend)
	}

	traffic := newTraffic(catalogue, fleet.clients(), e.settings)
	traffic.enough = enough
	duration, goal := e.duration, e.duration.String()
	if enough > 0 {
		duration, goal = mostTimes*e.duration, "about "+goal
	}
	final, ran, err := observe(ctx, traffic, fleet, e.table, duration, goal)

	// They end before the verdict, so that one that ends badly is part of it.
	err = errors.Join(fleet.stop(), err)
	v = newVerdict(ran, final, traffic)
	v.brokeOff = err != nil
	v.print(e.out)
	if err == nil && v.violation != "" {
		err = errViolation
	}
	return v, err
}

// observe lets the traffic run, and shows it once a second, until the duration is
// over, enough was read, ctx ends or something fails. It returns the instances' last statistics and
// how long the traffic ran.
func observe(ctx context.Context, traffic *traffic, fleet *fleet, table *table, duration time.Duration, goal string) (
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
		table.progress(nowAt.Sub(start), goal, traffic.rows(last, now, nowAt.Sub(lastAt)))
		last, lastAt = now, nowAt
	}
	wait()
	ran = time.Since(start)
	if cause := context.Cause(running); cause != context.Cause(limited) && !errors.Is(cause, errEnough) {
		return last, ran, cause // nothing but fail makes them differ
	}
	if final, err = traffic.stats(ctx); err != nil {
		return last, ran, err
	}
	table.finish(ran, traffic.rows(nil, final, ran))
	return final, ran, nil
}

// newChannel returns an unused channel, so that two runs on one Redis are two
// clusters.
func newChannel() string { return "cluster-demo-" + rand.Text()[:8] }

// reachRedis fails if the instances would fail to reach Redis, or to share values
// there if they are to: one clear error instead of one for each. It also fails where
// a connection string with abortConnect=False lets an instance start without Redis.
func reachRedis(ctx context.Context, connectionString string, shared bool) error {
	backplane, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: connectionString,
		Channel:               newChannel(),
		Logger:                slog.New(slog.DiscardHandler),
	})
	if err != nil {
		return err
	}
	err = awaitLive(ctx, backplane)
	if err == nil && shared {
		err = trySharing(ctx, backplane)
	}
	return errors.Join(err, backplane.Close())
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
