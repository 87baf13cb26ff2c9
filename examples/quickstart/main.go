// Quickstart is one instance of a service that keeps products in memory.
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

type Product struct{ Name, Category string }

// database is the data that a real service has in PostgreSQL, for instance.
var database = map[int64]Product{42: {"The Go Programming Language", "books"}}

func load(_ context.Context, id int64) (Product, error) {
	fmt.Println("load", id)
	p, ok := database[id]
	if !ok {
		return p, nearcache.ErrNotFound
	}
	return p, nil
}

func main() {
	if err := run(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context) (err error) {
	bp, err := nearcache.Connect(ctx, nearcache.BackplaneOptions{
		RedisConnectionString: os.Getenv("REDIS_CONNECTION_STRING"), // empty: this process alone
	})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, bp.Close()) }()

	products, err := nearcache.New(bp, nearcache.Options[int64, Product]{
		Name:    "products",
		Load:    load, // once for all callers that wait for a key
		TTL:     10 * time.Minute,
		Regions: func(_ int64, p Product) []string { return []string{p.Category} },
	})
	if err != nil {
		return err
	}

	for range 2 { // the first Get loads, the second is a hit
		p, err := products.Get(ctx, 42)
		if err != nil {
			return err
		}
		fmt.Println(p.Name)
	}

	// A change: the source first, then every copy, here and in all other instances.
	database[42] = Product{"The Go Memory Model", "books"}
	err = products.Remove(ctx, 42) // products.ClearRegion(ctx, "books") evicts all books
	if err != nil && !errors.Is(err, nearcache.ErrUnconfirmed) {
		return err // unconfirmed: Redis is away, and the message is queued
	}
	p, err := products.Get(ctx, 42) // loads
	fmt.Println(p.Name)
	return err
}
