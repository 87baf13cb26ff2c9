package nearcache

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type (
	ofCaller struct{}
	ofLoader struct{}
)

// A loader's context has its caller's values and none of its end, and is to the
// standard library like one of its own, whenever it is asked what.
func TestLoadContext(t *testing.T) {
	own := errors.New("the caller's")
	derived := map[string]func(context.Context) context.Context{
		"itself":     func(ctx context.Context) context.Context { return ctx },
		"a child":    func(ctx context.Context) context.Context { return child(t, ctx) },
		"of a value": func(ctx context.Context) context.Context { return child(t, context.WithValue(ctx, ofLoader{}, 1)) },
	}
	for name, derive := range derived {
		for _, early := range []bool{true, false} {
			t.Run(name+map[bool]string{true: ", before the end", false: ", after it"}[early], func(t *testing.T) {
				caller, gone := context.WithCancelCause(context.WithValue(t.Context(), ofCaller{}, "v"))
				defer gone(nil)
				c := &loadContext{values: caller}
				var ctx context.Context
				var done <-chan struct{}
				ending := c.ending()
				if early {
					ctx = derive(c)
					done = ctx.Done()
				}
				gone(own)
				if early {
					require.NoError(t, ctx.Err())
					require.NoError(t, context.Cause(ctx))
					require.False(t, isClosed(done))
				}
				require.False(t, isClosed(ending))
				c.end()
				c.end()
				if !early {
					ctx = derive(c)
				}
				// At once: there is no goroutine in between.
				assert.ErrorIs(t, ctx.Err(), context.Canceled)
				assert.ErrorIs(t, context.Cause(ctx), context.Canceled)
				assert.NotErrorIs(t, context.Cause(ctx), own)
				assert.True(t, isClosed(ctx.Done()))
				assert.True(t, isClosed(ending))
				assert.True(t, isClosed(c.ending()))
				if early {
					assert.Equal(t, done, ctx.Done())
				}
				assert.Equal(t, "v", ctx.Value(ofCaller{}))
				assert.Same(t, c, originOf(ctx).load)
				_, limited := ctx.Deadline()
				assert.False(t, limited)
			})
		}
	}
}

// calledWith returns what a call with ctx goes by.
func calledWith(ctx context.Context) *caller {
	from := callerOf(ctx)
	return &from
}

func child(t *testing.T, ctx context.Context) context.Context {
	ctx, cancel := context.WithCancel(ctx)
	t.Cleanup(cancel)
	return ctx
}

// A caller who waits asks for nothing that the loader does not.
func TestLoadContextIsMadeOnDemand(t *testing.T) {
	c := &loadContext{values: t.Context()}
	c.ending()
	_ = c.Err()
	c.Value(loadKey{})
	c.end()
	require.Nil(t, c.standard)
	require.Error(t, c.Err())

	c = &loadContext{values: t.Context()}
	c.end()
	require.True(t, isClosed(c.ending()), "asked for after the end")
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
