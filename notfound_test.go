package nearcache

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A loader that asks a cache for another item, which does not exist, says nothing of its
// own by wrapping that.
//
//  1. a product is loaded, and asks for its category   2. there is no such category
//  3. the product's loader returns an error that wraps the not-found.
func TestNotFoundOfAnotherItem(t *testing.T) {
	type cache = *Cache[string, string]
	asks := map[string]func(ctx context.Context, c cache) (string, error){
		"Get":     func(ctx context.Context, c cache) (string, error) { return c.Get(ctx, "category") },
		"Refresh": func(ctx context.Context, c cache) (string, error) { return c.Refresh(ctx, "category") },
		"Get, in a context of its own": func(ctx context.Context, c cache) (string, error) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Hour)
			defer cancel()
			return c.Get(ctx, "category")
		},
	}
	wraps := map[string]func(error) error{
		"as it is": func(err error) error { return err },
		"wrapped":  func(err error) error { return fmt.Errorf("category of the product: %w", err) },
		"joined":   func(err error) error { return errors.Join(errors.New("product"), err) },
	}
	of := map[string]func(o *Options[string, string]){
		"kept":     func(o *Options[string, string]) { o.NotFoundTTL = time.Hour },
		"not kept": func(*Options[string, string]) {},
		"of a custom kind": func(o *Options[string, string]) {
			load := o.Load
			o.Load = func(ctx context.Context, key string) (string, error) {
				v, err := load(ctx, key)
				if err == ErrNotFound {
					err = sql.ErrNoRows
				}
				return v, err
			}
			o.IsNotFound = func(err error) bool { return errors.Is(err, sql.ErrNoRows) }
		},
	}
	for askedBy, ask := range asks {
		for wrapped, wrap := range wraps {
			for kind, change := range of {
				for _, same := range []bool{false, true} {
					t.Run(fmt.Sprintf("%s, %s, %s, of the same cache: %t", askedBy, wrapped, kind, same), func(t *testing.T) {
						var log lines
						bp := log.backplane()
						loads := 0
						var products, categories cache
						load := func(ctx context.Context, key string) (string, error) {
							if key == "category" {
								return "", ErrNotFound
							}
							loads++
							_, err := ask(ctx, categories)
							require.Error(t, err)
							bare := error(ErrNotFound)
							if !errors.Is(err, bare) {
								bare = sql.ErrNoRows
							}
							require.ErrorIs(t, err, bare)
							require.Equal(t, bare.Error(), err.Error())
							return "", wrap(err)
						}
						o := Options[string, string]{Name: "categories", Load: load}
						change(&o)
						var err error
						categories, err = New(bp, o)
						require.NoError(t, err)
						products = categories
						if !same {
							o.Name, o.NotFoundTTL, o.Load = "products", time.Hour, load
							o.IsNotFound = func(err error) bool { return errors.Is(err, ErrNotFound) || errors.Is(err, sql.ErrNoRows) }
							products, err = New(bp, o)
							require.NoError(t, err)
						}
						_, _ = categories.Get(t.Context(), "category") // it may be kept from here on
						for range 2 {
							_, err := products.Get(t.Context(), "product")
							require.Error(t, err)
							require.False(t, err == ErrNotFound, "the loader's error comes back as it is")
						}
						require.Equal(t, 2, loads, "it is not kept as missing")
						got, err := products.GetMany(t.Context(), "product")
						require.Empty(t, got)
						var failed *KeysError[string]
						require.ErrorAs(t, err, &failed, "it is not told to be missing")
						require.EqualValues(t, 3, products.Stats().LoadErrors)
						require.Len(t, log.all(), 1)
						require.Contains(t, log.all()[0], "cache="+products.name+" of=categories")
					})
				}
			}
		}
	}
}

// What a loader says of its own item counts, however it came to know.
func TestNotFoundOfTheLoadersOwn(t *testing.T) {
	bp := quietBackplane()
	categories, err := New(bp, Options[string, string]{
		Name: "categories", NotFoundTTL: time.Hour,
		Load: func(context.Context, string) (string, error) { return "", fmt.Errorf("no row: %w", ErrNotFound) },
	})
	require.NoError(t, err)
	for name, load := range map[string]func(context.Context) error{
		"ErrNotFound": func(ctx context.Context) error {
			_, err := categories.Get(ctx, "category")
			if errors.Is(err, ErrNotFound) {
				return ErrNotFound
			}
			return err
		},
		"an error that wraps it": func(ctx context.Context) error {
			_, err := categories.Get(ctx, "category")
			return fmt.Errorf("%w: its category: %v", ErrNotFound, err)
		},
		// Nothing can be told here, as is documented.
		"a context that is not the loader's": func(context.Context) error {
			_, err := categories.Get(context.Background(), "category")
			return fmt.Errorf("its category: %w", err)
		},
	} {
		t.Run(name, func(t *testing.T) {
			loads := 0
			products, err := New(bp, Options[string, string]{
				Name: "products", NotFoundTTL: time.Hour,
				Load: func(ctx context.Context, _ string) (string, error) {
					loads++
					return "", load(ctx)
				},
			})
			require.NoError(t, err)
			defer products.Close()
			_, err = products.Get(t.Context(), "product")
			require.ErrorIs(t, err, ErrNotFound)
			_, err = products.Get(t.Context(), "product")
			require.True(t, err == ErrNotFound)
			require.Equal(t, 1, loads)
		})
	}
	t.Run("who is no loader gets what there is", func(t *testing.T) {
		_, err := categories.Get(t.Context(), "other")
		require.EqualError(t, err, "no row: "+ErrNotFound.Error())
		_, err = categories.Get(t.Context(), "other")
		require.True(t, err == ErrNotFound)
		require.Zero(t, testing.AllocsPerRun(100, func() { _, _ = categories.Get(t.Context(), "other") }))
	})
}

// A load of many that fails with the not-found of another item has failed for all, and
// what was held stays.
func TestNotFoundOfAnotherItemInLoadMany(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bp := quietBackplane()
		categories, err := New(bp, Options[int, string]{
			Name: "categories", Load: func(context.Context, int) (string, error) { return "", ErrNotFound },
		})
		require.NoError(t, err)
		fails := false
		products, err := New(bp, Options[int, string]{
			Name: "products", NotFoundTTL: time.Hour, TTL: time.Second, StaleIfError: time.Hour,
			LoadMany: func(ctx context.Context, keys []int) (map[int]string, error) {
				if fails {
					_, err := categories.Get(ctx, 1)
					return nil, err
				}
				return map[int]string{1: "a"}, nil
			},
		})
		require.NoError(t, err)
		defer products.Close()
		got, err := products.GetMany(t.Context(), 1)
		require.NoError(t, err)
		require.Equal(t, map[int]string{1: "a"}, got)
		time.Sleep(time.Second)
		fails = true
		got, err = products.GetMany(t.Context(), 1, 2)
		require.Equal(t, map[int]string{1: "a"}, got, "served, since its load failed")
		var failed *KeysError[int]
		require.ErrorAs(t, err, &failed)
		require.Equal(t, []int{2}, failed.Keys)
	})
}
