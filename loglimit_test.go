package nearcache

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache/internal/fakebus"
	"github.com/nearcache/nearcache/internal/loglimit"
)

// logLines counts the lines of a log by their text.
type logLines struct {
	mu    sync.Mutex
	count map[string]int
}

func (l *logLines) logger() *slog.Logger { return slog.New(l) }

func (l *logLines) Enabled(context.Context, slog.Level) bool { return true }
func (l *logLines) WithAttrs([]slog.Attr) slog.Handler       { return l }
func (l *logLines) WithGroup(string) slog.Handler            { return l }

func (l *logLines) Handle(_ context.Context, r slog.Record) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.count == nil {
		l.count = map[string]int{}
	}
	l.count[r.Message]++
	return nil
}

// A Redis that comes and goes makes a line of each kind, and one that says that it is
// over, however many caches there are. OnEvent is told each time.
func TestOutagesAreLoggedNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bus := fakebus.New(fakebus.Options{})
		defer bus.Close()
		var log logLines
		var mu sync.Mutex
		events := map[EventKind]int{}
		o, err := BackplaneOptions{
			Logger: log.logger(), MaxStaleness: time.Second,
			OnEvent: func(e Event) {
				mu.Lock()
				defer mu.Unlock()
				events[e.Kind]++
			},
		}.withDefaults()
		require.NoError(t, err)
		in := bus.Instance(0)
		bp, err := joinBus(t.Context(), o, in.Bus(), simulatedIdentity(instanceID{1}, in.Jitter), in.Jitter)
		require.NoError(t, err)
		defer func() { require.NoError(t, bp.Close()) }()
		const caches = 10
		var all []*Cache[int, int]
		for i := range caches {
			c, err := New(bp, Options[int, int]{
				Name: fmt.Sprint("items-", i), Load: itself, MaxStaleness: Unbounded,
				Shared: &SharedOptions[int]{Timeout: 10 * time.Millisecond},
			})
			require.NoError(t, err)
			all = append(all, c)
		}
		began, key := time.Now(), 0
		use := func(d time.Duration) {
			for end := time.Now().Add(d); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
				for _, c := range all {
					key++
					_, err := c.Get(t.Context(), key)
					require.NoError(t, err)
				}
				gone, cancel := context.WithCancel(t.Context())
				cancel()
				_ = all[0].Remove(gone, key)
			}
		}
		for range 10 {
			bus.RefuseWrites(true)
			use(time.Second)
			bus.RefuseWrites(false)
			use(1500 * time.Millisecond)
			in.Partition()
			use(2 * time.Second)
			in.Heal(true)
			use(1500 * time.Millisecond)
		}
		use(5 * time.Second)
		time.Sleep(time.Second)
		log.mu.Lock()
		lines := maps.Clone(log.count)
		log.mu.Unlock()
		const lost, cannot = "nearcache: subscription lost; connecting again", "nearcache: cannot connect to Redis; trying again until it works"
		const lease = "nearcache: lease lost; items are served for MaxStaleness after their load began, until Redis is heard again"
		for line, n := range lines {
			limit := 1 + int(time.Since(began)/loglimit.Interval)
			if line == "nearcache: live" { // the end of each of these, and the beginning
				limit = 1 + lines[lost] + lines[cannot] + lines[lease]
			}
			require.LessOrEqual(t, n, limit, line)
		}
		for _, line := range []string{
			lost, "nearcache: live",
			"nearcache: publishing failed; invalidations are queued until Redis accepts them", "nearcache: invalidations are published again",
			"nearcache: the shared level fails; items are loaded from the source until Redis answers", "nearcache: the shared level is used again",
			"nearcache: a probe failed; trying again", "nearcache: everything was cleared",
		} {
			require.NotZero(t, lines[line], "%s; there are %v", line, lines)
		}
		mu.Lock()
		defer mu.Unlock()
		require.GreaterOrEqual(t, events[EventSharedFailed], 5*caches)
		require.GreaterOrEqual(t, events[EventSharedResumed], 5*caches)
		require.GreaterOrEqual(t, events[EventPublishFailed], 5)
		require.GreaterOrEqual(t, events[EventState], 5)
	})
}

// The line says how many caches fail, and comes again while they do. When all work, one
// more line says so.
func TestSharedOutageIsOneForAllCaches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o sharedOutage
		guards := make([]valueGuard, 3)
		for i := range guards {
			caches, logged := o.failing(&guards[i])
			require.Equal(t, 1+i, caches)
			require.Equal(t, i == 0, logged)
		}
		require.False(t, o.works(&guards[0]))
		time.Sleep(loglimit.Interval)
		caches, logged := o.failing(&guards[1]) // still
		require.Equal(t, 2, caches)
		require.True(t, logged)
		require.False(t, o.works(&guards[1]))
		require.True(t, o.works(&guards[2]))
		_, logged = o.failing(&guards[0])
		require.False(t, logged)
		require.False(t, o.works(&guards[0]), "the log does not say that it failed")
	})
}
