package main

import (
	"context"
	"sync"
	"time"
)

// Document is a document as the service shows it.
type Document struct {
	ID       int64
	Language string
	Version  int
}

// Store replaces the database of documents.
type Store struct {
	mu        sync.Mutex // guards documents
	documents map[int64]Document
}

// NewStore makes a store of n documents. Every tenth is in French.
func NewStore(n int64) *Store {
	s := &Store{documents: map[int64]Document{}}
	for id := int64(1); id <= n; id++ {
		d := Document{ID: id, Language: "en", Version: 1}
		if id%10 == 0 {
			d.Language = "fr"
		}
		s.documents[id] = d
	}
	return s
}

// Documents reads several documents with one query.
func (s *Store) Documents(ctx context.Context, ids []int64) (map[int64]Document, error) {
	select {
	case <-time.After(5 * time.Millisecond):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	found := make(map[int64]Document, len(ids))
	for _, id := range ids {
		if d, ok := s.documents[id]; ok {
			found[id] = d
		}
	}
	return found, nil
}

// Version returns which version of a document is the newest.
func (s *Store) Version(id int64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.documents[id].Version
}

// Reindex makes a new version of the documents from first to last, and returns which
// these are.
func (s *Store) Reindex(first, last int64) (ids []int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id := first; id <= last; id++ {
		s.reindexLocked(id)
		ids = append(ids, id)
	}
	return ids
}

// ReindexLanguage makes a new version of all documents in a language.
func (s *Store) ReindexLanguage(language string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, d := range s.documents {
		if d.Language == language {
			s.reindexLocked(id)
		}
	}
}

func (s *Store) reindexLocked(id int64) {
	d := s.documents[id]
	d.Version++
	s.documents[id] = d
}
