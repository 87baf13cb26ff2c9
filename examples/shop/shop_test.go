package main

import (
	"context"
	"net/http"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/internal/redistest"
	"github.com/nearcache/nearcache/nearcachetest"
)

// givenRedis is the one in the environment, or one that the test starts.
func givenRedis(t *testing.T) string {
	if redis := os.Getenv("REDIS_CONNECTION_STRING"); redis != "" {
		return redis
	}
	return "unix://" + redistest.StartOnSocket(t)
}

func TestTheTourEndsWell(t *testing.T) {
	t.Parallel()
	for name, redis := range map[string]func(*testing.T) string{
		"process-local": func(*testing.T) string { return "" },
		"with Redis":    givenRedis,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var out strings.Builder
			require.NoError(t, run(t.Context(), redis(t), &out), out.String())
			require.True(t, strings.HasSuffix(out.String(), "OK\n"), out.String())
		})
	}
}

// newTour returns one whose instances end with the test.
func newTour(t *testing.T, redis string) (*tour, *strings.Builder) {
	var out strings.Builder
	tour := &tour{redis: redis, store: NewStore(), out: &out}
	t.Cleanup(func() { require.NoError(t, tour.close()) })
	return tour, &out
}

func TestTheTourFindsInstancesThatDoNotShare(t *testing.T) {
	t.Parallel()
	tour, out := newTour(t, givenRedis(t))
	ctx := t.Context()
	tour.visit(ctx, tour.start(ctx, "a", newChannel()), tour.start(ctx, "b", newChannel()))
	if !strings.Contains(out.String(), "but Redis was slow") {
		require.ErrorContains(t, tour.err, "that should have been: product Redis", out.String())
	}
}

// What a service tests of its own: each way to change something, seen from another
// instance that holds a copy. Here nothing is shared, as there is no real Redis.
func TestChangesShowOnTheOtherInstance(t *testing.T) {
	changes := []struct {
		name   string
		change func(context.Context, *Service) error
		want   Item
	}{
		{
			"product",
			func(ctx context.Context, s *Service) error { return s.Change(ctx, 3, "Go", 4000) },
			Item{Product{Name: "Go"}, 4000},
		}, {
			"category",
			func(ctx context.Context, s *Service) error { return s.Discount(ctx, "books", 50) },
			Item{Product{Name: "Product 3"}, 1500},
		},
	}
	for _, test := range changes {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fleet := nearcachetest.Fleet(t, 2)
				store := NewStore()
				a, err := NewService(fleet.Backplane(0), store)
				require.NoError(t, err)
				b, err := NewService(fleet.Backplane(1), store)
				require.NoError(t, err)

				_, err = b.Item(t.Context(), 3)
				require.NoError(t, err)
				require.NoError(t, test.change(t.Context(), a))
				fleet.Settle()
				item, err := b.Item(t.Context(), 3)
				require.NoError(t, err)
				require.Equal(t, test.want.Name, item.Name)
				require.Equal(t, test.want.Cents, item.Cents)
			})
		})
	}
}

// The same over a real Redis: what was changed is not read from there either, by an
// instance that has nothing in memory.
func TestChangesShowOnANewInstance(t *testing.T) {
	t.Parallel()
	tour, _ := newTour(t, givenRedis(t))
	ctx, channel := t.Context(), newChannel()
	a := tour.start(ctx, "a", channel)
	require.NoError(t, tour.err)
	var item Item
	for n, change := range []string{"/products/3?name=Go&cents=4000", "/categories/books?discount=50"} {
		tour.request(ctx, a, http.MethodGet, "/products/3", "", http.StatusOK, nil)
		tour.request(ctx, a, http.MethodPut, change, "alice", http.StatusOK, nil)
		b := tour.start(ctx, "b", channel)
		require.NoError(t, tour.err)
		tour.request(ctx, b, http.MethodGet, "/products/3", "", http.StatusOK, &item)
		require.NoError(t, tour.err)
		require.Equal(t, "Go", item.Name)
		require.EqualValues(t, []int64{4000, 2000}[n], item.Cents)
	}
}

func TestStatusCodes(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name, method, path, user string
		code                     int
	}{
		{"a product", http.MethodGet, "/products/1", "", http.StatusOK},
		{"no such product", http.MethodGet, "/products/0", "", http.StatusNotFound},
		{"no number", http.MethodGet, "/products/one", "", http.StatusNotFound},
		{"a change", http.MethodPut, "/products/1?name=Go&cents=1", "alice", http.StatusOK},
		{"a change of nothing", http.MethodPut, "/products/0?name=Go&cents=1", "alice", http.StatusNotFound},
		{"a change by a reader", http.MethodPut, "/products/1?name=Go&cents=1", "bob", http.StatusForbidden},
		{"a change by somebody unknown", http.MethodPut, "/products/1?name=Go&cents=1", "eve", http.StatusForbidden},
		{"a change by nobody", http.MethodPut, "/categories/books?discount=99", "", http.StatusForbidden},
		{"statistics", http.MethodGet, "/stats", "", http.StatusOK},
	}
	tour, _ := newTour(t, "")
	a := tour.start(t.Context(), "a", "shop")
	require.NoError(t, tour.err)
	require.Equal(t, nearcache.StateLocal, a.backplane.State())
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			code, _ := a.call(t.Context(), test.method, test.path, test.user, nil)
			require.Equal(t, test.code, code)
		})
	}
}
