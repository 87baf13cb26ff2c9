package nearcache

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// coded is an error that wraps another, and says more than its text does.
type coded struct {
	code int
	err  error
}

func (e *coded) Error() string { return "coded" }
func (e *coded) Unwrap() error { return e.err }

// list is an error that cannot be compared.
type list []error

func (l list) Error() string { return "a list" }

// errors.Is and errors.As find each cause, whatever its text, and a cause has one
// KeysError however often it was wrapped.
func TestGetManyTellsCausesApart(t *testing.T) {
	one, other := errors.New("same text"), errors.New("same text")
	tests := []struct {
		name   string
		err    func(key int) error // of the keys 0 to 3
		groups [][]int
		is     []error
	}{
		{
			name: "two errors with one text", err: func(key int) error { return []error{one, other}[key%2] },
			groups: [][]int{{0, 2}, {1, 3}}, is: []error{one, other},
		}, {
			name: "the same, wrapped for each key", err: func(key int) error { return fmt.Errorf("loading: %w", []error{one, other}[key%2]) },
			groups: [][]int{{0, 2}, {1, 3}}, is: []error{one, other},
		}, {
			name: "wrapped twice", err: func(key int) error { return fmt.Errorf("a: %w", fmt.Errorf("b: %w", one)) },
			groups: [][]int{{0, 1, 2, 3}}, is: []error{one},
		}, {
			name: "joined", err: func(key int) error { return errors.Join(one, []error{other, io.EOF}[key/2]) },
			groups: [][]int{{0, 1}, {2, 3}}, is: []error{one, other, io.EOF},
		}, {
			name: "joined behind the same first", err: func(key int) error { return errors.Join(io.EOF, []error{one, other}[key/2]) },
			groups: [][]int{{0, 1}, {2, 3}}, is: []error{one, other, io.EOF},
		}, {
			name: "several %w", err: func(key int) error { return fmt.Errorf("%w: %w", io.EOF, []error{one, other}[key%2]) },
			groups: [][]int{{0, 2}, {1, 3}}, is: []error{one, other},
		}, {
			name: "fields that the text does not show", err: func(key int) error { return &coded{key % 2, one} },
			groups: [][]int{{0, 2}, {1, 3}}, is: []error{one},
		}, {
			name: "an error of the standard library", err: func(key int) error { return &fs.PathError{Op: "open", Path: "x", Err: fs.ErrNotExist} },
			groups: [][]int{{0, 1, 2, 3}}, is: []error{fs.ErrNotExist},
		}, {
			name: "what cannot be compared", err: func(key int) error { return list{[]error{one, other}[key%2]} },
			groups: [][]int{{0, 2}, {1, 3}},
		}, {
			name: "made for each key", err: func(key int) error { return errors.New("down") },
			groups: [][]int{{0}, {1}, {2}, {3}},
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c, err := New(Local(), Options[int, int]{
				Name: "p", Load: func(_ context.Context, key int) (int, error) { return 0, test.err(key) },
			})
			require.NoError(t, err)
			_, err = c.GetMany(t.Context(), 0, 1, 2, 3)
			for _, cause := range test.is {
				require.ErrorIs(t, err, cause)
			}
			all := []error{err}
			if several, ok := err.(interface{ Unwrap() []error }); ok {
				all = several.Unwrap()
			}
			var groups [][]int
			for _, err := range all {
				failed := err.(*KeysError[int])
				require.Equal(t, "p", failed.Cache)
				for _, key := range failed.Keys {
					require.Equal(t, test.err(key).Error(), failed.Err.Error())
				}
				groups = append(groups, failed.Keys)
			}
			require.Equal(t, test.groups, groups)
			var code *coded
			if test.name == "fields that the text does not show" {
				require.ErrorAs(t, all[1], &code)
				require.Equal(t, 1, code.code)
			}
		})
	}
}

// As many causes as keys make no text that nobody can read, and take no time that grows
// with their square.
func TestGetManyOfManyCauses(t *testing.T) {
	const keys = 100_000
	last := errors.New("down")
	for name, fails := range map[string]func(key int) error{
		"one text":               func(int) error { return errors.New("down") },
		"one text, wrapping one": func(key int) error { return &coded{key, last} },
		"a text each":            func(key int) error { return fmt.Errorf("item %d: down", key) },
	} {
		t.Run(name, func(t *testing.T) {
			var all keyFailures[int]
			for key := range keys {
				all.add(key, fails(key))
			}
			all.add(keys, last)
			err := all.err("p")
			require.ErrorIs(t, err, last)
			require.Less(t, len(err.Error()), 2000)
			require.LessOrEqual(t, strings.Count(err.Error(), "\n"), mostNamed)
			if name == "one text" {
				require.Equal(t, `nearcache: cache "p": not loaded: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 99991 more: down`, err.Error())
			}
			if name == "a text each" {
				require.Contains(t, err.Error(), `nearcache: cache "p": not loaded: 9: item 9: down`)
				require.True(t, strings.HasSuffix(err.Error(), "\nnearcache: cache \"p\": not loaded: 99991 more, for other reasons"))
			}
		})
	}
}

// A key that fails with the error of many has its place in their order.
func TestGetManyMergesWhatLoadManyReturned(t *testing.T) {
	bad := list{io.EOF}
	c, err := New(Local(), Options[int, int]{
		Name: "p", LoadMany: func(context.Context, []int) (map[int]int, error) { return nil, bad },
	})
	require.NoError(t, err)
	keys := make([]int, 1000)
	for i := range keys {
		keys[i] = i
	}
	_, err = c.GetMany(t.Context(), keys...)
	failed, ok := err.(*KeysError[int])
	require.True(t, ok)
	require.True(t, slices.Equal(keys, failed.Keys))
}
