// Quickstart is a small program to start from: one instance of a service that
// keeps products in memory.
//
//	go run ./examples/quickstart
//
// Set REDIS_CONNECTION_STRING to join it to others (localhost:6379, say); without
// it the cache works alone.
package main

import (
	"context"
	"errors"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/nearcache/nearcache"
)

type Product struct {
	ID       int64
	Name     string
	Category string
}

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) (err error) {
	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: os.Getenv("REDIS_CONNECTION_STRING"),
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bp.Close()) }()

	store := newStore()
	products, err := nearcache.New(bp, nearcache.Options[int64, Product]{
		Name:    "products",
		Load:    store.Product,
		TTL:     10 * time.Minute,
		Regions: func(_ int64, p Product) []string { return []string{p.Category} },
	})
	if err != nil {
		return err
	}

	for range 3 { // the first loads, the others hit
		started := time.Now()
		p, err := products.Get(ctx, 42)
		if err != nil {
			return err
		}
		fmt.Printf("%-22s %v\n", p.Name, time.Since(started))
	}

	// A change: the source first, then the caches, here and everywhere.
	store.rename(42, "The Go Memory Model")
	if err := products.Remove(ctx, 42); err != nil && !errors.Is(err, nearcache.ErrUnconfirmed) {
		return err
	} // unconfirmed: Redis is away, and the others will hear of it when it is back
	p, err := products.Get(ctx, 42)
	if err != nil {
		return err
	}
	fmt.Println(p.Name)

	// Everything of a category at once.
	before := products.Len()
	if err := products.ClearRegion(ctx, "books"); err != nil && !errors.Is(err, nearcache.ErrUnconfirmed) {
		return err
	}
	s := products.Stats()
	fmt.Printf("%d hits, %d loads; %d held before the region was cleared, %d after\n", s.Hits, s.Loads, before, s.Entries)
	return nil
}
