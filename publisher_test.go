package nearcache

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/messagetest"
	"github.com/nearcache/nearcache/internal/transport"
)

// fakeRedis takes messages as Redis would, or refuses them.
type fakeRedis struct {
	mu       sync.Mutex
	refusal  error
	hold     chan struct{} // an attempt waits here while it is not nil
	accepts  int           // messages to be accepted before refusal counts
	accepted []messagetest.Operation
	messages int
	attempts int
}

func (r *fakeRedis) send(ctx context.Context, body string, _ []transport.Change) error {
	r.mu.Lock()
	hold := r.hold
	r.attempts++
	r.mu.Unlock()
	if hold != nil {
		select {
		case <-hold:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refusal != nil && r.accepts == 0 {
		return r.refusal
	}
	r.accepts = max(0, r.accepts-1)
	ops, err := messagetest.DecodeBody(body)
	if err != nil {
		panic(err)
	}
	r.accepted = append(r.accepted, ops...)
	r.messages++
	return nil
}

func (r *fakeRedis) refuse(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.refusal = err
}

func (r *fakeRedis) holdUp() (release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	hold := make(chan struct{})
	r.hold = hold
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.hold = nil
		close(hold)
	}
}

// keys returns every key accepted for a cache, in order, repetitions included.
func (r *fakeRedis) keys() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var keys []string
	for _, o := range r.accepted {
		keys = append(keys, valuesOf(o, messagetest.RemoveKeys)...)
	}
	slices.Sort(keys)
	return keys
}

var errRefused = errors.New("refused")

// quietBackplane returns a process-local backplane that logs nothing.
func quietBackplane() *Backplane {
	return newBackplane(BackplaneOptions{Logger: slog.New(slog.DiscardHandler)})
}

func removal(keys ...string) invalidation { return invalidation{cache: "p", keys: keys} }

// withPublisher runs test in a bubble of its own with a publisher that has
// reached Redis.
func withPublisher(t *testing.T, test func(*testing.T, *publisher, *fakeRedis)) {
	synctest.Test(t, func(t *testing.T) {
		redis := &fakeRedis{}
		p := newPublisher(redis.send, rand.Int64N, quietBackplane())
		defer func() {
			if !p.closing {
				_ = p.close(0)
			}
		}()
		p.reached()
		test(t, p, redis)
	})
}

func TestPublishWaitsForAcceptance(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		release := redis.holdUp()
		result := make(chan error, 1)
		go func() { result <- p.publish(t.Context(), removal("a"), nothing) }()
		synctest.Wait()
		select {
		case err := <-result:
			t.Fatalf("returned %v before Redis had answered", err)
		default:
		}
		release()
		require.NoError(t, <-result)
		require.Equal(t, []string{"a"}, redis.keys())
	})
}

// While one message is under way the next group gathers, and each entry of it is
// sent once.
func TestPublishGroups(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		release := redis.holdUp()
		var callers sync.WaitGroup
		call := func(key string) {
			callers.Go(func() { require.NoError(t, p.publish(t.Context(), removal(key), nothing)) })
			synctest.Wait()
		}
		call("first")
		for i := range 100 {
			call(fmt.Sprint(i % 10))
		}
		release()
		callers.Wait()
		require.Equal(t, 2, redis.messages)
		require.Len(t, redis.keys(), 11)
	})
}

// An invalidation is never folded into an attempt that was already sent: the
// instances may have loaded the item again since.
func TestPublishDoesNotFoldIntoAnAttemptUnderWay(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		release := redis.holdUp()
		var callers sync.WaitGroup
		for range 2 {
			callers.Go(func() { require.NoError(t, p.publish(t.Context(), removal("a"), nothing)) })
			synctest.Wait()
		}
		release()
		callers.Wait()
		require.Equal(t, []string{"a", "a"}, redis.keys())
	})
}

func TestPublishCancelledIsQueued(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		release := redis.holdUp()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		err := p.publish(ctx, removal("a"), nothing)
		require.ErrorIs(t, err, ErrUnconfirmed)
		require.ErrorIs(t, err, context.Canceled)
		release()
		require.NoError(t, p.flush(t.Context()))
		require.Equal(t, []string{"a"}, redis.keys())
	})
}

func TestPublishWhileUnreachable(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		redis.refuse(errRefused)
		err := p.publish(t.Context(), removal("a"), nothing)
		require.ErrorIs(t, err, ErrUnconfirmed)
		require.ErrorIs(t, err, errRefused)

		// From here on nobody waits, not even for an attempt that hangs.
		release := redis.holdUp()
		synctest.Wait() // an attempt that takes keys in the middle of the loop would have them queued twice
		before := time.Now()
		for i := range 100 {
			require.ErrorIs(t, p.publish(t.Context(), removal(fmt.Sprint(i%10)), nothing), errRefused)
		}
		require.Equal(t, before, time.Now(), "writers waited")
		var s BackplaneStats
		p.snapshot(&s)
		require.Equal(t, 11, s.Queued, "one entry a key")
		time.Sleep(time.Second)
		p.snapshot(&s)
		require.GreaterOrEqual(t, s.QueueAge, time.Second)

		redis.refuse(nil)
		release()
		require.NoError(t, p.flush(t.Context()))
		require.Len(t, redis.keys(), 11, "nothing is dropped, nothing sent twice")
		require.NoError(t, p.publish(t.Context(), removal("b"), nothing), "writers wait again")
		s = BackplaneStats{}
		p.snapshot(&s)
		require.Zero(t, s.Queued)
		require.Zero(t, s.QueueAge)
		require.NotZero(t, s.PublishFailures)
	})
}

// Whatever gathered behind a message that failed is told at once, and sent again
// together with it.
func TestPublishBehindAFailure(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		release := redis.holdUp()
		redis.refuse(errRefused)
		results := make(chan error, 2)
		for _, key := range []string{"a", "b"} {
			go func() { results <- p.publish(t.Context(), removal(key), nothing) }()
			synctest.Wait()
		}
		release()
		require.ErrorIs(t, <-results, ErrUnconfirmed)
		require.ErrorIs(t, <-results, ErrUnconfirmed)
		redis.refuse(nil)
		require.NoError(t, p.flush(t.Context()))
		require.Equal(t, []string{"a", "b"}, redis.keys())
		require.Equal(t, 1, redis.messages)
	})
}

func TestPublishRetriesWithBackoff(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		redis.refuse(errRefused)
		require.Error(t, p.publish(t.Context(), removal("a"), nothing))
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		// Full jitter of at most 2 s: 600 attempts in 10 minutes.
		require.Greater(t, redis.attempts, 400)
		require.Less(t, redis.attempts, 900)
		redis.refuse(nil)
		before := time.Now()
		p.reached() // the subscriber is back
		synctest.Wait()
		require.Equal(t, before, time.Now())
		require.Equal(t, []string{"a"}, redis.keys())
	})
}

func TestPublishBeforeRedisWasReached(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		redis := &fakeRedis{}
		release := redis.holdUp()
		p := newPublisher(redis.send, rand.Int64N, quietBackplane())
		defer p.close(0)
		require.ErrorIs(t, p.publish(t.Context(), removal("a"), nothing), errNotReached)
		release()
		require.NoError(t, p.flush(t.Context()))
		require.NoError(t, p.publish(t.Context(), removal("b"), nothing))
	})
}

func TestQueueCollapses(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		redis.refuse(errRefused)
		require.Error(t, p.publish(t.Context(), removal("first"), nothing))
		for i := range maxBatchEntries + 10 {
			require.Error(t, p.publish(t.Context(), removal(fmt.Sprint(i)), nothing))
		}
		require.Error(t, p.publish(t.Context(), invalidation{cache: "other", keys: []string{"x"}}, nothing))
		var s BackplaneStats
		p.snapshot(&s)
		require.Equal(t, 2, s.Queued)
		require.EqualValues(t, 1, s.Collapsed)

		redis.refuse(nil)
		require.NoError(t, p.flush(t.Context()))
		require.ElementsMatch(t, []messagetest.Operation{
			{Op: messagetest.ClearCache, Cache: "p"},
			{Op: messagetest.RemoveKeys, Cache: "other", Values: []string{"x"}},
		}, redis.accepted)
		s = BackplaneStats{}
		p.snapshot(&s)
		require.EqualValues(t, 1, s.Collapsed, "still counted after it was sent")
	})
}

// A queue of several messages: what Redis accepted before one of them failed is not
// sent again.
func TestAcceptedMessagesAreNotSentAgain(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		redis.refuse(errRefused)
		require.Error(t, p.publish(t.Context(), removal("first"), nothing))
		var keys []string
		for i := range 10_000 {
			keys = append(keys, fmt.Sprintf("%0100d", i))
		}
		require.Error(t, p.publish(t.Context(), removal(keys...), nothing))
		redis.mu.Lock()
		redis.accepts = 2
		redis.mu.Unlock()
		time.Sleep(time.Minute)
		synctest.Wait()
		halfway := len(redis.keys())
		require.Equal(t, 2, redis.messages, "a queue of at least three messages was to be drawn up")
		require.Positive(t, halfway)
		require.Less(t, halfway, len(keys))
		var s BackplaneStats
		p.snapshot(&s)
		require.Equal(t, len(keys)+1-halfway, s.Queued)
		require.EqualValues(t, 2, s.Published)

		redis.refuse(nil)
		require.NoError(t, p.flush(t.Context()))
		require.ElementsMatch(t, append(keys, "first"), redis.keys(), "each once")
	})
}

// While Redis is away, an attempt costs what its first message costs, and an error's
// text costs nothing to speak of, however long the queue is.
func TestCostOfALongQueue(t *testing.T) {
	var b batch
	for i := range 8 {
		inv := invalidation{cache: fmt.Sprint("cache", i)}
		for k := range maxBatchEntries {
			inv.keys = append(inv.keys, fmt.Sprintf("%0100d", k))
		}
		b.add(inv)
	}
	require.Equal(t, 8*maxBatchEntries, b.entries())
	allocated := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	require.Less(t, allocated(func() { b.part(maxMessageBytes, math.MaxInt) }), uint64(8*maxMessageBytes))
	require.Less(t, allocated(func() {
		require.Equal(t, fmt.Sprintf("0 clear(s), %d key(s) and 0 region(s) of 8 caches", 16*maxBatchEntries), describeBatches(&b, &b))
	}), uint64(64<<10))
}

// What is being sent and what is queued behind it share one bound.
func TestQueueBoundCountsWhatIsBeingSent(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		release := redis.holdUp()
		large := strings.Repeat("x", maxBatchBytes-entryOverhead)
		const full = maxQueueBytes / maxBatchBytes
		for i := range full + 1 {
			_, err := p.enqueue(invalidation{cache: fmt.Sprint(i), keys: []string{large}}, nothing)
			require.NoError(t, err)
			synctest.Wait() // the first is being sent by now
		}
		var s BackplaneStats
		p.snapshot(&s)
		require.EqualValues(t, 1, s.Collapsed, "there was no room for one more")
		release()
		require.NoError(t, p.flush(t.Context()))
		require.Equal(t, full+1, redis.messages, "the rest was kept as it is")
		require.Contains(t, redis.accepted, messagetest.Operation{Op: messagetest.ClearCache, Cache: fmt.Sprint(full)})
	})
}

func TestDescribeBatches(t *testing.T) {
	batchOf := func(invs ...invalidation) *batch {
		b := &batch{}
		for _, inv := range invs {
			b.add(inv)
		}
		return b
	}
	other := invalidation{cache: "other", clear: true}
	require.Equal(t, "2 key(s) and 1 region(s) of p", describeBatches(
		batchOf(removal("a")), batchOf(removal("b"), invalidation{cache: "p", regions: []string{"r"}})))
	require.Equal(t, "a clear of other, 1 key(s) of p", describeBatches(batchOf(removal("a"), other)))
	require.Equal(t, "a clear of all caches", describeBatches(batchOf(removal("a")), batchOf(invalidation{all: true})))
	many := batchOf(other)
	for i := range 4 {
		many.add(invalidation{cache: fmt.Sprint(i), keys: []string{"a", "b"}})
	}
	require.Equal(t, "1 clear(s), 8 key(s) and 0 region(s) of 5 caches", describeBatches(many))
}

func TestFlush(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		require.NoError(t, p.flush(t.Context()), "nothing queued")
		redis.refuse(errRefused)
		require.Error(t, p.publish(t.Context(), removal("a"), nothing))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := p.flush(ctx)
		require.ErrorIs(t, err, ErrUnconfirmed)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorIs(t, err, errRefused)
	})
}

// Flush does not wait for what is queued after it was called.
func TestFlushEndsUnderLoad(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		release := redis.holdUp()
		_, err := p.enqueue(removal("a"), nothing)
		require.NoError(t, err)
		flushed := make(chan error, 1)
		go func() { flushed <- p.flush(t.Context()) }()
		synctest.Wait()
		_, err = p.enqueue(removal("b"), nothing)
		require.NoError(t, err)
		release()
		release = redis.holdUp() // "b" may be held up here
		require.NoError(t, <-flushed)
		release()
	})
}

// A greeting finds out whether Redis accepts messages, without telling anything.
func TestGreeting(t *testing.T) {
	t.Run("goes out until it is accepted", func(t *testing.T) {
		withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
			redis.refuse(errRefused)
			p.greet()
			time.Sleep(time.Minute)
			require.False(t, p.accepts())
			require.Greater(t, redis.attempts, 10)
			redis.refuse(nil)
			time.Sleep(backoffMax)
			synctest.Wait()
			require.True(t, p.accepts())
			require.Equal(t, 1, redis.messages)
			require.Empty(t, redis.accepted, "it has no operation")
			var s BackplaneStats
			p.snapshot(&s)
			require.Zero(t, s.Published)
			require.Zero(t, s.Queued)
			time.Sleep(time.Minute)
			require.Equal(t, 1, redis.messages, "one is enough")
		})
	})
	t.Run("goes with what is queued", func(t *testing.T) {
		withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
			redis.refuse(errRefused)
			p.greet()
			synctest.Wait()
			require.ErrorIs(t, p.publish(t.Context(), removal("a"), nothing), errRefused)
			redis.refuse(nil)
			require.NoError(t, p.flush(t.Context()))
			require.Equal(t, 1, redis.messages)
			require.Equal(t, []string{"a"}, redis.keys())
		})
	})
	t.Run("is not waited for by close", func(t *testing.T) {
		withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
			redis.holdUp()
			p.greet()
			synctest.Wait()
			before := time.Now()
			require.NoError(t, p.close(time.Minute))
			require.Equal(t, before, time.Now())
		})
	})
}

func TestPublisherClose(t *testing.T) {
	t.Run("delivers what is queued", func(t *testing.T) {
		withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
			redis.refuse(errRefused)
			require.Error(t, p.publish(t.Context(), removal("a"), nothing))
			time.AfterFunc(2*time.Second, func() { redis.refuse(nil) })
			require.NoError(t, p.close(time.Minute))
			require.Equal(t, []string{"a"}, redis.keys())
			require.ErrorIs(t, p.publish(t.Context(), removal("b"), nothing), ErrClosed)
		})
	})
	t.Run("reports what it cannot deliver", func(t *testing.T) {
		withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
			redis.refuse(errRefused)
			require.Error(t, p.publish(t.Context(), removal("secret-key-1", "secret-key-2"), nothing))
			before := time.Now()
			err := p.close(3 * time.Second)
			require.ErrorIs(t, err, ErrUnconfirmed)
			require.ErrorIs(t, err, errRefused)
			require.ErrorContains(t, err, "2 key(s) of p")
			require.NotContains(t, err.Error(), "secret")
			require.Equal(t, 3*time.Second, time.Since(before))
		})
	})
	t.Run("ends an attempt that hangs", func(t *testing.T) {
		withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
			redis.holdUp()
			result := make(chan error, 1)
			go func() { result <- p.publish(t.Context(), removal("a"), nothing) }()
			synctest.Wait()
			require.ErrorIs(t, p.close(time.Second), ErrUnconfirmed)
			require.ErrorIs(t, <-result, ErrUnconfirmed, "its writer is told")
		})
	})
}

// A wait that ends early never loses its invalidation, whatever Redis does.
func TestPublisherNeverDrops(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		stop := make(chan struct{})
		var trouble sync.WaitGroup
		trouble.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					redis.refuse(nil)
					return
				case <-time.After(70 * time.Millisecond):
				}
				if i%2 == 0 {
					redis.refuse(errRefused)
				} else {
					redis.refuse(nil)
				}
			}
		})
		var writers sync.WaitGroup
		for w := range 8 {
			writers.Go(func() {
				for i := range 200 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(i%7)*time.Millisecond)
					_ = p.publish(ctx, removal(fmt.Sprintf("%d-%d", w, i)), nothing)
					cancel()
					time.Sleep(5 * time.Millisecond)
				}
			})
		}
		writers.Wait()
		close(stop)
		trouble.Wait()
		require.NoError(t, p.flush(t.Context()))
		require.Len(t, slices.Compact(redis.keys()), 8*200)
	})
}

func TestBatchBounds(t *testing.T) {
	t.Run("bytes of one cache", func(t *testing.T) {
		var b batch
		large := strings.Repeat("x", maxBatchBytes/4)
		for i := range 5 {
			b.add(removal(fmt.Sprint(i, large)))
		}
		require.Equal(t, 1, b.entries())
		require.True(t, b.caches["p"].clear)
		require.EqualValues(t, 1, b.collapsed)
	})
	t.Run("bytes of all caches", func(t *testing.T) {
		var b batch
		large := strings.Repeat("x", maxBatchBytes-entryOverhead)
		const full = maxQueueBytes / maxBatchBytes
		for i := range full + 1 {
			b.add(invalidation{cache: fmt.Sprint(i), keys: []string{large}})
			require.LessOrEqual(t, b.bytes, maxQueueBytes)
		}
		require.Equal(t, full+1, b.entries())
		require.False(t, b.caches["0"].clear)
		require.True(t, b.caches[fmt.Sprint(full)].clear, "there was no room for it")
		require.EqualValues(t, 1, b.collapsed)
		before := b.bytes
		b.add(invalidation{cache: "0", clear: true})
		require.Equal(t, before-maxBatchBytes, b.bytes)
		b.add(invalidation{cache: "another", keys: []string{large}})
		require.Equal(t, before, b.bytes, "there is room again")
		b.add(invalidation{all: true})
		require.Zero(t, b.bytes)
	})
	t.Run("caches", func(t *testing.T) {
		var b batch
		for i := range maxBatchCaches + 1 {
			b.add(invalidation{cache: fmt.Sprint(i), keys: []string{"a"}})
		}
		require.Equal(t, 1, b.entries())
		require.True(t, b.all)
		require.EqualValues(t, 1, b.collapsed)
	})
	t.Run("a merge keeps to them", func(t *testing.T) {
		var a, b batch
		for i := range maxBatchEntries {
			a.add(removal(fmt.Sprint("a", i)))
			b.add(removal(fmt.Sprint("b", i)))
		}
		a.merge(&b)
		require.Equal(t, 1, a.entries())
		require.True(t, a.caches["p"].clear)
	})
}

// A group with more than one script may change is split, from when it is known that
// something is shared, and nothing of it is lost.
func TestPublisherSplits(t *testing.T) {
	withPublisher(t, func(t *testing.T, p *publisher, redis *fakeRedis) {
		shared, most, tooMany := false, 0, 0
		p.send = func(ctx context.Context, body string, changes []transport.Change) error {
			n := transport.CountChanges(changes)
			if shared && n > transport.MostChanges {
				tooMany++
				return transport.ErrTooManyChanges
			}
			most = max(most, n)
			return redis.send(ctx, body, changes)
		}
		inv := invalidation{cache: "c", regions: []string{"r1", "r2"}}
		for i := range 3000 {
			inv.keys = append(inv.keys, fmt.Sprint("key/", i))
		}
		require.NoError(t, p.publish(t.Context(), inv, nothing))
		require.Greater(t, most, 2000, "nothing is shared")

		shared, most = true, 0
		for range 2 {
			require.NoError(t, p.publish(t.Context(), inv, nothing))
			require.NoError(t, p.publish(t.Context(), invalidation{all: true}, nothing))
		}
		require.Equal(t, 1, tooMany)
		require.Equal(t, transport.MostChanges, most)
		accepted := map[string]int{}
		for _, op := range redis.accepted {
			for _, v := range op.Values {
				accepted[v]++
			}
		}
		require.Len(t, accepted, 3002)
		for v, times := range accepted {
			require.Equal(t, 3, times, v)
		}
	})
}

// Bodies hold no more entries than they may, of any kind and of many caches.
func TestBodiesAreBounded(t *testing.T) {
	for _, most := range []int{1, 2, 10, 36, 37, 38, 1000} {
		var b batch
		for c := range 50 {
			cache := fmt.Sprint("cache", c)
			if c%3 == 0 {
				b.add(invalidation{cache: cache, clear: true})
				continue
			}
			for i := range 37 {
				key, region := fmt.Sprint(cache, "/", i), fmt.Sprint(cache, "-", i)
				b.add(invalidation{cache: cache, keys: []string{key}, regions: []string{region}})
			}
		}
		left := b.entries()
		for _, p := range b.parts(maxMessageBytes, most) {
			n := transport.CountChanges(p.changes)
			require.LessOrEqual(t, n, most)
			require.Positive(t, n)
			left -= n
			require.Equal(t, p.whole, left == 0)
		}
		require.Zero(t, left, "of bodies with %d at most", most)
	}
}
