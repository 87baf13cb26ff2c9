package nearcache

import (
	"bytes"
	"context"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := &room{size: 10}
		soon := func() time.Time { return time.Now().Add(time.Second) }
		require.True(t, r.take(t.Context(), 6, soon()))
		require.True(t, r.take(t.Context(), 4, soon()))

		began := time.Now()
		require.False(t, r.take(t.Context(), 1, soon()), "it is full")
		require.Equal(t, time.Second, time.Since(began), "it waits, and no longer")
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		require.False(t, r.take(ctx, 1, soon()))
		require.Equal(t, time.Second+time.Millisecond, time.Since(began), "nor when nobody waits for it any more")

		taken := make(chan bool, 2)
		for _, n := range []int{5, 100} { // 100 are all there are
			go func() { taken <- r.take(t.Context(), n, soon()) }()
		}
		synctest.Wait()
		r.give(6)
		require.True(t, <-taken)
		r.give(5)
		synctest.Wait()
		require.Empty(t, taken)
		r.give(4)
		require.True(t, <-taken)
		r.give(100)
		require.Zero(t, r.taken)
	})
}

// paddedCodec makes much of a number.
type paddedCodec struct{ bytes int }

func (c paddedCodec) Marshal(n int) ([]byte, error) {
	return append(bytes.Repeat([]byte(" "), c.bytes), strconv.Itoa(n)...), nil
}

func (c paddedCodec) Unmarshal(data []byte) (int, error) {
	return strconv.Atoi(string(bytes.TrimLeft(data, " ")))
}

// Large values that are compressed are unpacked as far as there is room. The others count
// as misses, after Timeout.
func TestLargeValuesWaitForRoom(t *testing.T) {
	for name, test := range map[string]struct {
		bytes int
		large bool
	}{
		"large": {bytes: leastUnpacked, large: true},
		"small": {bytes: leastUnpacked / 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				loads := 0
				_, caches := simulatedFleet(t, 2, func(int) Options[int, int] {
					return Options[int, int]{
						Load: func(_ context.Context, n int) (int, error) {
							loads++
							return n, nil
						},
						Shared: &SharedOptions[int]{Codec: paddedCodec{test.bytes}, CompressOver: 1},
					}
				})
				a, b := caches[0], caches[1]
				for n := range 3 {
					_, err := a.Get(t.Context(), n)
					require.NoError(t, err)
				}
				synctest.Wait()
				room := &b.backplane.unpacking
				require.True(t, room.take(t.Context(), room.size, time.Now()))
				get := func(n int) time.Duration {
					began := time.Now()
					v, err := b.Get(t.Context(), n)
					require.NoError(t, err)
					require.Equal(t, n, v)
					return time.Since(began)
				}
				took := get(0)
				if !test.large {
					require.Equal(t, 3, loads)
					return
				}
				require.Equal(t, 4, loads)
				require.EqualValues(t, 1, b.Stats().Shared.NoRoom)
				require.EqualValues(t, 1, b.Stats().Shared.Misses)
				require.GreaterOrEqual(t, took, defaultSharedTimeout)
				require.Less(t, took, 2*defaultSharedTimeout)

				time.AfterFunc(defaultSharedTimeout/2, func() { room.give(room.size) })
				get(1)
				get(2)
				require.Equal(t, 4, loads)
				require.EqualValues(t, 2, b.Stats().Shared.Hits)
				require.Zero(t, room.taken)
			})
		})
	}
}
