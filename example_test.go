package nearcache_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/nearcache/nearcache"
)

type product struct {
	Name     string
	Category string
}

// catalogue stands for a database.
var catalogue = map[int64]product{
	42: {Name: "The Go Programming Language", Category: "books"},
	43: {Name: "Gopher, plush", Category: "toys"},
}

func loadProduct(_ context.Context, id int64) (product, error) {
	fmt.Println("load", id)
	p, ok := catalogue[id]
	if !ok {
		return product{}, fmt.Errorf("product %d: %w", id, nearcache.ErrNotFound)
	}
	return p, nil
}

func Example() {
	ctx := context.Background()
	bp := nearcache.Local() // Connect, in a service of several instances
	defer bp.Close()

	products, err := nearcache.New(bp, nearcache.Options[int64, product]{
		Name: "products",
		Load: loadProduct,
		TTL:  10 * time.Minute,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for range 2 {
		p, err := products.Get(ctx, 42)
		fmt.Println(p.Name, err)
	}
	// Output:
	// load 42
	// The Go Programming Language <nil>
	// The Go Programming Language <nil>
}

func ExampleConnect() {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: "contoso.redis.cache.windows.net:6380,password=c2VjcmV0=,ssl=True,abortConnect=False",
		Channel:               "shop",
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() {
		if err := bp.Close(); errors.Is(err, nearcache.ErrUnconfirmed) {
			fmt.Println("some invalidations were not delivered:", err)
		}
	}()
}

func ExampleCache_Remove() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	prices, _ := nearcache.New(bp, nearcache.Options[string, int]{
		Name: "prices",
		Load: func(context.Context, string) (int, error) { return priceOfTea, nil },
	})

	before, _ := prices.Get(ctx, "tea")
	priceOfTea = 350 // write the source first...
	if err := prices.Remove(ctx, "tea"); errors.Is(err, nearcache.ErrUnconfirmed) {
		fmt.Println("other instances will hear of it later:", err)
	}
	after, _ := prices.Get(ctx, "tea")
	fmt.Println(before, after)
	// Output: 300 350
}

var priceOfTea = 300

func ExampleCache_Update() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	products, _ := nearcache.New(bp, nearcache.Options[int64, product]{Name: "products", Load: loadProduct})

	p, err := products.Update(ctx, 43, func(context.Context) (product, error) {
		p := product{Name: "Gopher, large", Category: "toys"}
		catalogue[43] = p // UPDATE … RETURNING, in a service
		return p, nil
	})
	fmt.Println(p.Name, err)
	p, err = products.Get(ctx, 43) // from memory
	fmt.Println(p.Name, err)
	// Output:
	// Gopher, large <nil>
	// Gopher, large <nil>
}

func ExampleCache_ClearRegion() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	products, _ := nearcache.New(bp, nearcache.Options[int64, product]{
		Name:    "products",
		Load:    loadProduct,
		Regions: func(_ int64, p product) []string { return []string{p.Category} },
	})
	_, _ = products.Get(ctx, 42)
	_, _ = products.Get(ctx, 43)
	_ = products.ClearRegion(ctx, "books")
	_, books := products.Peek(42)
	_, toys := products.Peek(43)
	fmt.Println(books, toys)
	// Output:
	// load 42
	// load 43
	// false true
}

// A job changes what a service has cached: the service's instances hold a cache
// named products, and the job tells them what to load again.
func ExampleNewInvalidator() {
	ctx := context.Background()
	bp := nearcache.Local() // Connect, in a job: with PublishOnly, if it holds no caches
	defer bp.Close()

	products, err := nearcache.NewInvalidator[int64](bp, "products")
	if err != nil {
		fmt.Println(err)
		return
	}
	// UPDATE products SET … WHERE id IN (42, 43), and then
	fmt.Println(products.Remove(ctx, 42, 43))
	fmt.Println(products.ClearRegion(ctx, "books"))
	// Output:
	// <nil>
	// <nil>
}

// What a service does with events: its health, and a metric of clears by cause.
func ExampleBackplaneOptions_onEvent() {
	ctx := context.Background()
	clears := map[nearcache.ClearCause]int{} // a counter with a label, in a service
	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		Logger: slog.New(slog.DiscardHandler),
		OnEvent: func(e nearcache.Event) {
			switch e.Kind {
			case nearcache.EventState:
				fmt.Println("state:", e.State)
			case nearcache.EventCleared:
				clears[e.Cause]++
			case nearcache.EventPublishFailed:
				fmt.Println("others will hear of changes later:", e.Err)
			}
		},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_ = bp.Close()
	// Output:
	// state: local
	// state: closed
}

// A not-found can be kept for a while, so that asking for what does not exist
// spares the source too.
func ExampleOptions_notFound() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()
	products, _ := nearcache.New(bp, nearcache.Options[int64, product]{
		Name:        "products",
		Load:        loadProduct,
		NotFoundTTL: time.Minute,
	})
	for range 2 {
		_, err := products.Get(ctx, 7)
		fmt.Println(errors.Is(err, nearcache.ErrNotFound))
	}
	// Output:
	// load 7
	// true
	// true
}

// A cache of pages that takes ten megabytes at most, however large the pages
// are: what is asked for again stays.
func ExampleOptions_weigh() {
	ctx := context.Background()
	bp := nearcache.Local()
	defer bp.Close()

	pages, err := nearcache.New(bp, nearcache.Options[string, []byte]{
		Name:      "pages",
		Load:      func(_ context.Context, path string) ([]byte, error) { return make([]byte, 4<<20), nil },
		MaxWeight: 10 << 20,
		Weigh:     func(path string, page []byte) uint32 { return uint32(len(path) + len(page) + 90) },
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, path := range []string{"/", "/about", "/contact"} {
		if _, err := pages.Get(ctx, path); err != nil {
			fmt.Println(err)
		}
	}
	s := pages.Stats()
	fmt.Println(s.Entries, "pages,", s.Weight>>20, "MB,", s.Evictions.Capacity, "evicted")
	// Output:
	// 2 pages, 8 MB, 1 evicted
}
