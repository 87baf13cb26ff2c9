package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nearcache/nearcache"
)

// categories are the regions that products belong to.
var categories = [...]string{
	"art", "audio", "baby", "bikes", "books", "camping", "clothes", "food", "games", "garden",
	"health", "kitchen", "lamps", "music", "office", "pets", "shoes", "sport", "tools", "toys",
}

// catalogue is the source of truth, as a database would be. Only it knows which version is
// current, so it judges what instances serve.
type catalogue struct {
	readDelay time.Duration
	started   time.Time
	asked     atomic.Int64 // how often an instance has read an item

	mu       sync.Mutex // guards everything below
	products []Product  // the product with id n is at n-1; ids start at 1
	prices   []Price    // the same
	ledger   ledger
}

func newCatalogue(products int, readDelay time.Duration) *catalogue {
	c := &catalogue{readDelay: readDelay, started: time.Now(), ledger: newLedger()}
	for id := int64(1); id <= int64(products); id++ {
		c.products = append(c.products, Product{
			ID:       id,
			Name:     fmt.Sprintf("Product %d", id),
			Category: categoryOf(id),
			Version:  1,
		})
		c.prices = append(c.prices, Price{SKU: skuOf(id), Cents: 100 + rand.Int64N(10_000), Version: 1})
	}
	return c
}

func categoryOf(id int64) string { return categories[id%int64(len(categories))] }

func skuOf(id int64) string { return "SKU-" + strconv.FormatInt(id, 10) }

func productItem(id int64) item { return item{kind: "product", key: strconv.FormatInt(id, 10)} }

func priceItem(sku string) item { return item{kind: "price", key: sku} }

// now is the time since the catalogue was made.
func (c *catalogue) now() time.Duration { return time.Since(c.started) }

// change is one that the source has taken.
type change struct {
	item    item
	version int64 // the new one
	at      time.Duration
}

// changeProduct makes a new version of a product.
func (c *catalogue) changeProduct(id int64) change {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changeProductLocked(id, c.now())
}

// changeCategoryOf makes a new version of every product in the category of one,
// all at once, and returns that one's change.
func (c *catalogue) changeCategoryOf(id int64) change {
	c.mu.Lock()
	defer c.mu.Unlock()
	at := c.now()
	var made change
	for _, p := range c.products {
		if p.Category != categoryOf(id) {
			continue
		}
		changed := c.changeProductLocked(p.ID, at)
		if p.ID == id {
			made = changed
		}
	}
	return made
}

func (c *catalogue) changeProductLocked(id int64, at time.Duration) change {
	p := &c.products[id-1]
	c.ledger.supersede(productItem(id), at)
	p.Version++
	return change{item: productItem(id), version: p.Version, at: at}
}

// priceChange returns the change that made a version of a price.
func (c *catalogue) priceChange(p Price) change {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := priceItem(p.SKU)
	return change{item: i, version: p.Version, at: c.ledger.superseded[i][p.Version-2]}
}

// judge looks at reads that began at a time, and returns one finding for each.
func (c *catalogue) judge(began time.Duration, reads []read) []finding {
	c.mu.Lock()
	defer c.mu.Unlock()
	findings := make([]finding, len(reads))
	for i, r := range reads {
		findings[i] = c.ledger.judge(r.item, r.version, began)
	}
	return findings
}

// handler serves the catalogue to the instances.
func (c *catalogue) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products/{id}", func(w http.ResponseWriter, r *http.Request) {
		id, _ := strconv.ParseInt(r.PathValue("id"), 10, 64)
		slowRead(w, r, c, c.products, id)
	})
	mux.HandleFunc("GET /prices/{sku}", func(w http.ResponseWriter, r *http.Request) {
		slowRead(w, r, c, c.prices, idOf(r.PathValue("sku")))
	})
	mux.HandleFunc("PUT /prices/{sku}", c.setPrice)
	return mux
}

// idOf returns the product of a SKU, or 0, which no product has.
func idOf(sku string) int64 {
	var id int64
	if _, err := fmt.Sscanf(sku, "SKU-%d", &id); err != nil || skuOf(id) != sku {
		return 0
	}
	return id
}

// slowRead serves an item as a busy database does. The item is read in the middle
// of the delay: a change that comes after that overtakes the answer, and a cache
// must not keep what it gets.
func slowRead[T any](w http.ResponseWriter, r *http.Request, c *catalogue, items []T, id int64) {
	c.asked.Add(1)
	half := c.readDelay/4 + rand.N(c.readDelay/2+1)
	pause(r.Context(), half)
	if id < 1 || id > int64(len(items)) {
		replyError(w, nearcache.ErrNotFound)
		return
	}
	c.mu.Lock()
	value := items[id-1]
	c.mu.Unlock()
	pause(r.Context(), half)
	reply(w, http.StatusOK, value)
}

func (c *catalogue) setPrice(w http.ResponseWriter, r *http.Request) {
	id := idOf(r.PathValue("sku"))
	cents, err := strconv.ParseInt(r.FormValue("cents"), 10, 64)
	switch {
	case id < 1 || id > int64(len(c.prices)):
		replyError(w, nearcache.ErrNotFound)
		return
	case err != nil:
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	c.mu.Lock()
	p := &c.prices[id-1]
	c.ledger.supersede(priceItem(p.SKU), c.now())
	p.Cents = cents
	p.Version++
	changed := *p
	c.mu.Unlock()
	reply(w, http.StatusOK, changed)
}

// pause waits, and reports false if ctx ends first.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
