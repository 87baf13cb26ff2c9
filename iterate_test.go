package nearcache

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// What the loop's body removes, clears or replaces is not yielded behind its back, also
// where the table has been replaced meanwhile and the old one still has all of it.
func TestAllYieldsWhatIsHeld(t *testing.T) {
	t.Run("values that are replaced where they lie", func(t *testing.T) {
		testAllYieldsWhatIsHeld(t, func(i int) int { return i })
	})
	t.Run("values in entries of their own", func(t *testing.T) {
		testAllYieldsWhatIsHeld(t, strconv.Itoa)
	})
}

func testAllYieldsWhatIsHeld[V comparable](t *testing.T, value func(int) V) {
	const items = 10
	changes := map[string]struct {
		change func(ctx context.Context, c *Cache[int, V], first int)
		want   func(i int) (V, bool) // what is yielded of the others
	}{
		"removed": {change: func(ctx context.Context, c *Cache[int, V], first int) {
			for i := range items {
				if i != first {
					_ = c.Remove(ctx, i)
				}
			}
		}},
		"replaced": {
			change: func(ctx context.Context, c *Cache[int, V], first int) {
				for i := range items {
					_ = c.Set(ctx, i, value(100+i))
				}
			},
			want: func(i int) (V, bool) { return value(100 + i), true },
		},
		"removed and loaded again": {
			change: func(ctx context.Context, c *Cache[int, V], first int) {
				for i := range items {
					if i != first {
						_ = c.Remove(ctx, i)
						_, _ = c.Refresh(ctx, i)
					}
				}
			},
			want: func(i int) (V, bool) { return value(200 + i), true },
		},
		"of a cleared region": {change: func(ctx context.Context, c *Cache[int, V], _ int) { _ = c.ClearRegion(ctx, "r") }},
		"cleared":             {change: func(ctx context.Context, c *Cache[int, V], _ int) { _ = c.Clear(ctx) }},
		"expired":             {change: func(context.Context, *Cache[int, V], int) { time.Sleep(time.Minute) }},
		"closed":              {change: func(_ context.Context, c *Cache[int, V], _ int) { _ = c.Close() }},
	}
	for name, test := range changes {
		for _, grows := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, and the table is replaced: %t", name, grows), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, err := New(Local(), Options[int, V]{
						Name: "p", TTL: time.Minute, Capacity: 2000, // one shard
						Load:    func(_ context.Context, i int) (V, error) { return value(200 + i), nil },
						Regions: func(int, V) []string { return []string{"r"} },
					})
					require.NoError(t, err)
					defer c.Close()
					for i := range items {
						require.NoError(t, c.Set(t.Context(), i, value(i)))
					}
					old := c.local.tables[0].Load()
					first, got := -1, map[int]V{}
					for i, v := range c.All() {
						if first >= 0 {
							if i < items {
								require.NotContains(t, got, i)
								got[i] = v
							}
							continue
						}
						first = i
						if grows {
							for i := range 1500 {
								require.NoError(t, c.Set(t.Context(), 1000+i, value(i)))
							}
							require.NotSame(t, old, c.local.tables[0].Load())
						}
						test.change(t.Context(), c, first)
					}
					delete(got, first)
					want := map[int]V{}
					for i := range items {
						if test.want != nil && i != first {
							want[i], _ = test.want(i)
						}
					}
					if name == "removed and loaded again" && !grows {
						// They may lie where the loop has passed already.
						for i, v := range got {
							require.Equal(t, want[i], v)
						}
						return
					}
					require.Equal(t, want, got)
				})
			})
		}
	}
}

// 1. the loop begins, under a lease   2. the lease runs out, and a removal is missed
// 3. a probe shows it, everything is cleared, the lease is renewed   4. the loop goes on,
// in a table that has the old items yet. The same without 3: nothing vouches for them.
func TestAllAndTheLease(t *testing.T) {
	for _, renewed := range []bool{false, true} {
		t.Run(fmt.Sprintf("renewed: %t", renewed), func(t *testing.T) {
			withLease(t, Options[string, int]{Capacity: 2000}, func(t *testing.T, c *Cache[string, int], s *leasedSource) {
				l := c.backplane.lease
				sent := l.probe()
				require.True(t, l.echo(sent))
				for _, key := range []string{"a", "b", "c", "d"} {
					_, err := c.Get(t.Context(), key)
					require.NoError(t, err)
				}
				yielded := 0
				for range c.All() {
					if yielded++; yielded > 1 {
						break
					}
					s.value++
					time.Sleep(2 * time.Second)
					if renewed {
						probe := l.probe()
						c.missedMessages()
						l.echo(probe)
						_, err := c.Get(t.Context(), "a")
						require.NoError(t, err)
						require.Equal(t, map[string]int{"a": 1}, maps.Collect(c.All()))
						require.NoError(t, c.Remove(t.Context(), "a"))
					}
				}
				require.Equal(t, 1, yielded)
			})
		})
	}
}
