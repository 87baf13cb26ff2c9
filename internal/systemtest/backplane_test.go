package systemtest

import (
	"context"
	"slices"
	"strconv"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// allKeys are the items that every instance holds before an operation. The last
// one is a key of the cache of numbers too.
var allKeys = []string{"red/1", "red,blue/2", "blue/3", "/4", "/5", "7"}

// operationTests are all writes, each with what it has to evict and nothing else.
var operationTests = []struct {
	name    string
	op      string
	args    []string
	changed []string // the items that it is about
	number  bool     // it is about the cache of numbers too
	keeps   bool     // the instance that runs it keeps the new version
}{
	{name: "Remove one key", op: "remove", args: []string{"red/1"}, changed: []string{"red/1"}},
	{name: "Remove several keys", op: "remove", args: []string{"red/1", "/4"}, changed: []string{"red/1", "/4"}},
	{name: "Remove a key that two caches have", op: "remove", args: []string{"7"}, changed: []string{"7"}},
	{name: "Remove a key of another type", op: "remove-number", args: []string{"7"}, number: true},
	{name: "Remove a key that nobody holds", op: "remove", args: []string{"/6"}},
	{name: "Set", op: "set", args: []string{"red,blue/2"}, changed: []string{"red,blue/2"}, keeps: true},
	{name: "Update", op: "update", args: []string{"/5"}, changed: []string{"/5"}, keeps: true},
	{name: "ClearRegion", op: "clear-region", args: []string{"red"}, changed: []string{"red/1", "red,blue/2"}},
	{
		name: "ClearRegion of several", op: "clear-region", args: []string{"blue", "red"},
		changed: []string{"red/1", "red,blue/2", "blue/3"},
	},
	{name: "ClearRegion without items", op: "clear-region", args: []string{"green"}},
	{name: "Clear", op: "clear", changed: allKeys},
	{name: "ClearAll", op: "clear-all", changed: allKeys, number: true},
}

// TestOperationsReachEveryInstance runs every write on one instance of several
// and checks in all of them, once they have heard of it, that what it is about is
// gone, that everything else is still there, and that Gets see the change.
func TestOperationsReachEveryInstance(t *testing.T) {
	t.Parallel()
	inProcess := func(n int) func(*testing.T, *source, string) []member {
		return func(t *testing.T, src *source, addr string) (members []member) {
			for range n {
				members = append(members, join(t, src.load, addr))
			}
			return members
		}
	}
	fleets := []struct {
		name  string
		start func(t *testing.T, src *source, addr string) []member
	}{
		{"two in one process", inProcess(2)},
		{"three in one process", inProcess(3)},
		{"three processes", func(t *testing.T, src *source, addr string) []member {
			return startChildren(t, 3, src, addr)
		}},
	}
	for _, fleet := range fleets {
		t.Run(fleet.name, func(t *testing.T) {
			onEachRedis(t, func(t *testing.T, addr string) {
				src, raw := newSource(), rawClient(t, addr)
				members := fleet.start(t, src, addr)
				barrier(t, raw, members...) // everything before is about how they connected
				gaps := make([]uint64, len(members))
				for i, m := range members {
					gaps[i] = m.do("stats").Stats.Clears.Gaps()
				}

				for i, test := range operationTests {
					t.Run(test.name, func(t *testing.T) {
						for _, m := range members {
							for _, key := range allKeys {
								require.Equal(t, src.version(key), m.do("get", key).Version)
							}
							require.Empty(t, m.do("get-number", "7").Error)
						}
						src.write(test.changed...)
						args := test.args
						if test.keeps {
							args = append(args[:len(args):len(args)], strconv.Itoa(src.version(args[0])))
						}
						writer := members[i%len(members)]
						require.Empty(t, writer.do(test.op, args...).Error)
						barrier(t, raw, members...)

						for i, m := range members {
							who := "instance " + strconv.Itoa(i)
							for _, key := range allKeys {
								meant := slices.Contains(test.changed, key)
								held := m.do("peek", key).Held
								assert.Equal(t, !meant || test.keeps && m == writer, held, "%s holds %s", who, key)
								assert.Equal(t, src.version(key), m.do("get", key).Version, "%s gets %s", who, key)
							}
							assert.Equal(t, !test.number, m.do("peek-number", "7").Held, "%s holds the number", who)
							assert.Equal(t, gaps[i], m.do("stats").Stats.Clears.Gaps(), "%s has missed nothing", who)
						}
					})
				}
			})
		})
	}
}

func TestCacheOfOneInstance(t *testing.T) {
	t.Parallel()
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		src, raw := newSource(), rawClient(t, addr)
		a, b := join(t, src.load, addr), join(t, src.load, addr)
		own, err := nearcache.New(a.bp, nearcache.Options[string, int]{Name: "own", Load: src.load})
		require.NoError(t, err)
		_, err = own.Get(ctx, "/1")
		require.NoError(t, err)
		a.get(t, "/1")
		b.get(t, "/1")

		require.NoError(t, own.Remove(ctx, "/1"))
		barrier(t, raw, a, b)
		_, held := own.Peek("/1")
		assert.False(t, held)
		for _, in := range []*instance{a, b} {
			assert.True(t, in.held("/1"), "another cache's item")
			assert.Zero(t, in.bp.Stats().Clears.Gaps())
		}

		require.NoError(t, own.Close())
		require.NoError(t, a.items.Remove(ctx, "/1"))
		barrier(t, raw, a, b)
		assert.False(t, b.held("/1"), "the channel goes on without the closed cache")
	})
}

// overtakingTests are the writes of another instance that overtake a load or an
// Update of red/1 here.
var overtakingTests = []struct {
	name string
	op   string
	args []string
}{
	{"Remove", "remove", []string{"red/1"}},
	{"Set", "set", []string{"red/1", "2"}},
	{"ClearRegion", "clear-region", []string{"red"}},
	{"Clear", "clear", nil},
	{"ClearAll", "clear-all", nil},
}

// TestLoadOvertakenByRemoteInvalidation holds a load back while another instance
// invalidates what it loads:
//
//  1. the value that the overtaken load ends with goes to its own caller only
//  2. a Get that starts after the invalidation was applied has a load of its own, which
//     may wait for the overtaken one to end
//  3. the result of that one is kept, also if the overtaken load ends last
func TestLoadOvertakenByRemoteInvalidation(t *testing.T) {
	t.Parallel()
	for _, test := range overtakingTests {
		t.Run(test.name, func(t *testing.T) {
			onEachRedis(t, func(t *testing.T, addr string) {
				raw, loads := rawClient(t, addr), newHeldLoads()
				a, b := join(t, newSource().load, addr), join(t, loads.load, addr)
				// When the overtaken load ends, beside the Get that starts after it:
				for _, ends := range []string{"before it", "during it", "after it"} {
					if test.name == "ClearRegion" && ends != "before it" {
						continue // the Get waits for the load, whose regions nobody knows yet
					}
					first := loads.startGet(t, b, "red/1")
					require.Empty(t, a.do(test.op, test.args...).Error)
					barrier(t, raw, a, b)

					if ends == "before it" {
						first.end(t, 1)
						assert.False(t, b.held("red/1"), "an overtaken load is kept")
					}
					second := loads.startGet(t, b, "red/1")
					if ends == "during it" {
						first.end(t, 1)
						assert.False(t, b.held("red/1"), "an overtaken load is kept")
					}
					second.end(t, 2)
					if ends == "after it" {
						first.end(t, 1)
					}
					kept, held := b.items.Peek("red/1")
					assert.True(t, held)
					assert.Equal(t, 2, kept)

					require.NoError(t, a.items.Clear(context.Background())) // for the next round
					barrier(t, raw, a, b)
				}
				assert.Zero(t, b.bp.Stats().Clears.Gaps())
			})
		})
	}
}

// TestUpdateOvertakenByRemoteInvalidation is the same for an Update: nobody knows
// which of the two the source took last, so its value is not kept.
func TestUpdateOvertakenByRemoteInvalidation(t *testing.T) {
	t.Parallel()
	for _, test := range overtakingTests {
		t.Run(test.name, func(t *testing.T) {
			onEachRedis(t, func(t *testing.T, addr string) {
				ctx := context.Background()
				src, raw := newSource(), rawClient(t, addr)
				a, b := join(t, src.load, addr), join(t, src.load, addr)
				writing, goOn := make(chan struct{}), make(chan struct{})
				updated := make(chan error, 1)
				update := func() {
					v, err := b.items.Update(ctx, "red/1", func(context.Context) (int, error) {
						writing <- struct{}{}
						<-goOn
						return 7, nil
					})
					assert.Equal(t, 7, v)
					updated <- err
				}

				go update()
				receive(t, "Update writes", writing)
				require.Empty(t, a.do(test.op, test.args...).Error)
				barrier(t, raw, a, b)
				goOn <- struct{}{}
				require.NoError(t, receive(t, "Update returns", updated))
				assert.False(t, b.held("red/1"), "an overtaken Update is kept")

				go update()
				receive(t, "Update writes", writing)
				goOn <- struct{}{}
				require.NoError(t, receive(t, "Update returns", updated))
				assert.True(t, b.held("red/1"), "one that nothing overtook is kept")
			})
		})
	}
}

// TestGroupCommit holds Redis back while many goroutines write: the first write
// goes out alone, and all that come meanwhile share the next message.
func TestGroupCommit(t *testing.T) {
	t.Parallel()
	const writers = 64
	onEachRedis(t, func(t *testing.T, addr string) {
		ctx := context.Background()
		src, raw, path := newSource(), rawClient(t, addr), startProxy(t, addr)
		a, b := join(t, src.load, path.addr+",asyncTimeout=600000"), join(t, src.load, addr)
		key := func(i int) string { return "/" + strconv.Itoa(i) }
		for i := range writers {
			b.get(t, key(i))
		}
		b.get(t, "/other")
		require.NoError(t, a.items.Remove(ctx, "/0")) // connects

		path.hold()
		errs := make(chan error, writers)
		go func() { errs <- a.items.Remove(ctx, key(0)) }()
		eventually(t, "the first is being sent", func() bool { return path.held() > 0 })
		var running sync.WaitGroup
		for i := 1; i < writers; i++ {
			running.Go(func() { errs <- a.items.Remove(ctx, key(i)) })
		}
		eventually(t, "the others are queued", func() bool { return a.bp.Stats().Queued == writers })
		path.resume()
		for range writers {
			assert.NoError(t, receive(t, "a Remove returns", errs))
		}
		running.Wait()

		assert.EqualValues(t, 1+2, a.bp.Stats().Published)
		barrier(t, raw, a, b)
		for i := range writers {
			assert.False(t, b.held(key(i)), "item %d", i)
		}
		assert.True(t, b.held("/other"))
	})
}

// TestConcurrentRemoves is the same without holding anything back: however the
// groups fall, each write that was confirmed has its message.
func TestConcurrentRemoves(t *testing.T) {
	t.Parallel()
	const writers, rounds = 64, 20
	onEachRedis(t, func(t *testing.T, addr string) {
		src, raw := newSource(), rawClient(t, addr)
		a, b := join(t, src.load, addr), join(t, src.load, addr)
		key := func(i, round int) string { return "/" + strconv.Itoa(i*rounds+round) }
		for i := range writers * rounds {
			b.get(t, key(i, 0), key(0, i))
		}
		var running sync.WaitGroup
		for i := range writers {
			running.Go(func() {
				for round := range rounds {
					assert.NoError(t, a.items.Remove(context.Background(), key(i, round)))
				}
			})
		}
		running.Wait()

		stats := a.bp.Stats()
		assert.LessOrEqual(t, stats.Published, uint64(writers*rounds))
		t.Logf("%d writes in %d messages", writers*rounds, stats.Published)
		barrier(t, raw, a, b)
		for i := range writers * rounds {
			assert.False(t, b.held("/"+strconv.Itoa(i)))
		}
		assert.Zero(t, b.bp.Stats().Clears.Gaps())
		assert.Equal(t, stats.Published, b.bp.Stats().Applied)
	})
}
