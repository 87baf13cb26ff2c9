package loglimit

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Limit
		for range 3 {
			require.True(t, l.Allow())
			for range 10 {
				require.False(t, l.Allow())
				time.Sleep(Interval / 11)
			}
			time.Sleep(Interval)
		}
	})
}

func TestOutage(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o Outage
		require.False(t, o.Works(), "nothing failed")
		require.True(t, o.Failing())
		require.False(t, o.Failing(), "it is said")
		time.Sleep(2 * Interval)
		require.False(t, o.Failing(), "it is said, however long it lasts")
		require.True(t, o.Works())
		require.False(t, o.Works())

		require.True(t, o.Failing(), "the last line is long ago")
		require.True(t, o.Works())
		require.False(t, o.Failing(), "it is not")
		require.False(t, o.Works(), "the log does not say that it failed")
		require.False(t, o.Failing())
		time.Sleep(Interval)
		require.True(t, o.Failing(), "it goes on failing")
		require.True(t, o.Works(), "though this follows soon")
	})
}

func TestOnce(t *testing.T) {
	var o Once
	require.True(t, o.Allow())
	require.False(t, o.Allow())
}
