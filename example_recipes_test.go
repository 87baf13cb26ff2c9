package nearcache_test

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache"
)

// What database/sql says when there is no row is kept as a not-found.
func ExampleOptions_sqlNoRows() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()

	// recipe: sql not found
	users, err := nearcache.New(bp, nearcache.Options[int64, string]{
		Name: "users",
		Load: func(_ context.Context, id int64) (name string, err error) {
			fmt.Println("SELECT name FROM users WHERE id =", id)
			return name, sql.ErrNoRows // db.QueryRowContext(ctx, …).Scan(&name)
		},
		IsNotFound:  func(err error) bool { return errors.Is(err, sql.ErrNoRows) },
		NotFoundTTL: 30 * time.Second,
	})
	// recipe end
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 2 {
		// recipe: sql not found get
		name, err := users.Get(ctx, 7)
		switch {
		case errors.Is(err, sql.ErrNoRows), errors.Is(err, nearcache.ErrNotFound): // from this load, or kept
			fmt.Println("404:", err)
		case err != nil:
			fmt.Println("503:", err)
		default:
			fmt.Println("200:", name)
		}
		// recipe end
	}
	// Output:
	// SELECT name FROM users WHERE id = 7
	// 404: sql: no rows in result set
	// 404: nearcache: not found
}

// recipe: metrics

// writeMetrics writes what Prometheus scrapes: one snapshot has all caches.
func writeMetrics(w io.Writer, bp *nearcache.Backplane) {
	s := bp.Stats()
	fmt.Fprintf(w, "nearcache_state{state=%q} 1\n", s.State)
	fmt.Fprintf(w, "nearcache_queued %d\n", s.Queued)
	fmt.Fprintf(w, "nearcache_queue_age_seconds %g\n", s.QueueAge.Seconds())
	fmt.Fprintf(w, "nearcache_gaps_total %d\n", s.Clears.Gaps())
	fmt.Fprintf(w, "nearcache_lease_lost_total %d\n", s.Lease.Lost)
	for _, m := range []struct {
		name  string
		value func(nearcache.CacheStats) any
	}{
		{"nearcache_entries", func(c nearcache.CacheStats) any { return c.Entries }},
		{"nearcache_hits_total", func(c nearcache.CacheStats) any { return c.Hits }},
		{"nearcache_misses_total", func(c nearcache.CacheStats) any { return c.Misses.Total() }},
		{"nearcache_loads_total", func(c nearcache.CacheStats) any { return c.Loads }},
		{"nearcache_load_errors_total", func(c nearcache.CacheStats) any { return c.LoadErrors }},
		{"nearcache_load_seconds_total", func(c nearcache.CacheStats) any { return c.LoadTime.Seconds() }},
		{"nearcache_stale_total", func(c nearcache.CacheStats) any { return c.Stale }},
	} {
		for _, c := range s.Caches {
			fmt.Fprintf(w, "%s{cache=%q} %v\n", m.name, c.Name, m.value(c))
		}
	}
}

// recipe end

// Metrics of a backplane and all its caches, for a handler of /metrics.
func ExampleBackplane_Stats_scrape() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	names, _ := nearcache.New(bp, nearcache.Options[int, string]{
		Name: "names",
		Load: func(context.Context, int) (string, error) { return "Alice", errors.New("no database") },
	})
	ages, _ := nearcache.New(bp, nearcache.Options[int, int]{
		Name:     "ages",
		LoadMany: func(context.Context, []int) (map[int]int, error) { return map[int]int{}, nil },
	})
	_ = ages.Set(ctx, 1, 42)
	_, _ = ages.Get(ctx, 1)
	_ = names.Remove(ctx, 1)
	writeMetrics(os.Stdout, bp)
	// Output:
	// nearcache_state{state="local"} 1
	// nearcache_queued 0
	// nearcache_queue_age_seconds 0
	// nearcache_gaps_total 0
	// nearcache_lease_lost_total 0
	// nearcache_entries{cache="ages"} 1
	// nearcache_entries{cache="names"} 0
	// nearcache_hits_total{cache="ages"} 1
	// nearcache_hits_total{cache="names"} 0
	// nearcache_misses_total{cache="ages"} 0
	// nearcache_misses_total{cache="names"} 0
	// nearcache_loads_total{cache="ages"} 0
	// nearcache_loads_total{cache="names"} 0
	// nearcache_load_errors_total{cache="ages"} 0
	// nearcache_load_errors_total{cache="names"} 0
	// nearcache_load_seconds_total{cache="ages"} 0
	// nearcache_load_seconds_total{cache="names"} 0
	// nearcache_stale_total{cache="ages"} 0
	// nearcache_stale_total{cache="names"} 0
}

// An instance loads what is asked for most before it says that it is ready.
func ExampleCache_GetMany_warmUp() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	prices, _ := nearcache.New(bp, nearcache.Options[int64, int]{
		Name: "prices",
		LoadMany: func(_ context.Context, ids []int64) (map[int64]int, error) {
			fmt.Println("SELECT … WHERE id IN", ids)
			found := map[int64]int{}
			for _, id := range ids {
				found[id] = 100 * int(id)
			}
			return found, nil
		},
	})
	popular := []int64{1, 2, 3, 4, 5}
	const batch = 2 // some hundreds, in a service

	// recipe: warm up
	warming, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	for ids := range slices.Chunk(popular, batch) {
		if _, err := prices.GetMany(warming, ids...); err != nil {
			fmt.Println("not all is warm:", err) // no reason not to start
			break
		}
	}
	// recipe end
	fmt.Println(prices.Len(), "in memory")
	// Output:
	// SELECT … WHERE id IN [1 2]
	// SELECT … WHERE id IN [3 4]
	// SELECT … WHERE id IN [5]
	// 5 in memory
}

// A loader that reads from a replica may bring, and the cache keep, what the primary
// has replaced already. A second Remove, when the replica has caught up, ends that.
func ExampleCache_Remove_laggingReplica() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	var primary, replica atomic.Int64
	prices, _ := nearcache.New(bp, nearcache.Options[string, int64]{
		Name: "prices",
		Load: func(context.Context, string) (int64, error) { return replica.Load(), nil },
	})
	const replicaLag = 10 * time.Millisecond
	removed := make(chan error)

	primary.Store(350)
	// recipe: lagging replica
	err := prices.Remove(ctx, "tea")
	time.AfterFunc(replicaLag, func() { // the longest lag that you tolerate
		removed <- prices.Remove(context.Background(), "tea")
	})
	// recipe end
	if err != nil {
		fmt.Println(err)
	}

	price, _ := prices.Get(ctx, "tea")
	fmt.Println("the replica lags:", price)
	replica.Store(primary.Load())
	fmt.Println("removed again:", <-removed)
	price, _ = prices.Get(ctx, "tea")
	fmt.Println("it has caught up:", price)
	// Output:
	// the replica lags: 0
	// removed again: <nil>
	// it has caught up: 350
}
