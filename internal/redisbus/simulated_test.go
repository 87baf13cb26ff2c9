package redisbus

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/redistest"
	"github.com/nearcache/nearcache/internal/transport"
)

// The bound on staleness is proved on the simulated Redis. It does with values what the
// scripts do in Redis: the same requests, in any order, have the same answers from both,
// except for times and the names of epochs.
func TestSimulatedValuesAreAsInRedis(t *testing.T) {
	seed := uint64(time.Now().UnixNano())
	r := rand.New(rand.NewPCG(seed, 0))
	simulated := fakebus.New(fakebus.Options{Seed: seed, MinLatency: 1, MaxLatency: 2})
	t.Cleanup(simulated.Close)
	at := &redis.UniversalOptions{Addrs: []string{redistest.StartOnSocket(t)}}
	real := newServer(t, Config{Redis: at})
	// Both take the same commands; epochs are numbered as they come.
	twins := [2]*twin{{bus: real}, {bus: simulated.Instance(0).Bus()}}
	for _, twin := range twins {
		twin.tokens = map[string]string{}
		subscription, err := twin.bus.Subscribe(t.Context(), testIdentity)
		require.NoError(t, err)
		twin.subscription = subscription
		t.Cleanup(twin.subscription.Close)
	}
	var done []string
	for range 3000 {
		what, do := anything(r)
		done = append(done, what)
		var got [2]string
		for i, twin := range twins {
			got[i] = do(t, twin)
		}
		require.Equal(t, got[0], got[1], "seed %d, after %v", seed, done[max(0, len(done)-20):])
	}
}

// twin is one of two Redis that are to be the same.
type twin struct {
	bus          transport.Bus
	subscription transport.Subscription
	epochs       []string
	tokens       map[string]string // by what they were made of
}

// epoch returns the number of an epoch.
func (w *twin) epoch(name string) int {
	if name == "" {
		return 0
	}
	for i, known := range w.epochs {
		if known == name {
			return i + 1
		}
	}
	w.epochs = append(w.epochs, name)
	return len(w.epochs)
}

// outlastBypass waits until a bypass has ended, since the time until the next step differs.
// It may claim a token that is never put.
func (w *twin) outlastBypass(t *testing.T, cache, key string) {
	claims := []transport.Claim{{Key: key, Token: "nobody's", Life: time.Hour}}
	require.Eventually(t, func() bool {
		got, err := w.bus.Values().Claim(t.Context(), cache, "h", time.Hour, claims)
		require.NoError(t, err)
		return got.States[0] != transport.ClaimBypass
	}, 10*time.Second, 10*time.Millisecond)
}

// anything draws something to do with values, that returns what came of it.
func anything(r *rand.Rand) (what string, do func(*testing.T, *twin) string) {
	cache := []string{"a", "b"}[r.IntN(2)]
	keys := []string{fmt.Sprint("k", r.IntN(4)), fmt.Sprint("k", r.IntN(4))}[:1+r.IntN(2)]
	regions := []string{fmt.Sprint("r", r.IntN(3)), fmt.Sprint("r", r.IntN(3))}[:r.IntN(3)]
	token := func(key string) string { return fmt.Sprintf("%015d%s", r.IntN(3), key[1:]) }
	switch n := r.IntN(23); {
	case n < 8:
		return fmt.Sprintf("read %s %v %v", cache, keys, regions), func(t *testing.T, w *twin) string {
			got, err := w.bus.Values().Read(t.Context(), cache, keys, regions, 1<<20)
			require.NoError(t, err)
			said := fmt.Sprint(got.Master, w.epoch(got.Epoch), got.Count == got.Cleared, got.Count > 0, got.Cleared > 0)
			for _, v := range got.Values {
				said += fmt.Sprintf(" %t %q %d", v.Found, v.Bytes, (v.Life+time.Minute/2)/time.Minute)
			}
			for _, region := range got.Regions {
				said += fmt.Sprint(" ", region == got.Count, region > 0, region > got.Cleared)
			}
			return said
		}
	case n < 12:
		var claims []transport.Claim
		for _, key := range keys {
			c := transport.Claim{Key: key, Token: token(key), Any: r.IntN(3) == 0, Life: time.Hour}
			if r.IntN(2) == 0 {
				c.Seen = token(key)
			}
			if len(claims) == 0 && r.IntN(2) == 0 { // a second one may be of the same key
				c.Own = token(key)
			}
			claims = append(claims, c)
		}
		return fmt.Sprintf("claim %s %+v", cache, claims), func(t *testing.T, w *twin) string {
			claims := slices.Clone(claims)
			for i, c := range claims {
				claims[i].Own = w.tokens[cache+c.Key+c.Own]
			}
			got, err := w.bus.Values().Claim(t.Context(), cache, "h", time.Hour, claims)
			require.NoError(t, err)
			for i, c := range claims {
				if got.States[i] == transport.ClaimTaken {
					w.tokens[cache+c.Key+c.Token] = got.Token(c)
				}
			}
			return fmt.Sprint(w.epoch(got.Epoch), got.Count > 0, got.States)
		}
	case n < 16:
		var puts []transport.Put
		for _, key := range keys {
			p := transport.Put{Key: key, Token: token(key), Life: time.Duration(1+r.IntN(5)) * time.Hour}
			if size := []int{-1, 0, 1, 20, 40}[r.IntN(5)]; size >= 0 {
				p.Bytes = []byte(("\x00" + p.Token + "the value, with \x00 in it")[:size])
			}
			p.Forget = r.IntN(20) == 0
			p.Bypass = p.Forget || r.IntN(20) == 0
			puts = append(puts, p)
		}
		return fmt.Sprintf("put %s %+v", cache, puts), func(t *testing.T, w *twin) string {
			puts := slices.Clone(puts)
			for i, p := range puts {
				puts[i].Token = cmp.Or(w.tokens[cache+p.Key+p.Token], p.Token)
			}
			got, err := w.bus.Values().Put(t.Context(), cache, puts)
			require.NoError(t, err)
			for _, p := range puts {
				if p.Bypass {
					w.outlastBypass(t, cache, p.Key)
				}
			}
			return fmt.Sprint(got)
		}
	case n < 19:
		var keeps []transport.Keep
		for _, key := range keys {
			keeps = append(keeps, transport.Keep{
				Cache: []string{"a", "b"}[r.IntN(2)], Key: key, Token: token(key), Life: time.Duration(r.IntN(3)) * time.Hour,
			})
		}
		return fmt.Sprintf("keep %+v", keeps), func(t *testing.T, w *twin) string {
			keeps := slices.Clone(keeps)
			for i, k := range keeps {
				keeps[i].Token = cmp.Or(w.tokens[k.Cache+k.Key+k.Token], k.Token)
			}
			got, err := w.bus.Values().Keep(t.Context(), keeps)
			require.NoError(t, err)
			return fmt.Sprint(got)
		}
	case n < 22:
		changes := []transport.Change{{Cache: cache}, {Cache: "a"}}[:1+r.IntN(2)]
		for i := range changes {
			switch r.IntN(8) {
			case 0:
				changes[i].Clear = true
			case 1, 2, 3:
				changes[i].Regions = regions
			case 4:
				if r.IntN(8) == 0 {
					changes[i] = transport.Change{All: true}
				}
			default:
				changes[i].Keys = keys
			}
		}
		if r.IntN(50) == 0 { // more than are kept
			changes = []transport.Change{{Cache: cache}}
			for i := range 1100 {
				changes[0].Regions = append(changes[0].Regions, fmt.Sprint("r", i))
			}
		}
		return fmt.Sprintf("publish %.200s", fmt.Sprintf("%+v", changes)), func(t *testing.T, w *twin) string {
			if len(changes) == 1 && len(changes[0].Regions) > transport.MostChanges { // as a publisher would
				for part := range slices.Chunk(changes[0].Regions, transport.MostChanges) {
					require.NoError(t, w.bus.Publish(t.Context(), changing(transport.Change{Cache: cache, Regions: part})))
				}
				return ""
			}
			require.NoError(t, w.bus.Publish(t.Context(), changing(changes...)))
			return ""
		}
	default:
		return "probe", func(t *testing.T, w *twin) string {
			if r := w.epochs; len(r)%2 == 0 { // often enough, an epoch lasts longer
				require.NoError(t, w.subscription.Probe(t.Context(), "nonce"))
			}
			return ""
		}
	}
}
