package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/nearcache/nearcache"
)

// store stands for a database.
type store struct {
	mu       sync.Mutex // guards products
	products map[int64]Product
}

func newStore() *store {
	return &store{products: map[int64]Product{
		42: {ID: 42, Name: "The Go Programming Language", Category: "books"},
	}}
}

// Product reads one product. It takes as long as a query does.
func (s *store) Product(ctx context.Context, id int64) (Product, error) {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
		return Product{}, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	p, ok := s.products[id]
	if !ok {
		return Product{}, fmt.Errorf("product %d: %w", id, nearcache.ErrNotFound)
	}
	return p, nil
}

func (s *store) rename(id int64, name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.products[id]
	p.Name = name
	s.products[id] = p
}
