package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nearcache/nearcache"
)

const (
	queryTakes  = 5 * time.Millisecond
	outageTakes = time.Second // until a query fails while the database is down
	perCategory = 12
)

var errDown = errors.New("the database does not answer")

type Product struct {
	ID       int64
	SKU      string
	Name     string
	Category string
	Discount int // per cent
}

type Price struct {
	SKU   string
	Cents int64
}

// Category is the content of a list page. Like every value of a cache, its slice is shared
// by all callers, so it must not be changed.
type Category struct {
	Title    string
	Products []int64
}

// Store replaces a database with three tables.
type Store struct {
	mu         sync.Mutex // guards everything below
	products   map[int64]Product
	prices     map[string]Price
	categories map[string]Category

	down       bool
	queries    int
	running    int
	mostAtOnce int // queries that ran at one time
}

func NewStore() *Store {
	s := &Store{products: map[int64]Product{}, prices: map[string]Price{}, categories: map[string]Category{}}
	id := int64(0)
	for _, name := range []string{"books", "music", "toys"} {
		category := Category{Title: "All our " + name}
		for range perCategory {
			id++
			sku := fmt.Sprintf("SKU-%d", id)
			s.products[id] = Product{ID: id, SKU: sku, Name: fmt.Sprintf("Product %d", id), Category: name}
			s.prices[sku] = Price{SKU: sku, Cents: 100 * id}
			category.Products = append(category.Products, id)
		}
		s.categories[name] = category
	}
	return s
}

// Products reads several products with one query, as Prices does prices.
func (s *Store) Products(ctx context.Context, ids []int64) (map[int64]Product, error) {
	return rows(ctx, s, s.products, ids)
}

func (s *Store) Prices(ctx context.Context, skus []string) (map[string]Price, error) {
	return rows(ctx, s, s.prices, skus)
}

func (s *Store) Category(ctx context.Context, name string) (Category, error) {
	found, err := rows(ctx, s, s.categories, []string{name})
	if err != nil {
		return Category{}, err
	}
	category, ok := found[name]
	if !ok {
		return Category{}, fmt.Errorf("category %q: %w", name, nearcache.ErrNotFound)
	}
	return category, nil
}

func (s *Store) Rename(ctx context.Context, id int64, name string) error {
	return s.query(ctx, func() {
		p := s.products[id]
		p.Name = name
		s.products[id] = p
	})
}

func (s *Store) Discount(ctx context.Context, category string, percent int) error {
	return s.query(ctx, func() {
		for id, p := range s.products {
			if p.Category == category {
				p.Discount = percent
				s.products[id] = p
			}
		}
	})
}

func (s *Store) SetPrice(ctx context.Context, sku string, cents int64) (Price, error) {
	price := Price{SKU: sku, Cents: cents}
	err := s.query(ctx, func() { s.prices[sku] = price })
	return price, err
}

// rows is SELECT … WHERE key IN (keys). What does not exist is not in the map.
func rows[K comparable, V any](ctx context.Context, s *Store, table map[K]V, keys []K) (map[K]V, error) {
	found := make(map[K]V, len(keys))
	err := s.query(ctx, func() {
		for _, key := range keys {
			if row, ok := table[key]; ok {
				found[key] = row
			}
		}
	})
	return found, err
}

// query takes its time, and does its work at the end. A database that is down takes
// more time, and then fails.
func (s *Store) query(ctx context.Context, work func()) error {
	s.mu.Lock()
	takes, err := queryTakes, error(nil)
	if s.down {
		takes, err = outageTakes, errDown
	}
	s.queries++
	s.running++
	s.mostAtOnce = max(s.mostAtOnce, s.running)
	s.mu.Unlock()

	select {
	case <-time.After(takes):
	case <-ctx.Done():
		err = ctx.Err()
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	s.running--
	if err == nil {
		work()
	}
	return err
}

// Down ends or begins an outage of the database.
func (s *Store) Down(down bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.down = down
}

// Count returns how many queries there were since it was called last, and how many of
// them at one time.
func (s *Store) Count() (queries, mostAtOnce int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	queries, mostAtOnce = s.queries, s.mostAtOnce
	s.queries, s.mostAtOnce = 0, s.running
	return queries, mostAtOnce
}
