package nearcache_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nearcache/nearcache"
)

// One call of LoadMany brings what is not in memory.
func ExampleCache_GetMany() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	products, err := nearcache.New(bp, nearcache.Options[int64, product]{
		Name: "products",
		LoadMany: func(_ context.Context, ids []int64) (map[int64]product, error) {
			fmt.Println("load", ids)
			found := map[int64]product{}
			for _, id := range ids {
				if p, ok := catalogue[id]; ok {
					found[id] = p
				}
			}
			return found, nil
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _ = products.Get(ctx, 42)
	page, err := products.GetMany(ctx, 42, 43, 44)
	for _, id := range slices.Sorted(maps.Keys(page)) {
		fmt.Println(id, page[id].Name)
	}
	fmt.Println(err)
	// Output:
	// load [42]
	// load [43 44]
	// 42 The Go Programming Language
	// 43 Gopher, plush
	// <nil>
}

// The error says which keys failed, and the map has the others.
func ExampleKeysError() {
	bp := nearcache.Local()
	defer bp.Close()
	stock, err := nearcache.New(bp, nearcache.Options[string, int]{
		Name: "stock",
		LoadMany: func(context.Context, []string) (map[string]int, error) {
			return map[string]int{"hammer": 3}, errors.New("the second warehouse does not answer")
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	counts, err := stock.GetMany(context.Background(), "hammer", "nail", "saw")
	fmt.Println(counts)
	var failed *nearcache.KeysError[string]
	if errors.As(err, &failed) {
		fmt.Println(failed.Keys, failed.Err)
	}
	// Output:
	// map[hammer:3]
	// [nail saw] the second warehouse does not answer
}

func ExampleCache_Refresh() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	rate := 1.08
	rates, err := nearcache.New(bp, nearcache.Options[string, float64]{
		Name: "rates",
		Load: func(context.Context, string) (float64, error) { return rate, nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(rates.Get(ctx, "EURUSD"))
	rate = 1.09
	fmt.Println(rates.Get(ctx, "EURUSD"))
	fmt.Println(rates.Refresh(ctx, "EURUSD")) // other instances keep what they have
	fmt.Println(rates.Get(ctx, "EURUSD"))
	// Output:
	// 1.08 <nil>
	// 1.08 <nil>
	// 1.09 <nil>
	// 1.09 <nil>
}

// Hits on an item that is old have it loaded again, and do not wait for that.
func ExampleOptions_refreshAfter() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	refreshed := make(chan struct{})
	loads := 0
	prices, err := nearcache.New(bp, nearcache.Options[string, int]{
		Name: "prices",
		Load: func(context.Context, string) (int, error) {
			if loads++; loads == 2 {
				defer close(refreshed)
			}
			return 100 * loads, nil
		},
		TTL:          time.Hour,
		RefreshAfter: time.Nanosecond, // a minute, say
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(prices.Get(ctx, "tea"))
	fmt.Println(prices.Get(ctx, "tea"))
	<-refreshed
	// Output:
	// 100 <nil>
	// 100 <nil>
}

// An outage of the source is none of the service.
func ExampleOptions_staleIfError() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	var away error
	users, err := nearcache.New(bp, nearcache.Options[int, string]{
		Name:         "users",
		Load:         func(context.Context, int) (string, error) { return "Ada", away },
		TTL:          time.Nanosecond, // five minutes, say
		StaleIfError: time.Hour,
		SoftTimeout:  100 * time.Millisecond,
		LoadTimeout:  10 * time.Second,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(users.Get(ctx, 1))
	away = errors.New("connection refused")
	fmt.Println(users.Get(ctx, 1)) // it has expired, and the load fails
	_ = users.Remove(ctx, 1)       // but this says that it is wrong
	_, err = users.Get(ctx, 1)
	fmt.Println(err)
	// Output:
	// Ada <nil>
	// Ada <nil>
	// connection refused
}

// While an error is kept the source is not asked again.
func ExampleOptions_errorTTL() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	users, err := nearcache.New(bp, nearcache.Options[int, string]{
		Name: "users",
		Load: func(context.Context, int) (string, error) {
			fmt.Println("load")
			return "", errors.New("connection refused")
		},
		ErrorTTL: time.Second,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 3 {
		_, err := users.Get(ctx, 1)
		fmt.Println(err)
	}
	// Output:
	// load
	// connection refused
	// connection refused
	// connection refused
}

// However much is missing, the source gets two questions at a time.
func ExampleOptions_maxConcurrentLoads() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	var mu sync.Mutex
	under, most := 0, 0
	reports, err := nearcache.New(bp, nearcache.Options[int, string]{
		Name: "reports",
		Load: func(_ context.Context, id int) (string, error) {
			mu.Lock()
			under++
			most = max(most, under)
			mu.Unlock()
			time.Sleep(time.Millisecond)
			mu.Lock()
			under--
			mu.Unlock()
			return fmt.Sprint("report ", id), nil
		},
		MaxConcurrentLoads: 2,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	var callers sync.WaitGroup
	for id := range 20 {
		callers.Go(func() { _, _ = reports.Get(ctx, id) })
	}
	callers.Wait()
	fmt.Println(reports.Len(), "reports, at most", most, "loads at a time")
	// Output:
	// 20 reports, at most 2 loads at a time
}

// Sessions expire when nobody asks for them, and after a day in any case.
func ExampleOptions_idleTTL() {
	bp := nearcache.Local()
	defer bp.Close()
	sessions, err := nearcache.New(bp, nearcache.Options[string, string]{
		Name:    "sessions",
		Load:    func(_ context.Context, token string) (string, error) { return "user of " + token, nil },
		TTL:     24 * time.Hour,
		IdleTTL: 30 * time.Minute,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(sessions.Get(context.Background(), "c0ffee"))
	// Output:
	// user of c0ffee <nil>
}

func ExampleCache_All() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	squares, err := nearcache.New(bp, nearcache.Options[int, int]{
		Name: "squares",
		Load: func(_ context.Context, n int) (int, error) { return n * n, nil },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, _ = squares.GetMany(ctx, 2, 3, 4)
	_ = squares.Remove(ctx, 3)
	fmt.Println(maps.Collect(squares.All()))
	fmt.Println(slices.Sorted(squares.Keys()))
	// Output:
	// map[2:4 4:16]
	// [2 4]
}
