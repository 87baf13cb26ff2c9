package nearcachetest_test

import (
	"context"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/nearcachetest"
)

// The simulated Redis keeps values too: what one instance has loaded the others read
// there, as it comes out of the codec.
func TestSharedCaches(t *testing.T) {
	type book struct {
		Title string
		pages int
	}
	synctest.Test(t, func(t *testing.T) {
		fleet := nearcachetest.Fleet(t, 2)
		loads := 0
		var books [2]*nearcache.Cache[int, book]
		for i := range books {
			var err error
			books[i], err = nearcache.New(fleet.Backplane(i), nearcache.Options[int, book]{
				Name: "books", Shared: &nearcache.SharedOptions[book]{},
				Load: func(context.Context, int) (book, error) {
					loads++
					return book{"Moby Dick", 635}, nil
				},
			})
			require.NoError(t, err)
		}
		got, err := books[0].Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, book{"Moby Dick", 635}, got)
		fleet.Settle()
		got, err = books[1].Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, book{Title: "Moby Dick"}, got, "what JSON leaves out is lost")
		require.Equal(t, 1, loads)
		require.NoError(t, books[1].Remove(t.Context(), 1))
		fleet.Settle()
		_, err = books[0].Get(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, 2, loads)
	})
}
