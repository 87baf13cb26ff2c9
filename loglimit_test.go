package nearcache

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLogLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l logLimit
		for range 3 {
			require.True(t, l.allow())
			for range 10 {
				require.False(t, l.allow())
				time.Sleep(logInterval / 11)
			}
			time.Sleep(logInterval)
		}
	})
}

func TestOutageLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var o outageLog
		require.False(t, o.works(), "nothing failed")
		require.True(t, o.failing())
		require.False(t, o.failing(), "it is said")
		time.Sleep(2 * logInterval)
		require.False(t, o.failing(), "it is said, however long it lasts")
		require.True(t, o.works())
		require.False(t, o.works())

		require.True(t, o.failing(), "the last line is long ago")
		require.True(t, o.works())
		require.False(t, o.failing(), "it is not")
		require.False(t, o.works(), "the log does not say that it failed")
		require.False(t, o.failing())
		time.Sleep(logInterval)
		require.True(t, o.failing(), "it goes on failing")
		require.True(t, o.works(), "though this follows soon")
	})
}
