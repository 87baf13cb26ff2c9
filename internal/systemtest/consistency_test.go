package systemtest

import (
	"context"
	"errors"
	"math/rand/v2"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// TestRandomConsistency lets writers, readers, and one who closes connections
// loose on three instances. Again and again it stops the writes, waits until
// everything that Redis accepted has arrived, and then checks that:
//
//  1. whatever an instance holds is what the source says
//  2. no write has ended in anything but a confirmation or ErrUnconfirmed
//  3. no Get has failed
//
// NEARCACHE_TEST_SEED repeats a run, as far as the scheduler lets it.
func TestRandomConsistency(t *testing.T) {
	t.Parallel()
	const keys, writers, rounds = 40, 4, 4
	seed := testSeed(t)

	ctx := context.Background()
	server := startRedis(t)
	raw := server.client()
	src := newSource()
	all := make([]string, keys)
	for i := range all {
		all[i] = []string{"red/", "blue/", "red,blue/", "/"}[i%4] + strconv.Itoa(i)
	}
	slowly := func(ctx context.Context, key string) (int, error) {
		v, err := src.load(ctx, key)
		if v%3 == 0 { // long enough to be overtaken at times
			time.Sleep(200 * time.Microsecond)
		}
		return v, err
	}
	var fleet []*instance
	for i := range 3 {
		fleet = append(fleet, join(t, slowly, server.addr+",name=instance"+strconv.Itoa(i)))
	}

	var unconfirmed, confirmed atomic.Int64
	write := func(r *rand.Rand) {
		in, key := fleet[r.IntN(len(fleet))], all[r.IntN(keys)]
		var err error
		switch n := r.IntN(20); {
		case n < 10:
			src.write(key)
			err = in.items.Remove(ctx, key)
		case n < 17:
			_, err = in.items.Update(ctx, key, func(ctx context.Context) (int, error) {
				src.write(key)
				return slowly(ctx, key)
			})
		case n < 19:
			src.write("red/0", "red/4", "red,blue/2")
			err = in.items.ClearRegion(ctx, "red")
		default:
			src.write(all...)
			err = in.items.Clear(ctx)
		}
		switch {
		case err == nil:
			confirmed.Add(1)
		case errors.Is(err, nearcache.ErrUnconfirmed):
			unconfirmed.Add(1)
		default:
			t.Errorf("a write returns %v", err)
		}
	}

	held := 0
	for round := range rounds {
		var writing, reading sync.WaitGroup
		var settled atomic.Bool
		t.Cleanup(func() { settled.Store(true) })
		end := time.Now().Add(400 * time.Millisecond)
		start := func(group *sync.WaitGroup, i int, goOn func() bool, step func(*rand.Rand)) {
			r := rand.New(rand.NewPCG(seed, uint64(100*round+i)))
			group.Go(func() {
				for goOn() {
					step(r)
				}
			})
		}
		untilEnd := func() bool { return time.Now().Before(end) }
		for i := range writers {
			start(&writing, i, untilEnd, write)
		}
		for i, in := range fleet {
			// To the last, so that much is held when it is compared.
			start(&reading, 10+i, func() bool { return !settled.Load() }, func(r *rand.Rand) {
				_, err := in.items.Get(ctx, all[r.IntN(keys)])
				assert.NoError(t, err)
			})
		}
		start(&writing, 20, untilEnd, func(r *rand.Rand) {
			time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
			kind := []string{"pubsub", "pubsub", "normal"}[r.IntN(3)]
			killConnections(t, raw, kind, "instance"+strconv.Itoa(r.IntN(len(fleet))))
		})
		writing.Wait()

		for _, in := range fleet {
			require.NoError(t, within(t, "Flush returns", func() error { return in.bp.Flush(ctx) }))
		}
		barrier(t, raw, fleet...)
		settled.Store(true)
		reading.Wait()
		for i, in := range fleet {
			for _, key := range all {
				if v, ok := in.items.Peek(key); ok {
					held++
					require.Equal(t, src.version(key), v, "instance %d, %s", i, key)
				}
			}
		}
	}
	assert.Positive(t, held, "so much has been compared")
	var gaps, subscribed, applied uint64
	for _, in := range fleet {
		s := in.bp.Stats()
		gaps, subscribed, applied = gaps+s.Clears.Gaps(), subscribed+s.Subscribed, applied+s.Applied
	}
	t.Logf("%d confirmed, %d unconfirmed, %d applied, %d gaps, %d subscriptions, %d items compared",
		confirmed.Load(), unconfirmed.Load(), applied, gaps, subscribed, held)
}
