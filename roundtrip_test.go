package nearcache

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"math"
	"math/big"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
)

// priced has what JSON cannot carry.
type priced struct {
	Name  string
	price int64
}

type attributes struct {
	Name  string
	Attrs map[string]any
	Inner *attributes
	List  []any
	Not   string `json:"-"`
}

type guarded struct {
	mu    sync.Mutex //lint:ignore U1000 what a codec leaves out
	cache map[string]int
	N     int
}

type fine struct {
	When     time.Time
	Empty    []int
	Nil      map[string]int
	Big      *big.Int
	Addr     netip.Addr
	Raw      json.RawMessage
	Float    float64
	Any      any
	Bytes    []byte
	Array    [3]uint8
	Embedded struct{ A, B *int }
	lost     int
}

type silent struct{ n int }

func (silent) MarshalJSON() ([]byte, error) { return []byte("{}"), nil }

// compareJSON compares a value with what JSON makes of it.
func compareJSON[V any](t *testing.T, value V) (field, difference string) {
	t.Helper()
	data, err := marshal(Codec[V](jsonCodec[V]{}), value)
	require.NoError(t, err)
	again, err := unmarshal(Codec[V](jsonCodec[V]{}), data)
	require.NoError(t, err)
	return compareValues(value, again)
}

func TestValuesThatChange(t *testing.T) {
	tests := []struct {
		compare    func(*testing.T) (field, difference string)
		field      string
		difference string
	}{
		{func(t *testing.T) (string, string) { return compareJSON(t, priced{"tea", 7}) }, "priced.price", "unexported"},
		{func(t *testing.T) (string, string) { return compareJSON(t, &priced{"tea", 7}) }, "priced.price", "unexported"},
		{func(t *testing.T) (string, string) { return compareJSON(t, []*priced{nil, {"tea", 7}}) }, "priced[].price", "unexported"},
		{func(t *testing.T) (string, string) { return compareJSON(t, map[string]priced{"secret": {"tea", 7}}) }, "priced[].price", "unexported"},
		{func(t *testing.T) (string, string) { return compareJSON(t, any(int64(7))) }, "value", "int64 became float64"},
		{func(t *testing.T) (string, string) { return compareJSON(t, any(priced{})) }, "value", "priced became map[string]interface {}"},
		{func(t *testing.T) (string, string) {
			return compareJSON(t, attributes{Inner: &attributes{Attrs: map[string]any{"secret": int64(7)}}})
		}, "attributes.Inner.Attrs[]", "int64 became float64"},
		{func(t *testing.T) (string, string) { return compareJSON(t, attributes{List: []any{"a", 'b'}}) }, "attributes.List[]", "int32 became float64"},
		{func(t *testing.T) (string, string) { return compareJSON(t, attributes{Not: "secret"}) }, "attributes.Not", "string comes back empty"},
		{func(t *testing.T) (string, string) { return compareJSON(t, "a\xff") }, "string", "string comes back with another value"},
		{func(t *testing.T) (string, string) { return compareJSON(t, map[string]int{"a\xff": 1}) }, "value", "a key of map[string]int"},
		{func(t *testing.T) (string, string) { return compareJSON(t, silent{1}) }, "silent", "comes back empty"},
		{func(t *testing.T) (string, string) { return compareJSON(t, fine{lost: 1}) }, "fine.lost", "unexported"},
		{func(*testing.T) (string, string) { return compareValues(func() {}, nil) }, "value", "func() does not come back"},
		{func(*testing.T) (string, string) { return compareValues(make(chan int), nil) }, "value", "chan int does not come back"},
		{func(*testing.T) (string, string) { return compareValues([]int{1}, []int{}) }, "value", "[]int comes back with another length"},
		{func(*testing.T) (string, string) { return compareValues(error(errors.New("a")), nil) }, "error", "error does not come back"},
		{func(*testing.T) (string, string) { return compareValues(math.NaN(), 1) }, "float64", "float64 comes back with another value"},
	}
	for _, test := range tests {
		field, difference := test.compare(t)
		require.Equal(t, test.field, field, difference)
		require.Contains(t, difference, test.difference)
		require.NotContains(t, field+difference, "secret")
	}
}

func TestValuesThatAreTheSame(t *testing.T) {
	n := 7
	same := func(field, difference string) {
		t.Helper()
		require.Empty(t, field+difference)
	}
	same(compareJSON(t, fine{
		When: time.Now(), Empty: []int{}, Big: big.NewInt(1), Addr: netip.MustParseAddr("::1"), Raw: json.RawMessage(`{"a": 1}`),
		Float: 1.5, Any: map[string]any{"a": []any{"b", 1.5, nil, true}}, Bytes: []byte{}, Embedded: struct{ A, B *int }{A: &n},
	}))
	same(compareJSON(t, fine{When: time.Now().In(time.FixedZone("x", 3600)), Raw: json.RawMessage("null")}))
	same(compareJSON(t, (*fine)(nil)))
	same(compareJSON(t, any(nil)))
	locked := &guarded{N: 1} // what its lock guards may change meanwhile
	locked.mu.Lock()
	locked.cache = map[string]int{"a": 1}
	locked.mu.Unlock()
	same(compareJSON(t, locked))
	same(compareValues(math.NaN(), math.NaN()))
	same(compareValues(map[float64]int{math.NaN(): 1}, map[float64]int{math.NaN(): 1}))
	same(compareValues(map[any]int{[1]float64{math.NaN()}: 1}, map[any]int{[1]float64{math.NaN()}: 1}))
	same(compareValues([]int(nil), []int{}))
	same(compareValues(math.Copysign(0, -1), 0))
	same(compareValues(context.Background(), context.Background()))

	type node struct {
		Next *node
		Any  any
		m    map[string]*node
	}
	cycle := func() *node {
		a := &node{m: map[string]*node{}}
		a.Next, a.Any, a.m["a"] = a, a, a
		return a
	}
	same(compareValues(cycle(), cycle()))
	deep := func() *node {
		var n *node
		for range 1_000_000 {
			n = &node{Next: n}
		}
		return n
	}
	same(compareValues(deep(), deep()))
	same(compareValues(make([]int, 10_000_000), make([]int, 10_000_000)))
}

// The first value of each cache that is stored is compared with what comes back, and the
// log says once what is not the same, and shows nothing of it.
func TestSharedValuesAreChecked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{})
		defer bus.Close()
		var log bytes.Buffer
		o, err := BackplaneOptions{Logger: slog.New(slog.NewTextHandler(&log, nil))}.withDefaults()
		require.NoError(t, err)
		in := bus.Instance(0)
		bp, err := joinBus(t.Context(), o, in.Bus(), simulatedIdentity(instanceID{1}, in.Jitter), in.Jitter)
		require.NoError(t, err)
		defer func() { require.NoError(t, bp.Close()) }()
		for _, name := range []string{"one", "two"} {
			c, err := New(bp, Options[string, priced]{
				Name: name, NotFoundTTL: time.Minute, Shared: &SharedOptions[priced]{},
				Load: func(_ context.Context, key string) (priced, error) {
					if key == "none" {
						return priced{}, ErrNotFound
					}
					return priced{"secret", 4711}, nil
				},
			})
			require.NoError(t, err)
			_, err = c.Get(t.Context(), "none") // has nothing to compare
			require.ErrorIs(t, err, ErrNotFound)
			for _, key := range []string{"a", "b"} {
				v, err := c.Get(t.Context(), key)
				require.NoError(t, err)
				require.EqualValues(t, 4711, v.price)
				time.Sleep(time.Second)
			}
			require.EqualValues(t, 3, c.Stats().Shared.Stored)
		}
		fits, err := New(bp, Options[string, attributes]{
			Name: "fits", Shared: &SharedOptions[attributes]{},
			Load: func(context.Context, string) (attributes, error) { return attributes{Name: "a"}, nil },
		})
		require.NoError(t, err)
		_, err = fits.Get(t.Context(), "a")
		require.NoError(t, err)
		broken, err := New(bp, Options[string, int]{
			Name: "broken", Shared: &SharedOptions[int]{Codec: oneWayCodec{}},
			Load: func(context.Context, string) (int, error) { return 1, nil },
		})
		require.NoError(t, err)
		_, err = broken.Get(t.Context(), "a")
		require.NoError(t, err)
		time.Sleep(time.Second)

		synctest.Wait()
		text := log.String()
		require.Equal(t, 3, strings.Count(text, "is not the same when it comes back"), text)
		require.Equal(t, 2, strings.Count(text, "field=priced.price"), text)
		for _, cache := range []string{"one", "two"} {
			require.Equal(t, 1, strings.Count(text, "cache="+cache), text)
		}
		require.Contains(t, text, "cache=broken field=int difference=\"it cannot be decoded\"")
		require.NotContains(t, text, "secret")
		require.NotContains(t, text, "4711")
	})
}

// oneWayCodec reads nothing.
type oneWayCodec struct{ jsonCodec[int] }

func (oneWayCodec) Unmarshal([]byte) (int, error) { panic("a secret") }
