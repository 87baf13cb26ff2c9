package main

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/nearcache/nearcache"
	"github.com/nearcache/nearcache/nearcachetest"
)

func TestTheProgramEndsWell(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	err := run(t.Context(), os.Getenv("REDIS_CONNECTION_STRING"), &out)
	require.NoError(t, err, out.String())
	require.True(t, strings.HasSuffix(out.String(), "OK\n"), out.String())
	require.Contains(t, out.String(), "job: state live\n")
	require.Contains(t, out.String(), "job: state closed\n")
}

func TestTheProgramFindsAJobThatTellsOthers(t *testing.T) {
	t.Parallel()
	redis := miniredis.RunT(t).Addr()
	store := NewStore(documentCount)
	err := watch(t.Context(), redis, "service", store, io.Discard, func() error {
		return job(t.Context(), redis, "another", store, io.Discard)
	})
	require.ErrorContains(t, err, "the service holds 370 old documents")
}

// The job goes on while Redis is away, and ends when everything was told.
func TestTheJobWaitsForRedis(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := nearcachetest.Fleet(t, 2)
		store := NewStore(documentCount)
		documents, err := nearcache.New(fleet.Backplane(1), nearcache.Options[int64, Document]{
			Name:     "documents",
			LoadMany: store.Documents,
		})
		require.NoError(t, err)
		_, err = documents.Get(t.Context(), 1)
		require.NoError(t, err)

		fleet.StopRedis()
		time.AfterFunc(10*time.Second, fleet.StartRedis)
		began := time.Now()
		require.NoError(t, Reindex(t.Context(), fleet.Backplane(0), store))
		assert.GreaterOrEqual(t, time.Since(began), 10*time.Second)
		fleet.Settle()
		d, err := documents.Get(t.Context(), 1)
		require.NoError(t, err)
		assert.Equal(t, 2, d.Version)
	})
}

func TestTheJobFailsIfRedisStaysAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := nearcachetest.Fleet(t, 1)
		fleet.StopRedis()
		err := Reindex(t.Context(), fleet.Backplane(0), NewStore(documentCount))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		fleet.StartRedis()
		fleet.Settle()
	})
}
