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

// Short, so that the program shows within seconds what they do. In a service a price
// that others change too may well be a minute old.
const (
	priceTTL          = 500 * time.Millisecond
	priceRefreshAfter = 100 * time.Millisecond
	softTimeout       = 20 * time.Millisecond
)

// Service serves the catalogue from memory. It takes a backplane rather than making
// one, so that a test can give it another.
type Service struct {
	store      *Store
	products   *nearcache.Cache[int64, Product]
	prices     *nearcache.Cache[string, Price]
	categories *nearcache.Cache[string, Category]
}

func NewService(bp *nearcache.Backplane, store *Store) (*Service, error) {
	// recipe: catalogue caches
	products, err := nearcache.New(bp, nearcache.Options[int64, Product]{
		Name:     "products",
		LoadMany: store.Products, // a list page is one query; without Load, so is one product
		TTL:      10 * time.Minute,
		Regions:  func(_ int64, p Product) []string { return []string{p.Category} },

		MaxConcurrentLoads: 4, // slots: a cold instance asks for no more at a time
		StaleIfError:       time.Hour,
	})
	if err != nil {
		return nil, err
	}
	prices, err := nearcache.New(bp, nearcache.Options[string, Price]{
		Name:         "prices",
		LoadMany:     store.Prices,
		TTL:          priceTTL,
		RefreshAfter: priceRefreshAfter, // callers never wait for an item that is asked for often
		StaleIfError: time.Hour,         // an outage of the database is not an outage here,
		SoftTimeout:  softTimeout,       // and neither is a slow database
		LoadTimeout:  2 * time.Second,   // ends loads, even if no caller waits for them

		MaxConcurrentLoads: 4,
	})
	// recipe end
	if err != nil {
		return nil, err
	}
	categories, err := nearcache.New(bp, nearcache.Options[string, Category]{
		Name:         "categories",
		Load:         store.Category,
		StaleIfError: time.Hour,
	})
	if err != nil {
		return nil, err
	}
	return &Service{store: store, products: products, prices: prices, categories: categories}, nil
}

// Page is a list page: a category with all its products.
type Page struct {
	Title string
	Items []Item
}

type Item struct {
	Product
	Cents int64 // after the discount
}

// Page makes a list page, with three queries at most, and with none once it is warm.
func (s *Service) Page(ctx context.Context, name string) (Page, error) {
	// recipe: catalogue page
	category, err := s.categories.Get(ctx, name)
	if err != nil {
		return Page{}, err
	}
	products, err := s.products.GetMany(ctx, category.Products...)
	if err != nil {
		return Page{}, err
	}
	skus := make([]string, 0, len(products))
	for _, p := range products {
		skus = append(skus, p.SKU)
	}
	prices, err := s.prices.GetMany(ctx, skus...)
	if err != nil {
		return Page{}, err
	}
	// recipe end
	page := Page{Title: category.Title}
	for _, id := range category.Products {
		p, ok := products[id]
		price, priced := prices[p.SKU]
		if ok && priced { // else it was deleted since the category was loaded
			page.Items = append(page.Items, Item{p, price.Cents * int64(100-p.Discount) / 100})
		}
	}
	return page, nil
}

// recipe: catalogue changes

// Rename shows the order of every change: the source first, then the caches.
func (s *Service) Rename(ctx context.Context, id int64, name string) error {
	err := s.store.Rename(ctx, id, name)
	// Also after an error: a query that timed out may have been executed.
	return errors.Join(err, told(s.products.Remove(ctx, id)))
}

// Discount changes every product of a category. Only the database knows which these are.
func (s *Service) Discount(ctx context.Context, category string, percent int) error {
	err := s.store.Discount(ctx, category, percent)
	return errors.Join(err, told(s.products.ClearRegion(ctx, category)))
}

// SetPrice keeps the new price here, since the database returns it anyway.
func (s *Service) SetPrice(ctx context.Context, sku string, cents int64) (Price, error) {
	price, err := s.prices.Update(ctx, sku, func(ctx context.Context) (Price, error) {
		return s.store.SetPrice(ctx, sku, cents)
	})
	return price, told(err)
}

// recipe end

// recipe: catalogue unconfirmed

// told drops ErrUnconfirmed: the change is made, its message is queued, and the request
// need not fail.
func told(err error) error {
	if errors.Is(err, nearcache.ErrUnconfirmed) {
		log.Print(err)
		return nil
	}
	return err
}

// recipe end

// Handler serves the catalogue.
func (s *Service) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /categories/{name}", func(w http.ResponseWriter, r *http.Request) {
		page, err := s.Page(r.Context(), r.PathValue("name"))
		reply(w, page, err)
	})
	mux.HandleFunc("GET /products/{id}", func(w http.ResponseWriter, r *http.Request) {
		product, err := s.products.Get(r.Context(), number(r.PathValue("id")))
		reply(w, product, err)
	})
	mux.HandleFunc("PUT /products/{id}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, nil, s.Rename(r.Context(), number(r.PathValue("id")), r.FormValue("name")))
	})
	mux.HandleFunc("PUT /categories/{name}/discount", func(w http.ResponseWriter, r *http.Request) {
		reply(w, nil, s.Discount(r.Context(), r.PathValue("name"), int(number(r.FormValue("percent")))))
	})
	mux.HandleFunc("PUT /prices/{sku}", func(w http.ResponseWriter, r *http.Request) {
		price, err := s.SetPrice(r.Context(), r.PathValue("sku"), number(r.FormValue("cents")))
		reply(w, price, err)
	})
	return mux
}

// number parses a number. It returns 0, which no item has, if text is not a number.
func number(text string) int64 {
	n, _ := strconv.ParseInt(text, 10, 64)
	return n
}

func reply(w http.ResponseWriter, value any, err error) {
	switch {
	case errors.Is(err, nearcache.ErrNotFound):
		http.Error(w, err.Error(), http.StatusNotFound)
	case err != nil:
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	default:
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(value) // fails only if the client has gone
	}
}
