package systemtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/s2"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
)

// allocates returns how many bytes the process allocates while do runs.
func allocates(do func()) uint64 {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	do()
	runtime.ReadMemStats(&after)
	return after.TotalAlloc - before.TotalAlloc
}

// Whatever somebody puts in the place of a value costs a read no more than a few times
// MaxValueBytes, counts as a miss, and is replaced.
func TestSharedHostileValues(t *testing.T) {
	const most = 1 << 20
	redis := startRedis(t)
	raw := redis.client()
	log := &lockedBuffer{}
	loads := newCountedLoads()
	a := joinShared(t, redis.addr, loads.load, nil)
	require.Equal(t, 1, a.get(t, "good"))
	a.stored(t, 1)
	good := raw.Get(t.Context(), "{nearcache}:value:items:good").Val()
	label := good[:len(good)-len("1")]
	packed := label[:17] + "\x02" + label[18:]

	bp, err := nearcache.Connect(t.Context(), nearcache.BackplaneOptions{
		RedisConnectionString: redis.addr, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	require.NoError(t, err)
	defer func() { _ = bp.Close() }()
	b, err := nearcache.New(bp, nearcache.Options[string, int]{
		Name: "items", Load: loads.load, Regions: regionsOf,
		Shared: &nearcache.SharedOptions[int]{Timeout: patience, MaxValueBytes: most},
	})
	require.NoError(t, err)

	blank := func(n int) []byte { return append(bytes.Repeat([]byte(" "), n-1), '1') } // it is JSON
	bomb := packed + string(s2.EncodeBest(nil, blank(256<<20)))
	require.Less(t, len(bomb), 300)
	tests := []struct {
		name      string
		put       func(key string)
		oversized uint64
	}{
		{"some bytes that unpack to 256 MB", func(key string) { raw.Set(t.Context(), key, bomb, time.Hour) }, 1},
		{"a length of 4 GB", func(key string) {
			raw.Set(t.Context(), key, packed+string(binary.AppendUvarint(nil, 1<<32-1))+"\x00", time.Hour)
		}, 1},
		{"a byte more than is unpacked", func(key string) {
			raw.Set(t.Context(), key, packed+string(s2.Encode(nil, blank(most+1))), time.Hour)
		}, 1},
		{"64 MB of zeros", func(key string) { raw.SetRange(t.Context(), key, 64<<20, "1") }, 1},
		{"64 MB behind a label", func(key string) {
			raw.Set(t.Context(), key, label, time.Hour)
			raw.SetRange(t.Context(), key, 64<<20, "1")
		}, 1},
		{"rubbish that is packed", func(key string) { raw.Set(t.Context(), key, packed+"hello", time.Hour) }, 0},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			test.put("{nearcache}:value:items:" + test.name)
			before := b.Stats().Shared
			cost := allocates(func() {
				v, err := b.Get(t.Context(), test.name)
				require.NoError(t, err)
				require.Equal(t, 1, v)
			})
			require.Less(t, cost, uint64(4*most))
			require.Equal(t, before.Oversized+test.oversized, b.Stats().Shared.Oversized)
			require.Equal(t, before.Undecodable+1-test.oversized, b.Stats().Shared.Undecodable)
			require.Equal(t, before.Misses+1, b.Stats().Shared.Misses)
			require.Equal(t, before.Errors, b.Stats().Shared.Errors)
			eventually(t, "it is replaced", func() bool { return b.Stats().Shared.Stored == uint64(i+1) })
			require.Equal(t, 1, a.get(t, test.name))
			require.Equal(t, uint64(i+1), a.stats().Hits)
		})
	}
	require.Equal(t, 1, strings.Count(log.String(), "larger than Shared.MaxValueBytes"), "%s", log)
	require.Contains(t, log.String(), "cache=items")

	// As large as it may be, packed or not, it is a hit.
	for i, value := range []string{label + string(blank(most)), packed + string(s2.Encode(nil, blank(most)))} {
		key, before := fmt.Sprint("large ", i), b.Stats().Shared.Hits
		raw.Set(t.Context(), "{nearcache}:value:items:"+key, value, time.Hour)
		v, err := b.Get(t.Context(), key)
		require.NoError(t, err)
		require.Equal(t, 1, v)
		require.Equal(t, before+1, b.Stats().Shared.Hits)
	}
}

// What else is read from Redis is bounded as well. It is no good then, and the source is
// asked.
func TestSharedHostileClears(t *testing.T) {
	redis := startRedis(t)
	raw := redis.client()
	fill := "redis.call('HSET', KEYS[1], ARGV[1], string.rep('7', tonumber(ARGV[2]))) return 1"
	for _, field := range []string{"epoch", "n:items", "c:items", "r:items:red", "history"} {
		for _, size := range []int{100, 32 << 20} {
			t.Run(fmt.Sprint(field, " of ", size), func(t *testing.T) {
				defer raw.FlushAll(context.Background())
				a := joinShared(t, redis.addr, newCountedLoads().load, nil)
				a.get(t, "red/1")
				a.stored(t, 1)
				require.NoError(t, a.items.ClearRegion(t.Context(), "blue")) // so that regions are read
				require.NoError(t, raw.Eval(t.Context(), fill, []string{"{nearcache}:clears"}, field, size).Err())
				b := joinShared(t, redis.addr, newCountedLoads().load, nil)
				cost := allocates(func() {
					for i := range 3 {
						require.Equal(t, 1, b.get(t, fmt.Sprint("red/", i)))
					}
				})
				require.Less(t, cost, uint64(8<<20))
			})
		}
	}
}
