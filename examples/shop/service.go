package main

import (
	"context"
	"encoding/json"
	"errors"
	"log"
	"net/http"
	"strconv"
	"time"

	"github.com/nearcache/nearcache"
)

// Service serves a shop from memory. It takes a backplane rather than making one, so
// that a test can give it another.
type Service struct {
	store     *Store
	backplane *nearcache.Backplane
	products  *nearcache.Cache[int64, Product]
	prices    *nearcache.Cache[int64, Price]
	rights    *nearcache.Cache[string, Rights]
}

func NewService(bp *nearcache.Backplane, store *Store) (*Service, error) {
	// recipe: shop caches
	products, err := nearcache.New(bp, nearcache.Options[int64, Product]{
		Name:    "products",
		Load:    store.Product,
		TTL:     10 * time.Minute, // in memory
		Regions: func(_ int64, p Product) []string { return []string{p.Category} },

		LoadTimeout: 2 * time.Second,
		Shared: &nearcache.SharedOptions[Product]{ // an instance finds in Redis what others have loaded
			TTL:          time.Hour, // in Redis; a change deletes the value there too
			Version:      1,         // of the type Product: raise it when the type changes
			CompressOver: 1 << 10,   // descriptions are long
		},
	})
	if err != nil {
		return nil, err
	}
	prices, err := nearcache.New(bp, nearcache.Options[int64, Price]{
		Name:         "prices",
		Load:         store.Price,
		TTL:          time.Minute,
		MaxStaleness: time.Second, // an old price costs money; the others have the backplane's 5 s
	})
	if err != nil {
		return nil, err
	}
	rights, err := nearcache.New(bp, nearcache.Options[string, Rights]{
		Name:        "rights", // not shared: clients that can write to Redis could write rights
		Load:        store.Rights,
		TTL:         time.Minute,
		NotFoundTTL: 10 * time.Second,
	})
	// recipe end
	if err != nil {
		return nil, err
	}
	return &Service{store: store, backplane: bp, products: products, prices: prices, rights: rights}, nil
}

// Item is what the shop shows of a product.
type Item struct {
	Product
	Cents int64 // after the discount
}

// Item reads a product and its price: each from memory, else from Redis if it is
// shared, else from the database.
func (s *Service) Item(ctx context.Context, id int64) (Item, error) {
	product, err := s.products.Get(ctx, id)
	if err != nil {
		return Item{}, err
	}
	price, err := s.prices.Get(ctx, id)
	return Item{product, price.Cents * int64(100-product.Discount) / 100}, err
}

// recipe: shop changes

// Change writes the source first, and then tells the caches. Values in Redis need nothing
// more: Remove deletes them in the step that tells the other instances.
func (s *Service) Change(ctx context.Context, id int64, name string, cents int64) error {
	err := s.store.Change(ctx, id, name, cents)
	return errors.Join(err, told(s.products.Remove(ctx, id)), told(s.prices.Remove(ctx, id)))
}

// Discount changes every product of a category.
func (s *Service) Discount(ctx context.Context, category string, percent int) error {
	err := s.store.Discount(ctx, category, percent)
	return errors.Join(err, told(s.products.ClearRegion(ctx, category)))
}

// recipe end

// told is nil for a change that Redis has not accepted yet: it is queued, and no
// reason to fail a request. Until then this instance does not read what it has changed
// from Redis.
func told(err error) error {
	if errors.Is(err, nearcache.ErrUnconfirmed) {
		log.Print(err)
		return nil
	}
	return err
}

// Handler serves the shop.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /products/{id}", func(w http.ResponseWriter, r *http.Request) {
		item, err := s.Item(r.Context(), number(r.PathValue("id")))
		reply(w, item, err)
	})
	mux.HandleFunc("PUT /products/{id}", s.guarded(func(r *http.Request) error {
		return s.Change(r.Context(), number(r.PathValue("id")), r.FormValue("name"), number(r.FormValue("cents")))
	}))
	mux.HandleFunc("PUT /categories/{name}", s.guarded(func(r *http.Request) error {
		return s.Discount(r.Context(), r.PathValue("name"), int(number(r.FormValue("discount"))))
	}))
	mux.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		reply(w, s.backplane.Stats(), nil)
	})
	return mux
}

var errForbidden = errors.New("not allowed")

// guarded allows a change only to users with the right to it. A gateway in front of this
// service has authenticated the user, and passes the name in a header.
func (s *Service) guarded(change func(*http.Request) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		rights, err := s.rights.Get(r.Context(), r.Header.Get("X-User"))
		switch {
		case errors.Is(err, nearcache.ErrNotFound), err == nil && !rights.Write:
			err = errForbidden
		case err == nil:
			err = change(r)
		}
		reply(w, nil, err)
	}
}

// number parses a number. It returns 0, which no item has, if text is not a number.
func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

func reply(w http.ResponseWriter, value any, err error) {
	switch {
	case errors.Is(err, errForbidden):
		http.Error(w, err.Error(), http.StatusForbidden)
	case errors.Is(err, nearcache.ErrNotFound):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(value) // fails only if the client has gone
	}
}
