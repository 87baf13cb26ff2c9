package nearcache

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// A clear that comes while a sweep runs may have been too late for it, and gets
// a sweep of its own, once the first has been paid for.
func TestSweepAgainAfterAClearDuringASweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var began []time.Time
		const takes = time.Second
		s := newSweeper(func(func() bool) {
			began = append(began, time.Now())
			time.Sleep(takes)
		}, func() bool { return false })
		defer s.close()

		s.soon()
		time.Sleep(takes / 2)
		s.soon()
		s.soon()
		time.Sleep(time.Hour)
		synctest.Wait()
		require.Len(t, began, 2)
		require.Equal(t, takes+sweepShare*takes, began[1].Sub(began[0]), "it sweeps no more than its share of the time")
		require.False(t, s.armed.Load())
	})
}

func TestSweeperCloseWaitsForTheSweep(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := false
		s := newSweeper(func(stopped func() bool) {
			for !stopped() {
				time.Sleep(time.Second)
			}
			ended = true
		}, func() bool { return true })
		s.soon()
		time.Sleep(time.Minute)
		s.close()
		require.True(t, ended)
		s.soon()
		s.later()
		time.Sleep(time.Hour)
	})
}

func TestSweeperComesBackWhileThingsExpire(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sweeps atomic.Int64
		var due atomic.Bool
		due.Store(true)
		s := newSweeper(func(func() bool) { sweeps.Add(1) }, due.Load)
		defer s.close()
		s.later()
		s.later()
		time.Sleep(3*sweepInterval + sweepInterval/2)
		synctest.Wait()
		require.EqualValues(t, 3, sweeps.Load())
		due.Store(false)
		time.Sleep(time.Hour)
		synctest.Wait()
		require.EqualValues(t, 4, sweeps.Load())
	})
}
