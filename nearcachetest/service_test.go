package nearcachetest_test

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/nearcachetest"
)

// TestRename is the test that docs/testing.md shows.
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
		require.True(t, errors.Is(err, nearcache.ErrUnconfirmed))
		fleet.StartRedis()
		fleet.Settle()
		title, err = b.Title(t.Context(), 42)
		require.NoError(t, err)
		require.Equal(t, "Moby Dick; or, The Whale", title)
	})
}
