package nearcachetest_test

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/nearcachetest"
)

// TestRename is what docs/testing.md shows, in one.
func TestRename(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := nearcachetest.Fleet(t, 2)
		db := new(Database)
		a, err := NewCatalogue(fleet.Backplane(0), db)
		require.NoError(t, err)
		b, err := NewCatalogue(fleet.Backplane(1), db)
		require.NoError(t, err)

		require.NoError(t, a.Rename(t.Context(), 42, "Moby Dik"))
		fleet.Settle()
		title, err := b.Title(t.Context(), 42)
		require.NoError(t, err)
		require.Equal(t, "Moby Dik", title)

		require.NoError(t, a.Rename(t.Context(), 42, "Moby Dick"))
		fleet.Settle()
		title, err = b.Title(t.Context(), 42)
		require.NoError(t, err)
		require.Equal(t, "Moby Dick", title)

		fleet.Partition(1)
		require.NoError(t, a.Rename(t.Context(), 42, "The Whale"))
		time.Sleep(5 * time.Second)
		title, err = b.Title(t.Context(), 42)
		require.NoError(t, err)
		require.Equal(t, "The Whale", title)
		fleet.Heal()
		fleet.Settle()

		fleet.StopRedis()
		err = a.Rename(t.Context(), 42, "Moby Dick; or, The Whale")
		require.ErrorIs(t, err, nearcache.ErrUnconfirmed)
		fleet.StartRedis()
		fleet.Settle()
		title, err = b.Title(t.Context(), 42)
		require.NoError(t, err)
		require.Equal(t, "Moby Dick; or, The Whale", title)
	})
}

// An invalidation that comes before the write is found by a read in between.
func TestOrderOfWriteAndRemove(t *testing.T) {
	tests := []struct {
		name    string
		rename  func(c *Catalogue, write func()) error
		serving string
	}{
		{"write, then Remove", func(c *Catalogue, write func()) error {
			write()
			return c.titles.Remove(context.Background(), 42)
		}, "Moby Dick"},
		{"Remove, then write", func(c *Catalogue, write func()) error {
			err := c.titles.Remove(context.Background(), 42)
			write()
			return err
		}, "Moby Dik"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fleet, db := nearcachetest.Fleet(t, 2), new(Database)
				db.titles.Store(42, "Moby Dik")
				a, err := NewCatalogue(fleet.Backplane(0), db)
				require.NoError(t, err)
				b, err := NewCatalogue(fleet.Backplane(1), db)
				require.NoError(t, err)
				require.NoError(t, test.rename(a, func() {
					fleet.Settle()
					_, err := b.Title(t.Context(), 42)
					require.NoError(t, err)
					db.titles.Store(42, "Moby Dick")
				}))
				fleet.Settle()
				title, err := b.Title(t.Context(), 42)
				require.NoError(t, err)
				require.Equal(t, test.serving, title)
			})
		})
	}
}
