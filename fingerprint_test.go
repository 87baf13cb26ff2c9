package nearcache

import (
	"context"
	"net/url"
	"os/exec"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
)

// Types of one name, as two releases of a service have them.
func newProducts() map[string]uint64 {
	prints := map[string]uint64{}
	func() {
		type product struct{ Name string }
		prints["name"] = fingerprintOf(Codec[product](jsonCodec[product]{}))
		prints["name, of a pointer"] = fingerprintOf(Codec[*product](jsonCodec[*product]{}))
		prints["name, by another codec"] = fingerprintOf(Codec[product](otherCodec[product]{}))
	}()
	func() {
		type product struct {
			Name  string
			Price int
		}
		prints["name, price"] = fingerprintOf(Codec[product](jsonCodec[product]{}))
	}()
	func() {
		type product struct {
			Price int
			price int
			Name  string
			Not   string `json:"-"`
		}
		prints["price, name, and what JSON leaves out"] = fingerprintOf(Codec[product](jsonCodec[product]{}))
		_ = product{price: 1}
	}()
	func() {
		type product struct {
			Name  string
			Price int64
		}
		prints["price of another type"] = fingerprintOf(Codec[product](jsonCodec[product]{}))
	}()
	func() {
		type product struct {
			Name  string `json:"title"`
			Price int
		}
		prints["another tag"] = fingerprintOf(Codec[product](jsonCodec[product]{}))
	}()
	func() {
		type inner struct{ Price int }
		type product struct {
			Name  string
			Inner []map[string]*inner
		}
		prints["nested"] = fingerprintOf(Codec[product](jsonCodec[product]{}))
	}()
	func() {
		type inner struct{ Price, Tax int }
		type product struct {
			Name  string
			Inner []map[string]*inner
		}
		prints["nested, changed"] = fingerprintOf(Codec[product](jsonCodec[product]{}))
	}()
	func() {
		type inner struct{ Price int }
		type product struct {
			Name string
			inner
		}
		prints["embedded"] = fingerprintOf(Codec[product](jsonCodec[product]{}))
		_ = product{}.inner
	}()
	return prints
}

type otherCodec[V any] struct{ jsonCodec[V] }

func TestFingerprints(t *testing.T) {
	prints := newProducts()
	require.Equal(t, prints, newProducts(), "they are the same each time")
	same := map[string]string{
		"price, name, and what JSON leaves out": "name, price",
	}
	known := map[uint64]string{}
	for name, print := range prints {
		if _, is := same[name]; is {
			continue
		}
		require.Empty(t, known[print], name)
		known[print] = name
	}
	for name, other := range same {
		require.Equal(t, prints[other], prints[name], name)
	}
	require.NotEqual(t, fingerprintOf(Codec[url.Error](otherCodec[url.Error]{})), fingerprintOf(Codec[exec.Error](otherCodec[exec.Error]{})),
		"types of other packages")
	require.NotEqual(t, fingerprintOf(Codec[[]url.Error](otherCodec[[]url.Error]{})), fingerprintOf(Codec[[]exec.Error](otherCodec[[]exec.Error]{})))
}

// cyclic is a type that leads to itself.
type cyclic struct {
	Self  *cyclic
	Many  []cyclic
	Other map[string]cyclicToo
}

type cyclicToo struct {
	Back *cyclic
	Any  any
	Func func(cyclic) error `json:"-"`
	Time time.Time
}

type fingerprintAny interface{ Any() }

func TestFingerprintsOfAnyType(t *testing.T) {
	seen := map[uint64]bool{}
	for _, print := range []uint64{
		fingerprintOf(Codec[cyclic](jsonCodec[cyclic]{})),
		fingerprintOf(Codec[*cyclicToo](jsonCodec[*cyclicToo]{})),
		fingerprintOf(Codec[any](jsonCodec[any]{})),
		fingerprintOf(Codec[fingerprintAny](jsonCodec[fingerprintAny]{})),
		fingerprintOf(Codec[func(int)](jsonCodec[func(int)]{})),
		fingerprintOf(Codec[chan int](jsonCodec[chan int]{})),
		fingerprintOf(Codec[[3]int](jsonCodec[[3]int]{})),
		fingerprintOf(Codec[[4]int](jsonCodec[[4]int]{})),
		fingerprintOf(Codec[struct{ A int }](jsonCodec[struct{ A int }]{})),
		fingerprintOf(Codec[struct{ B int }](jsonCodec[struct{ B int }]{})),
		fingerprintOf(Codec[time.Time](jsonCodec[time.Time]{})),
		fingerprintOf(Codec[time.Duration](jsonCodec[time.Duration]{})),
		fingerprintOf(Codec[int64](jsonCodec[int64]{})),
	} {
		require.False(t, seen[print])
		seen[print] = true
	}
}

// 1. a release stores a value   2. the next one has another type under the same name, which
// would take its JSON for one of its own   3. it loads, and so does the first one after it.
func TestSharedValuesOfAnotherType(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		type product struct{ Name string }
		type renamed struct{ Title string }
		bus := fakebus.New(fakebus.Options{Instances: 2})
		defer bus.Close()
		one, two := joinSimulated(t, bus, 0), joinSimulated(t, bus, 1)
		defer func() { require.NoError(t, one.Close()); require.NoError(t, two.Close()) }()
		var loads atomic.Int32
		old, err := New(one, Options[int, product]{
			Name: "products", NotFoundTTL: time.Minute, Shared: &SharedOptions[product]{},
			Load: func(_ context.Context, n int) (product, error) {
				loads.Add(1)
				if n == 0 {
					return product{}, ErrNotFound
				}
				return product{"tea"}, nil
			},
		})
		require.NoError(t, err)
		next, err := New(two, Options[int, renamed]{
			Name: "products", NotFoundTTL: time.Minute, Shared: &SharedOptions[renamed]{},
			Load: func(context.Context, int) (renamed, error) {
				loads.Add(1)
				return renamed{"tea"}, nil
			},
		})
		require.NoError(t, err)
		for n := range 2 { // a not-found is another application's, too
			loads.Store(0)
			_, _ = old.Get(t.Context(), n)
			time.Sleep(time.Second)
			v, err := next.Get(t.Context(), n)
			require.NoError(t, err)
			require.Equal(t, renamed{"tea"}, v)
			require.EqualValues(t, n+1, next.Stats().Shared.Undecodable)
			time.Sleep(time.Second)
			require.EqualValues(t, 2, loads.Load())
			_, _ = old.Refresh(t.Context(), n)
			time.Sleep(time.Second)
			require.EqualValues(t, 2*(n+1), old.Stats().Shared.Stored)
		}
	})
}
