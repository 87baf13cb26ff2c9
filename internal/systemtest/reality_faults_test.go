//go:build unix

package systemtest

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
)

// deck deals the kinds of a lane of faults in random order, each before any comes
// again.
type deck struct {
	kinds []faultKind
	left  []faultKind
	dealt int
}

type faultKind struct {
	name   string
	happen func(r *rand.Rand)
}

func (d *deck) next(r *rand.Rand) faultKind {
	if len(d.left) == 0 {
		d.left = append(d.left, d.kinds...)
		r.Shuffle(len(d.left), func(i, j int) { d.left[i], d.left[j] = d.left[j], d.left[i] })
	}
	kind := d.left[0]
	d.left = d.left[1:]
	d.dealt++
	return kind
}

// dealtAll reports whether every kind was dealt.
func (d *deck) dealtAll() bool { return d.dealt >= len(d.kinds) }

// between draws a duration.
func between(r *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(r.Int64N(int64(most-least)))
}

// awaitWriter waits until it has just become the turn of such a writer, and what
// was written before has come.
func awaitWriter(is func(writer int) bool) (now int) {
	for is(writer()) {
		time.Sleep(time.Millisecond)
	}
	for now = writer(); !is(now); now = writer() {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond)
	return now
}

// redisFaults are those of Redis itself, which all instances suffer. They run in
// the test's goroutine.
func (run *realityRun) redisFaults() *deck {
	ctx := context.Background()
	do := func(args ...any) {
		run.t.Helper()
		require.NoError(run.t, run.redis.raw.Do(ctx, args...).Err(), "%v", args)
	}
	wait := func(r *rand.Rand, least, most time.Duration) { time.Sleep(between(r, least, most)) }
	// forbid takes rights from the instances and gives all back.
	forbid := func(rights string, meanwhile func()) {
		allow(run.t, run.redis.raw, rights)
		meanwhile()
		allow(run.t, run.redis.raw, realityRights)
	}
	frozen := func(r *rand.Rand, least, most time.Duration) {
		run.redis.master.freeze()
		wait(r, least, most)
		run.redis.master.thaw()
	}
	return &deck{kinds: []faultKind{
		{"Redis killed, restarts empty", func(r *rand.Rand) {
			run.redis.master.kill()
			wait(r, 0, shortBound)
			run.redis.master.forget()
			run.redis.master.restart()
		}},
		{"Redis killed, restarts with its data", func(r *rand.Rand) {
			run.redis.master.persist(run.redis.raw)
			run.redis.master.kill()
			wait(r, 0, shortBound)
			run.redis.master.restart()
			run.redis.master.forget()
		}},
		{"Redis stopped for a short while", func(r *rand.Rand) { frozen(r, 0, shortBound/2) }},
		{"Redis stopped for long", func(r *rand.Rand) { frozen(r, realityBound, 2*realityBound) }},
		{"subscriptions killed", func(*rand.Rand) { do("CLIENT", "KILL", "TYPE", "pubsub") }},
		{"subscriptions killed while nobody writes", func(*rand.Rand) {
			awaitWriter(func(writer int) bool { return writer == -1 })
			do("CLIENT", "KILL", "TYPE", "pubsub")
		}},
		{"connections killed", func(*rand.Rand) { do("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes") }},
		{"subscribers too slow for a tiny buffer", func(r *rand.Rand) {
			do("CONFIG", "SET", "client-output-buffer-limit", "pubsub 65536 0 0")
			junk := strings.Repeat("junk", 100_000)
			for range 4 {
				do("PUBLISH", defaultChannel, junk)
				wait(r, 0, shortBound/8)
			}
			do("CONFIG", "SET", "client-output-buffer-limit", "pubsub 33554432 8388608 60")
		}},
		{"failover to a replica that lags", func(r *rand.Rand) {
			run.redis.holdReplication()
			wait(r, shortBound/4, shortBound) // what is written now is lost
			run.redis.failOver()
			for _, path := range run.paths {
				path.leadTo(run.redis.master.addr)
			}
			run.redis.startReplica()
		}},
		{"failover to a replica that lacks what others lack too", func(r *rand.Rand) {
			writer := awaitWriter(func(writer int) bool { return writer >= 0 })
			others := slices.Delete(slices.Clone(run.paths), writer, writer+1)
			run.redis.holdReplication()
			for _, path := range others {
				path.cut()
			}
			wait(r, shortBound/4, shortBound/3) // soon all will write
			run.redis.failOver()
			others[0].leadTo(run.redis.master.addr)
			others[0].resume()
			wait(r, shortBound, 2*shortBound) // the next to come will tell all to clear
			for _, path := range run.paths {
				path.leadTo(run.redis.master.addr)
				path.resume()
			}
			run.redis.startReplica()
		}},
		{"FLUSHALL", func(*rand.Rand) { do("FLUSHALL") }},
		{"position deleted", func(*rand.Rand) { do("DEL", defaultPosition) }},
		{"out of memory", func(r *rand.Rand) {
			do("CONFIG", "SET", "maxmemory", "1")
			wait(r, shortBound/4, 2*shortBound)
			do("CONFIG", "SET", "maxmemory", "0")
		}},
		{"channel forbidden", func(r *rand.Rand) {
			forbid("resetchannels &{nearcache}:*", func() { wait(r, shortBound/4, 2*shortBound) })
		}},
		{"own channels forbidden", func(r *rand.Rand) {
			forbid("resetchannels &nearcache", func() { wait(r, shortBound/4, 2*shortBound) })
		}},
		{"INFO forbidden", func(r *rand.Rand) {
			forbid("-info", func() {
				wait(r, shortBound/2, shortBound) // a probe finds out
				awaitWriter(func(writer int) bool { return writer == -1 })
				do("CLIENT", "KILL", "TYPE", "pubsub")
				wait(r, shortBound/2, shortBound)
			})
		}},
	}}
}

// pathFaults are those of one instance's path to Redis.
func (run *realityRun) pathFaults() *deck {
	on := func(fail func(r *rand.Rand, path *proxy)) func(*rand.Rand) {
		return func(r *rand.Rand) {
			path := run.paths[r.IntN(len(run.paths))]
			fail(r, path)
			time.Sleep(between(r, shortBound/4, 2*realityBound))
			path.resume()
		}
	}
	return &deck{kinds: []faultKind{
		{"path mute towards Redis", on(func(_ *rand.Rand, path *proxy) { path.mute(toRedis) })},
		{"path mute from Redis", on(func(_ *rand.Rand, path *proxy) { path.mute(fromRedis) })},
		{"path mute both ways", on(func(_ *rand.Rand, path *proxy) { path.mute(bothWays) })},
		{"path cut", on(func(_ *rand.Rand, path *proxy) { path.cut() })},
		{"path slow", on(func(r *rand.Rand, path *proxy) { path.slowDown(between(r, shortBound/60, shortBound/3)) })},
		{"path slow, then mute from Redis", on(func(r *rand.Rand, path *proxy) {
			path.slowDown(between(r, shortBound/8, shortBound/5)) // leases are kept, by echoes that are old
			time.Sleep(between(r, shortBound, 2*shortBound))
			path.mute(fromRedis)
		})},
	}}
}

// processFaults stop one instance's process, and have it go on.
func (run *realityRun) processFaults() *deck {
	stopped := func(least, most time.Duration) func(*rand.Rand) {
		return func(r *rand.Rand) {
			process := run.instances[r.IntN(len(run.instances))].cmd.Process
			_ = process.Signal(syscall.SIGSTOP)
			time.Sleep(between(r, least, most))
			_ = process.Signal(syscall.SIGCONT)
		}
	}
	return &deck{kinds: []faultKind{
		{"instance stopped for a short while", stopped(0, shortBound/2)},
		{"instance stopped for long", stopped(realityBound, 2*realityBound)},
	}}
}
