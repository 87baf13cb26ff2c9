package main

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/nearcachetest"
)

func TestTheTourEndsWell(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	err := run(t.Context(), os.Getenv("REDIS_CONNECTION_STRING"), &out)
	require.NoError(t, err, out.String())
	require.True(t, strings.HasSuffix(out.String(), "OK\n"), out.String())
}

func TestTheTourFindsInstancesThatDoNotHearEachOther(t *testing.T) {
	t.Parallel()
	redis := miniredis.RunT(t)
	store := NewStore()
	a, err := start(t.Context(), redis.Addr(), "one", store)
	require.NoError(t, err)
	defer a.close()
	b, err := start(t.Context(), redis.Addr(), "another", store)
	require.NoError(t, err)
	defer b.close()
	require.ErrorContains(t, tour(t.Context(), store, a, b, io.Discard), "does not show on the other instance")
}

// What a service tests of its own: each way to change something, seen from another
// instance that holds a copy.
func TestChangesShowOnTheOtherInstance(t *testing.T) {
	changes := []struct {
		name    string
		change  func(context.Context, *Service) error
		changed func(Item) bool
	}{
		{
			"rename",
			func(ctx context.Context, s *Service) error { return s.Rename(ctx, 1, "Moby Dick") },
			func(i Item) bool { return i.Name == "Moby Dick" },
		}, {
			"discount",
			func(ctx context.Context, s *Service) error { return s.Discount(ctx, "books", 50) },
			func(i Item) bool { return i.Cents == 50 },
		}, {
			"price",
			func(ctx context.Context, s *Service) error {
				_, err := s.SetPrice(ctx, "SKU-1", 4200)
				return err
			},
			func(i Item) bool { return i.Cents == 4200 },
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

				page, err := b.Page(t.Context(), "books")
				require.NoError(t, err)
				require.False(t, test.changed(page.Items[0]))
				require.NoError(t, test.change(t.Context(), a))
				fleet.Settle()
				page, err = b.Page(t.Context(), "books")
				require.NoError(t, err)
				require.True(t, test.changed(page.Items[0]), "%+v", page.Items[0])
			})
		})
	}
}
