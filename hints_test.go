package nearcache

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/loglimit"
)

// lines is a log for a test to look at.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) all() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.FieldsFunc(l.buf.String(), func(r rune) bool { return r == '\n' })
}

// backplane returns a process-local backplane that logs to l.
func (l *lines) backplane() *Backplane {
	bp := quietBackplane()
	bp.logger = slog.New(slog.NewTextHandler(l, nil))
	bp.staleness = defaultMaxStaleness
	return bp
}

// Options that have no effect beside another are told of once, when the cache is made.
// Those that may be meant are not.
func TestOptionsThatMakeNoSense(t *testing.T) {
	type options = Options[string, string]
	expiry := func(string, string) time.Duration { return time.Hour }
	one := func(string, error) uint32 { return 1 }
	tests := map[string]struct {
		o    options
		want string // empty: no line
	}{
		"the defaults":                         {},
		"everything in order":                  {o: options{TTL: time.Minute, RefreshAfter: time.Second, IdleTTL: time.Minute, StaleIfError: time.Hour, SoftTimeout: time.Second, LoadTimeout: time.Second, NotFoundTTL: time.Hour, ErrorTTL: time.Hour}},
		"RefreshAfter is TTL":                  {o: options{TTL: time.Minute, RefreshAfter: time.Minute}, want: "RefreshAfter=1m0s TTL=1m0s"},
		"RefreshAfter is more than TTL":        {o: options{RefreshAfter: time.Hour}, want: "RefreshAfter=1h0m0s TTL=5m0s"},
		"RefreshAfter with Expiry":             {o: options{RefreshAfter: time.Hour, Expiry: expiry}},
		"IdleTTL is more than TTL":             {o: options{IdleTTL: time.Hour}, want: "IdleTTL=1h0m0s TTL=5m0s"},
		"IdleTTL with Expiry":                  {o: options{IdleTTL: time.Hour, Expiry: expiry}},
		"IdleTTL without TTL":                  {o: options{IdleTTL: time.Hour, TTL: NoExpiry}},
		"SoftTimeout is more than LoadTimeout": {o: options{SoftTimeout: time.Minute, LoadTimeout: time.Second, StaleIfError: time.Hour}, want: "SoftTimeout=1m0s LoadTimeout=1s"},
		"SoftTimeout without LoadTimeout":      {o: options{SoftTimeout: time.Minute, StaleIfError: time.Hour}},
		"StaleIfError of what never expires":   {o: options{TTL: NoExpiry, StaleIfError: time.Hour}, want: "StaleIfError=1h0m0s"},
		"StaleIfError of what expires":         {o: options{TTL: NoExpiry, Expiry: expiry, StaleIfError: time.Hour}},
		"MaxWeight below that of a not-found":  {o: options{MaxWeight: 100, NotFoundTTL: time.Hour}, want: "MaxWeight=100"},
		"MaxWeight below, in another unit":     {o: options{MaxWeight: 100, NotFoundTTL: time.Hour, WeighNotFound: one}},
		"MaxWeight below, and nothing kept":    {o: options{MaxWeight: 100}},
		"WeighNotFound of nothing":             {o: options{MaxWeight: 100, WeighNotFound: one}, want: "WeighNotFound is set"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			var log lines
			test.o.Name = "p"
			test.o.Load = func(context.Context, string) (string, error) { return "", nil }
			if test.o.MaxWeight > 0 {
				test.o.Weigh = func(string, string) uint32 { return 1 }
			}
			c, err := New(log.backplane(), test.o)
			require.NoError(t, err)
			defer c.Close()
			if test.want == "" {
				require.Empty(t, log.all())
				return
			}
			require.Len(t, log.all(), 1)
			require.Contains(t, log.all()[0], "level=WARN")
			require.Contains(t, log.all()[0], "cache=p")
			require.Contains(t, log.all()[0], test.want)
		})
	}
}

// Loads whose results have expired when they come are of no use, and nothing else would
// say so.
func TestLoadsLongerThanTheirLife(t *testing.T) {
	errSlow := errors.New("slow")
	tests := map[string]struct {
		o    Options[int, string]
		err  error
		want string // empty: no line
	}{
		"TTL":                   {o: Options[int, string]{TTL: time.Second}, want: "option=TTL"},
		"TTL, and served stale": {o: Options[int, string]{TTL: time.Second, StaleIfError: time.Hour}, want: "option=TTL"},
		"Expiry":                {o: Options[int, string]{Expiry: func(int, string) time.Duration { return time.Second }}, want: "option=Expiry"},
		"NotFoundTTL":           {o: Options[int, string]{NotFoundTTL: time.Second}, err: ErrNotFound, want: "option=NotFoundTTL"},
		"ErrorTTL":              {o: Options[int, string]{ErrorTTL: time.Second}, err: errSlow, want: "option=ErrorTTL"},
		"long enough":           {o: Options[int, string]{TTL: time.Hour}},
		"not to be kept":        {o: Options[int, string]{Expiry: func(int, string) time.Duration { return 0 }}},
		"an error":              {o: Options[int, string]{TTL: time.Second}, err: errSlow},
		"a not-found":           {o: Options[int, string]{TTL: time.Second}, err: ErrNotFound},
	}
	for name, test := range tests {
		for _, many := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					var log lines
					test.o.Name = "p"
					if test.o.Load, test.o.LoadMany = nil, nil; many {
						test.o.LoadMany = func(_ context.Context, keys []int) (map[int]string, error) {
							time.Sleep(time.Minute)
							if test.err != nil && test.err != ErrNotFound {
								return nil, test.err
							}
							got := map[int]string{}
							for _, key := range keys {
								if test.err == nil {
									got[key] = "v"
								}
							}
							return got, nil
						}
					} else {
						test.o.Load = func(context.Context, int) (string, error) {
							time.Sleep(time.Minute)
							return "v", test.err
						}
					}
					c, err := New(log.backplane(), test.o)
					require.NoError(t, err)
					defer c.Close()
					_, _ = c.GetMany(t.Context(), 1, 2)
					_, _ = c.Get(t.Context(), 3)
					if test.want == "" {
						require.Empty(t, log.all())
						return
					}
					require.Len(t, log.all(), 1)
					require.Contains(t, log.all()[0], "level=WARN")
					require.Contains(t, log.all()[0], "cache=p took=1m0s "+test.want)
				})
			})
		}
	}
}

// A panic that no caller gets to see is logged with its stack, and not more often than
// once a minute. One that is raised in a caller is not.
func TestPanicsThatNobodyHears(t *testing.T) {
	for name, ends := range map[string]func(){
		"panic":  func() { panic("the source is " + "broken") },
		"Goexit": runtime.Goexit,
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				fails := false
				c, err := New(log.backplane(), Options[int, string]{
					Name: "p", RefreshAfter: time.Minute, TTL: time.Hour,
					Load: func(ctx context.Context, key int) (string, error) {
						if fails {
							ends()
						}
						return "v", nil
					},
				})
				require.NoError(t, err)
				defer c.Close()
				hit := func(key int) {
					_, err := c.Get(t.Context(), key)
					require.NoError(t, err)
					synctest.Wait()
				}
				hit(1)
				hit(2)
				time.Sleep(time.Minute)
				fails = true
				hit(1)
				hit(2)
				require.Len(t, log.all(), 1)
				require.Contains(t, log.all()[0], "level=ERROR")
				require.Contains(t, log.all()[0], "cache=p")
				if name == "panic" {
					require.Contains(t, log.all()[0], "the source is broken")
					require.Contains(t, log.all()[0], "TestPanicsThatNobodyHears", "its stack")
				} else {
					require.Contains(t, log.all()[0], errGoexit.Error())
				}
				require.EqualValues(t, 2, c.Stats().LoadErrors)
				time.Sleep(loglimit.Interval)
				hit(1)
				require.Len(t, log.all(), 2)
			})
		})
	}
	t.Run("raised in a caller", func(t *testing.T) {
		var log lines
		c, err := New(log.backplane(), Options[int, string]{Name: "p", Load: func(context.Context, int) (string, error) { panic("loud") }})
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context()) // in a goroutine of its own
		defer cancel()
		require.Panics(t, func() { _, _ = c.Get(ctx, 1) })
		require.Panics(t, func() { _, _ = c.Get(context.Background(), 1) })
		require.Empty(t, log.all())
	})
	t.Run("after its callers have left", func(t *testing.T) {
		for _, stale := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				var log lines
				begun := 0
				o := Options[int, string]{
					Name: "p", TTL: time.Second,
					Load: func(context.Context, int) (string, error) {
						if begun++; begun == 1 && stale {
							return "v", nil
						}
						time.Sleep(time.Minute)
						panic("late")
					},
				}
				if stale {
					o.StaleIfError, o.SoftTimeout = time.Hour, time.Second
				}
				c, err := New(log.backplane(), o)
				require.NoError(t, err)
				defer c.Close()
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				if stale { // it has something to serve, and lets the load go on
					_, err := c.Get(ctx, 1)
					require.NoError(t, err)
					time.Sleep(time.Second)
					_, err = c.Get(ctx, 1)
					require.NoError(t, err)
				} else {
					_, err := c.Get(ctx, 1)
					require.ErrorIs(t, err, context.DeadlineExceeded)
				}
				time.Sleep(time.Hour)
				require.Len(t, log.all(), 1)
				require.True(t, strings.Contains(log.all()[0], "late"))
			})
		}
	})
}
