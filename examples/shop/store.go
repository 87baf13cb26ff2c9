package main

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nearcache/nearcache"
)

const (
	queryTakes   = 20 * time.Millisecond
	productCount = 30
)

// Product goes to Redis as JSON: what has no name there, such as an unexported field,
// would be lost on the way.
type Product struct {
	ID          int64
	Name        string
	Category    string
	Description string
	Discount    int // per cent
}

type Price struct{ Cents int64 }

type Rights struct{ Write bool }

// Store replaces a database with three tables.
type Store struct {
	mu       sync.Mutex // guards everything below
	products map[int64]Product
	prices   map[int64]Price
	rights   map[string]Rights
	read     map[int64]int // how often each product was
}

func NewStore() *Store {
	s := &Store{
		products: map[int64]Product{}, prices: map[int64]Price{},
		rights: map[string]Rights{"alice": {Write: true}, "bob": {}},
		read:   map[int64]int{},
	}
	for id := int64(1); id <= productCount; id++ {
		s.products[id] = Product{
			ID:          id,
			Name:        fmt.Sprintf("Product %d", id),
			Category:    []string{"books", "music", "toys"}[id%3],
			Description: strings.Repeat("It is the best of its kind. ", 100),
		}
		s.prices[id] = Price{Cents: 1000 * id}
	}
	return s
}

func (s *Store) Product(ctx context.Context, id int64) (Product, error) {
	s.mu.Lock()
	s.read[id]++
	s.mu.Unlock()
	return row(ctx, s, s.products, id)
}

func (s *Store) Price(ctx context.Context, id int64) (Price, error) { return row(ctx, s, s.prices, id) }

func (s *Store) Rights(ctx context.Context, user string) (Rights, error) {
	return row(ctx, s, s.rights, user)
}

// Change changes a product's name and its price.
func (s *Store) Change(ctx context.Context, id int64, name string, cents int64) (err error) {
	queryErr := s.query(ctx, func() {
		p, ok := s.products[id]
		if !ok {
			err = fmt.Errorf("product %d: %w", id, nearcache.ErrNotFound)
			return
		}
		p.Name = name
		s.products[id] = p
		s.prices[id] = Price{Cents: cents}
	})
	if queryErr != nil {
		return queryErr
	}
	return err
}

// Discount changes every product of a category.
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

// Reads returns how often a product was read.
func (s *Store) Reads(id int64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.read[id]
}

// row is SELECT … WHERE key = key.
func row[K comparable, V any](ctx context.Context, s *Store, table map[K]V, key K) (value V, err error) {
	ok := false
	err = s.query(ctx, func() { value, ok = table[key] })
	if err == nil && !ok {
		err = fmt.Errorf("%v: %w", key, nearcache.ErrNotFound)
	}
	return value, err
}

// query takes its time, and does its work at the end.
func (s *Store) query(ctx context.Context, work func()) error {
	select {
	case <-time.After(queryTakes):
	case <-ctx.Done():
		return ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	work()
	return nil
}
